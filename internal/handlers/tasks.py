"""/api/v1/tasks and /api/v1/dead-letters"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from internal.entities.tasks import Attempt, Queue, Task, TaskStatus
from internal.handlers.auth import access
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, read_id
from internal.services.tasks import TaskService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role


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
    """One try at a task."""

    number: int
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    error: TaskError | None


class TaskWithAttempts(TaskOut, frozen=True):
    """A task with every try at it."""

    attempts: list[AttemptOut]


class Redriven(msgspec.Struct, frozen=True):
    """How many dead letters were queued again."""

    redriven: int


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
    found, following = await tasks.list(
        ctx, status=status, queue=queue, document_id=document_id, limit=limit, cursor=cursor
    )
    return Page([task_out(item) for item in found], following)


@get("/api/v1/tasks/{task_id:str}", opt=access(Role.VIEWER))
async def get_task(ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], task_id: Id) -> TaskWithAttempts:
    """One task, with its tries."""
    task = await tasks.get(ctx, _id(task_id))
    attempts = await tasks.attempts(ctx, task.id)
    return TaskWithAttempts(
        **msgspec.structs.asdict(task_out(task)), attempts=[_attempt_out(item) for item in attempts]
    )


@post("/api/v1/tasks/{task_id:str}/retry", opt=access(Role.MEMBER), status_code=202)
async def retry_task(ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], task_id: Id) -> TaskOut:
    """Queues a failed, dead or cancelled task again."""
    return task_out(await tasks.retry(ctx, _id(task_id)))


@post("/api/v1/tasks/{task_id:str}/cancel", opt=access(Role.MEMBER), status_code=202)
async def cancel_task(ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], task_id: Id) -> TaskOut:
    """Cancels a queued task at once, a running one within seconds."""
    return task_out(await tasks.cancel(ctx, _id(task_id)))


@get("/api/v1/dead-letters", opt=access(Role.VIEWER))
async def list_dead_letters(
    ctx: NamedDependency[Context],
    tasks: NamedDependency[TaskService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[TaskOut]:
    """Tasks that have used up their tries, newest first."""
    found, following = await tasks.dead_letters(ctx, limit=limit, cursor=cursor)
    return Page([task_out(item) for item in found], following)


@post("/api/v1/dead-letters/{task_id:str}/redrive", opt=access(Role.MEMBER), status_code=202)
async def redrive_dead_letter(
    ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], task_id: Id
) -> TaskOut:
    """Queues one dead letter again, with all its tries."""
    return task_out(await tasks.redrive(ctx, _id(task_id)))


@post("/api/v1/dead-letters/redrive", opt=access(Role.MEMBER), status_code=202)
async def redrive_dead_letters(ctx: NamedDependency[Context], tasks: NamedDependency[TaskService]) -> Redriven:
    """Queues every dead letter that you may see again."""
    return Redriven(await tasks.redrive_all(ctx))


def task_out(task: Task) -> TaskOut:
    """Without what only workers need."""
    return TaskOut(
        id=task.id,
        task_id=task.id,
        kind=task.kind,
        queue=task.queue,
        status=task.status,
        stage=task.stage,
        progress=task.progress,
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


def _attempt_out(attempt: Attempt) -> AttemptOut:
    return AttemptOut(
        number=attempt.number,
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
        outcome=attempt.outcome.value if attempt.outcome else None,
        error=_error(attempt.error_code, attempt.error_message),
    )


def _error(code: str | None, message: str | None) -> TaskError | None:
    return TaskError(code, message or "") if code else None


def _id(text: str) -> UUID:
    return read_id(text, AppError(Code.TASK_NOT_FOUND, "There is no such task."))
