"""Why a task waits, in plain words, and when it is likely to start and to end."""

from datetime import datetime, timedelta

import msgspec

from internal.entities.tasks import Task, TaskStatus
from internal.entities.waiting import Pace, Reason, Standing, Waiting, pace_of, start_seconds
from internal.repositories.store import Store
from internal.repositories.workers import WorkerRegistry
from pkg.apperr import TRANSIENT, AppError, Code
from pkg.ctxutil import Context

FEWEST_SHARE = 0.05
"""Progress below this says little about how long the rest takes."""

SILENT = {
    Code.SCAN_UNAVAILABLE: "The virus scanner doesn't answer.",
    Code.BLOB_UNAVAILABLE: "The object store doesn't answer.",
    Code.DATABASE_UNAVAILABLE: "The database doesn't answer.",
    Code.REDIS_UNAVAILABLE: "Redis doesn't answer.",
    Code.MODEL_UNAVAILABLE: "A model doesn't answer.",
}


class ForecastService:
    """Reads live workers' reports and the ledger; never another tenant's tasks."""

    def __init__(self, store: Store, workers: WorkerRegistry) -> None:
        self._store = store
        self._workers = workers

    async def waiting(self, ctx: Context, task: Task) -> Waiting | None:
        """Why a queued task doesn't run yet; None for any other."""
        if task.status is not TaskStatus.QUEUED:
            return None
        pace = await self._pace(task)
        if task.due_at > task.read_at:
            return _resting(task, pace)
        async with self._store.tenant(ctx) as tx:
            standing = await tx.standings.find(task.id, pace or Pace(slots=0, usual=None))
        if standing is None:
            return None
        if pace is not None and pace.complete and not pace.slots and not standing.running:
            return Waiting(reason=Reason.NO_WORKER, detail=f"No worker that serves the queue {task.queue} is running.")
        return _standing(task, standing, pace)

    async def end_of_running(self, task: Task) -> datetime | None:
        """When a running task is likely to end, by its progress or by what such tasks take; None where nobody knows."""
        if task.status is not TaskStatus.RUNNING or task.started_at is None:
            return None
        spent = (task.read_at - task.started_at).total_seconds()
        if task.progress >= FEWEST_SHARE and task.attempts == 1:
            return task.read_at + timedelta(seconds=spent * (1 - task.progress) / task.progress)
        pace = await self._pace(task)
        took = pace.of(task.kind, task.size) if pace is not None else None
        return None if took is None else task.read_at + timedelta(seconds=max(0.0, took - spent))

    async def _pace(self, task: Task) -> Pace | None:
        """None when Redis is away, and with it everything that is known of workers."""
        try:
            return pace_of(await self._workers.roll(), task.queue)
        except AppError:
            return None


def _resting(task: Task, pace: Pace | None) -> Waiting:
    """Of a task that isn't due before some time."""
    at = f"{task.due_at:%H:%M:%S} UTC"
    if task.stage == "held" and task.error_code in TRANSIENT:
        said = task.error_message or SILENT[Code(task.error_code)]
        found = Waiting(reason=Reason.DEPENDENCY, detail=f"{said} It is tried again at {at}, without using up a try.")
    elif not task.attempts:
        detail = f"The workers asked so far don't know this kind of work yet; a newer one is asked at {at}."
        found = Waiting(reason=Reason.NO_WORKER, detail=detail)
    else:
        detail = (
            f"Its last try failed; try {task.retry_count + 1} of {task.max_retries + 1} is at {at} at the earliest."
        )
        found = Waiting(reason=Reason.BACKOFF, detail=detail)
    took = pace.of(task.kind, task.size) if pace is not None else None
    return msgspec.structs.replace(
        found,
        until=task.due_at,
        estimated_start_at=task.due_at,
        estimated_end_at=None if took is None else task.due_at + timedelta(seconds=took),
    )


def _standing(task: Task, standing: Standing, pace: Pace | None) -> Waiting:
    """Of a task that waits its turn."""
    ahead = standing.own + standing.others + standing.urgent
    if not ahead:
        reason, detail = Reason.NEXT, "It is next: it starts as soon as a worker is free."
    elif standing.own >= standing.others + standing.urgent:
        reason = Reason.TENANT_SHARE
        detail = f"{standing.own} tasks of your own tenant come first; tenants take turns."
    else:
        reason = Reason.QUEUE
        detail = f"About {ahead} tasks come first, {standing.own} of them of your own tenant; tenants take turns."
    starts = None if pace is None else start_seconds(standing, pace)
    took = None if pace is None else pace.of(task.kind, task.size)
    return Waiting(
        reason=reason,
        detail=detail,
        position=standing.own,
        ahead=ahead,
        estimated_start_at=None if starts is None else task.read_at + timedelta(seconds=starts),
        estimated_end_at=None if starts is None or took is None else task.read_at + timedelta(seconds=starts + took),
    )
