"""A worker in a process of its own, to be killed or stopped: `python -m tests.worker_process DSN REDIS_URL`.

Its one job, `mark`, counts its effect in the outbox, under the task's fence. DREAMHUB_FAILPOINTS says where it breaks.
"""

import asyncio
import os
import signal
import sys
from typing import Any, ClassVar

from internal.entities.events import Event
from internal.entities.tasks import Lease
from internal.repositories.store import Store, open_store
from internal.worker.jobs import Job, Jobs
from internal.worker.queue import TaskQueue
from internal.worker.runner import Worker
from pkg import failpoints
from pkg.ctxutil import Context
from tests.ledger import task_settings


class Marked(Event, frozen=True, kw_only=True):
    """The effect that must be there once."""

    kind: ClassVar[str] = "test.marked"

    pid: int


class Marker:
    """Writes its mark between two failpoints."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def mark(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.progress(lease, "begun", 0.5)
        await failpoints.hit("test.before_mark")
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await tx.outbox.add(Marked(pid=os.getpid()))
            await tx.tasks.progress(lease, "marked", 0.9)
        return {"pid": os.getpid()}


async def main(dsn: str, redis_url: str) -> None:
    store = await open_store(dsn)
    queue = TaskQueue(redis_url)
    jobs = Jobs([Job(kind="mark", version=1, handler=Marker(store).mark)])
    worker = Worker(store, queue, jobs, task_settings())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()
    await queue.close()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
