"""Jobs in the imperative: each kind of task has one, and each job calls one service."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from internal.entities.tasks import INGEST_VERSION, PURGE_VERSION, Lease, TaskKind
from pkg.apperr import SettingsError
from pkg.ctxutil import Context

Handler = Callable[[Context, Lease], Awaitable[dict[str, Any]]]
"""Does the work under the lease and answers the task's result: small, without content."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker does for a kind, for tasks up to `version`; an older one is the handler's to understand."""

    kind: str
    version: int
    handler: Handler


class Jobs:
    """The kinds that a worker knows. Raises SettingsError when one has two jobs."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs: dict[str, Job] = {}
        for job in jobs:
            if job.kind in self._jobs:
                raise SettingsError(f"the kind of task {job.kind} has two jobs")
            self._jobs[job.kind] = job

    @property
    def versions(self) -> dict[str, int]:
        """Kind to the newest version that is understood."""
        return {kind: job.version for kind, job in self._jobs.items()}

    def require(self, kinds: Iterable[str]) -> None:
        """Raises SettingsError when a kind has no job, so that start-up fails and not the task."""
        missing = sorted(set(kinds) - self._jobs.keys())
        if missing:
            raise SettingsError(f"no job for these kinds of task: {', '.join(missing)}")

    async def run(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """Does the task's work. Raises whatever its service raises."""
        return await self._jobs[lease.task.kind].handler(ctx, lease)


VERSIONS: dict[str, int] = {TaskKind.INGEST_CONTENT: INGEST_VERSION, TaskKind.PURGE_CONTENT: PURGE_VERSION}
"""Of kinds whose meaning has changed; the others are at their first."""


def product_jobs(**handlers: Handler) -> Jobs:
    """The product's jobs by kind, complete or not at all."""
    jobs = Jobs(Job(kind=kind, version=VERSIONS.get(kind, 1), handler=handler) for kind, handler in handlers.items())
    jobs.require(TaskKind)
    return jobs
