"""/api/v1/tasks"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter

from internal.entities.tasks import Acted, Attempt, Queue, Task, TaskFilter, TaskStatus
from internal.entities.waiting import Waiting
from internal.handlers.auth import access
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, read_id
from internal.services.forecasts import ForecastService
from internal.services.tasks import TaskService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

LONGEST_NAME = 100
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]
Ids = Annotated[list[UUID], msgspec.Meta(min_length=1, max_length=1000)]


class TaskError(msgspec.Struct, frozen=True):
    """Why a task failed, with a stable code."""

    code: str
    message: str


class TaskOut(msgspec.Struct, frozen=True):
    """A task as its user sees it; `progress` goes from 0 to 1. `task_id` is `id`, as an upload's answer names it."""

    id: UUID
    task_id: UUID
    kind: str
    queue: Queue
    status: TaskStatus
    stage: str
    progress: float
    priority: int
    retry_count: int
    max_retries: int
    version: int
    error: TaskError | None
    document_id: UUID | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    result: dict[str, Any] | None


class AttemptOut(msgspec.Struct, frozen=True):
    """One try at a task. `worker` tells the workers of several tries apart; the operator's log has it too."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    error: TaskError | None


class TaskWithAttempts(TaskOut, frozen=True):
    """A task with every try at it."""

    attempts: list[AttemptOut]


class TaskInDetail(TaskWithAttempts, frozen=True):
    """A task with every try at it, why it waits while it is queued, and when it is likely to end."""

    waiting: Waiting | None
    estimated_end_at: datetime | None


class TasksIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which tasks, of those that you may see: all that fulfil each condition given. At least one must be."""

    status: TaskStatus | None = None
    queue: Queue | None = None
    kind: Name | None = None
    error_code: Name | None = None
    document_ids: Ids | None = None
    ids: Ids | None = None


class Retried(msgspec.Struct, frozen=True):
    """How many were queued again; `more`: ask once more for the rest."""

    retried: int
    more: bool


class Cancelled(msgspec.Struct, frozen=True):
    """How many were cancelled, or will be by their workers; `more`: ask once more for the rest."""

    cancelled: int
    more: bool


@get("/api/v1/tasks", opt=access(Role.VIEWER))
async def list_tasks(
    ctx: NamedDependency[Context],
    tasks: NamedDependency[TaskService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    status: Annotated[TaskStatus | None, QueryParameter()] = None,
    queue: Annotated[Queue | None, QueryParameter()] = None,
    document_id: Annotated[UUID | None, QueryParameter()] = None,
) -> Page[TaskOut]:
    """Tasks that you may see, newest first."""
    narrow = TaskFilter(
        statuses=None if status is None else frozenset({status}),
        queue=queue,
        document_ids=None if document_id is None else [document_id],
    )
    found, following = await tasks.list(ctx, narrow, limit=limit, cursor=cursor)
    return Page([task_out(item) for item in found], following)


@get("/api/v1/tasks/{task_id:str}", opt=access(Role.VIEWER))
async def get_task(
    ctx: NamedDependency[Context],
    tasks: NamedDependency[TaskService],
    forecasts: NamedDependency[ForecastService],
    task_id: Id,
) -> TaskInDetail:
    """One task, with its tries, and why it waits."""
    task = await tasks.get(ctx, read_task_id(task_id))
    attempts = await tasks.attempts(ctx, task.id)
    waiting = await forecasts.waiting(ctx, task)
    return TaskInDetail(
        **msgspec.structs.asdict(task_out(task)),
        attempts=[attempt_out(item) for item in attempts],
        waiting=waiting,
        estimated_end_at=waiting.estimated_end_at if waiting else await forecasts.end_of_running(task),
    )


@post("/api/v1/tasks/{task_id:str}/retry", opt=access(Role.MEMBER), status_code=202)
async def retry_task(ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], task_id: Id) -> TaskOut:
    """Queues a failed, dead or cancelled task again."""
    return task_out(await tasks.retry(ctx, read_task_id(task_id)))


@post("/api/v1/tasks/{task_id:str}/cancel", opt=access(Role.MEMBER), status_code=202)
async def cancel_task(ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], task_id: Id) -> TaskOut:
    """Cancels a queued task at once, a running one within seconds. Members cancel what they began, admins anything."""
    return task_out(await tasks.cancel(ctx, read_task_id(task_id)))


@post("/api/v1/tasks/retry", opt=access(Role.MEMBER), status_code=202)
async def retry_tasks(
    ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], data: JSONBody[TasksIn]
) -> Retried:
    """Queues again those of the chosen tasks that can be; without a status, those that failed or died."""
    return Retried(*_told(await tasks.retry_all(ctx, _chosen(data))))


@post("/api/v1/tasks/cancel", opt=access(Role.MEMBER), status_code=202)
async def cancel_tasks(
    ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], data: JSONBody[TasksIn]
) -> Cancelled:
    """Cancels the chosen tasks, queued ones at once, running ones within seconds; removals of documents go on.

    A member's are those that they began; an admin's, all that they may see.
    """
    return Cancelled(*_told(await tasks.cancel_all(ctx, _chosen(data))))


def task_out(task: Task) -> TaskOut:
    """Without what only workers need."""
    return TaskOut(
        id=task.id,
        task_id=task.id,
        kind=task.kind,
        queue=task.queue,
        status=task.status,
        stage=task.stage,
        progress=round(task.progress, 4),  # a 4-byte float's tail says nothing
        priority=task.priority,
        retry_count=task.retry_count,
        max_retries=task.max_retries,
        version=task.version,
        error=_error(task.error_code, task.error_message),
        document_id=task.document_id,
        created_at=task.created_at,
        started_at=task.started_at,
        finished_at=task.finished_at,
        result=task.result,
    )


def attempt_out(attempt: Attempt) -> AttemptOut:
    """Without where the worker ran."""
    return AttemptOut(
        number=attempt.number,
        worker=attempt.worker.rpartition(":")[2],  # the rest names a host, which is nobody's business
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
        outcome=attempt.outcome.value if attempt.outcome else None,
        error=_error(attempt.error_code, attempt.error_message),
    )


def _error(code: str | None, message: str | None) -> TaskError | None:
    return TaskError(code, message or "") if code else None


def _told(acted: Acted) -> tuple[int, bool]:
    return acted.count, acted.more


def _chosen(data: TasksIn) -> TaskFilter:
    if data == TasksIn():
        raise AppError(
            Code.REQUEST_INVALID, "Say which tasks: by status, queue, kind, error_code, document_ids or ids."
        )
    return TaskFilter(
        statuses=None if data.status is None else frozenset({data.status}),
        queue=data.queue,
        kind=data.kind,
        error_code=data.error_code,
        document_ids=data.document_ids,
        ids=data.ids,
    )


def read_task_id(text: str) -> UUID:
    """A task's id in a path. Raises TASK_NOT_FOUND."""
    return read_id(text, AppError(Code.TASK_NOT_FOUND, "There is no such task."))
