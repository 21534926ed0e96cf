"""/api/v1/dead-letters: tasks that have used up their tries."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter

from internal.entities.tasks import Queue, TaskFilter, TaskStatus
from internal.handlers.auth import access
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page
from internal.handlers.requests import Moment, utc
from internal.handlers.tasks import (
    LONGEST_NAME,
    Ids,
    Name,
    TaskOut,
    TaskWithAttempts,
    attempt_out,
    read_task_id,
    task_out,
)
from internal.services.tasks import TaskService
from pkg.ctxutil import Context, Role


class PayloadOut(msgspec.Struct, frozen=True):
    """What a task was to do, in words and numbers; never the content. `size` is in bytes."""

    kind: str
    version: int
    document_id: UUID | None
    filename: str | None
    media_type: str | None
    size: int | None


class DeadLetterOut(TaskWithAttempts, frozen=True):
    """A dead letter with every try at it and what it is about; `error` is the last one."""

    payload: PayloadOut


class DeadLettersIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters, of those that you may see: all that fulfil each condition given, else all.

    They died at `after` or later, and before `before`.
    """

    queue: Queue | None = None
    kind: Name | None = None
    error_code: Name | None = None
    document_ids: Ids | None = None
    ids: Ids | None = None
    after: Moment | None = None
    before: Moment | None = None


class Redriven(msgspec.Struct, frozen=True):
    """How many dead letters were queued again; `more`: ask once more for the rest."""

    redriven: int
    more: bool


class Discarded(msgspec.Struct, frozen=True):
    """How many dead letters were given up; `more`: ask once more for the rest."""

    discarded: int
    more: bool


@get("/api/v1/dead-letters", opt=access(Role.VIEWER))
async def list_dead_letters(
    ctx: NamedDependency[Context],
    tasks: NamedDependency[TaskService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    queue: Annotated[Queue | None, QueryParameter()] = None,
    kind: Annotated[str | None, QueryParameter(max_length=LONGEST_NAME)] = None,
    error_code: Annotated[str | None, QueryParameter(max_length=LONGEST_NAME)] = None,
    document_id: Annotated[UUID | None, QueryParameter()] = None,
    after: Annotated[datetime | None, QueryParameter(description="They died then or later.")] = None,
    before: Annotated[datetime | None, QueryParameter(description="They died before that.")] = None,
) -> Page[TaskOut]:
    """Tasks that have used up their tries, newest first."""
    narrow = TaskFilter(
        statuses=frozenset({TaskStatus.DEAD}),
        queue=queue,
        kind=kind,
        error_code=error_code,
        document_ids=None if document_id is None else [document_id],
        ended_after=utc(after, "after"),
        ended_before=utc(before, "before"),
    )
    found, following = await tasks.list(ctx, narrow, limit=limit, cursor=cursor)
    return Page([task_out(item) for item in found], following)


@get("/api/v1/dead-letters/{letter_id:str}", opt=access(Role.VIEWER))
async def get_dead_letter(
    ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], letter_id: Id
) -> DeadLetterOut:
    """One dead letter with its whole history, its last error and what it is about."""
    task, attempts, matter = await tasks.dead_letter(ctx, read_task_id(letter_id))
    return DeadLetterOut(
        **msgspec.structs.asdict(task_out(task)),
        attempts=[attempt_out(item) for item in attempts],
        payload=PayloadOut(task.kind, task.version, task.document_id, matter.filename, matter.media_type, matter.size),
    )


@post("/api/v1/dead-letters/{letter_id:str}/redrive", opt=access(Role.MEMBER), status_code=202)
async def redrive_dead_letter(
    ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], letter_id: Id
) -> TaskOut:
    """Queues one dead letter again, with all its tries."""
    return task_out(await tasks.redrive(ctx, read_task_id(letter_id)))


@post("/api/v1/dead-letters/redrive", opt=access(Role.MEMBER), status_code=202)
async def redrive_dead_letters(
    ctx: NamedDependency[Context],
    tasks: NamedDependency[TaskService],
    data: JSONBody[DeadLettersIn] = DeadLettersIn(),  # noqa: B008 - frozen
) -> Redriven:
    """Queues dead letters again: those chosen, or without a body every one that you may see."""
    acted = await tasks.redrive_all(ctx, _chosen(data))
    return Redriven(acted.count, acted.more)


@delete("/api/v1/dead-letters/{letter_id:str}", opt=access(Role.ADMIN))
async def discard_dead_letter(
    ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], letter_id: Id
) -> None:
    """Gives a dead letter up: its task and document have failed, and it is no longer listed here."""
    await tasks.discard(ctx, read_task_id(letter_id))


@post("/api/v1/dead-letters/discard", opt=access(Role.ADMIN), status_code=202)
async def discard_dead_letters(
    ctx: NamedDependency[Context], tasks: NamedDependency[TaskService], data: JSONBody[DeadLettersIn]
) -> Discarded:
    """Gives the chosen dead letters up; an empty object chooses every one that you may see."""
    acted = await tasks.discard_all(ctx, _chosen(data))
    return Discarded(acted.count, acted.more)


def _chosen(data: DeadLettersIn) -> TaskFilter:
    return TaskFilter(
        queue=data.queue,
        kind=data.kind,
        error_code=data.error_code,
        document_ids=data.document_ids,
        ids=data.ids,
        ended_after=utc(data.after, "after"),
        ended_before=utc(data.before, "before"),
    )
