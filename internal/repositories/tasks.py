"""SQL of tasks: what users see and ask for, and what a worker writes under its lease."""

from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.events import TaskFinished, TaskRequeued
from internal.entities.ids import new_id
from internal.entities.tasks import (
    REMOVALS,
    Attempt,
    Lease,
    Matter,
    NewTask,
    Task,
    TaskFilter,
    TaskPolicy,
    TaskStatus,
    check_transition,
)
from internal.repositories.outbox import OutboxRepository
from internal.repositories.room import RoomRepository
from internal.repositories.task_rows import ANEW, NARROWED, TASK, VISIBLE, attempt_of, conditions, task_of
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

CHANNEL = "dreamhub_tasks"


class TaskRepository:
    """Tasks of one tenant, as far as the context's user may see them, and the writes of a lease's holder."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context, policy: TaskPolicy) -> None:
        self._conn = conn
        self._ctx = ctx
        self._policy = policy

    async def add(self, new: NewTask) -> Task:
        """Queues a task of the context's user and wakes the relay at commit. Raises QUEUE_FULL at the tenant's cap."""
        if new.bounded:
            await RoomRepository(self._conn, self._ctx, self._policy).require()
        return await self.get(await self._insert(new, self._ctx.user_id))

    async def add_hidden(self, new: NewTask) -> None:
        """Queues the operator's own work. It is in nobody's name, the tenant's id stands there: no user sees it."""
        await self._insert(new, self._ctx.tenant_id)

    async def _insert(self, new: NewTask, user_id: UUID) -> UUID:
        task_id = new_id()
        await self._conn.execute(
            "with task as (insert into tasks (tenant_id, id, kind, version, queue, priority, user_id, role, request_id,"
            " trace_id, document_id, content_id, payload, max_retries, size)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::jsonb, $14, $15))"
            " select pg_notify('dreamhub_tasks', '')",
            self._ctx.tenant_id,
            task_id,
            new.kind,
            new.version,
            new.queue.value,
            new.priority,
            user_id,
            self._ctx.role.value,
            self._ctx.request_id,
            self._ctx.trace_id,
            new.document_id,
            new.content_id,
            _json(new.payload),
            self._policy.max_retries,
            new.size,
        )
        return task_id

    async def find(self, task_id: UUID) -> Task | None:
        """The task, or None when there is none that the context's user may see."""
        row = await self._conn.fetchrow(
            TASK + VISIBLE + " and t.id = $3", self._ctx.tenant_id, self._ctx.user_id, task_id
        )
        return None if row is None else task_of(row)

    async def get(self, task_id: UUID) -> Task:
        """Raises TASK_NOT_FOUND, for a foreign or private one too."""
        found = await self.find(task_id)
        if found is None:
            raise _missing()
        return found

    async def attempts(self, task_id: UUID) -> list[Attempt]:
        """Every try at the task, the first one first. Raises TASK_NOT_FOUND."""
        await self.get(task_id)
        rows = await self._conn.fetch(
            "select number, worker, started_at, finished_at, outcome, error_code, error_message from task_attempts"
            " where tenant_id = $1 and task_id = $2 order by number",
            self._ctx.tenant_id,
            task_id,
        )
        return [attempt_of(row) for row in rows]

    async def latest_for_documents(self, document_ids: list[UUID]) -> dict[UUID, Task]:
        """The newest task of each document; documents without a visible one are left out."""
        rows = await self._conn.fetch(
            TASK.replace("select", "select distinct on (t.document_id)", 1)
            + VISIBLE
            + " and t.document_id = any($3) order by t.document_id, t.created_at desc, t.id desc",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_ids,
        )
        return {row["document_id"]: task_of(row) for row in rows}

    async def retry(self, task_id: UUID) -> Task:
        """Queues a failed, dead or cancelled task with all its tries.

        Raises TASK_NOT_FOUND, TASK_NOT_RETRYABLE, and QUEUE_FULL at the tenant's cap, unless it removes something.
        """
        task = await self.get(task_id)
        check_transition(task.status, TaskStatus.QUEUED)
        if task.kind not in REMOVALS:  # before the row is locked: who queues many locks in this order, too
            await RoomRepository(self._conn, self._ctx, self._policy).require()
        status, _kind = await self._lock(task_id)
        check_transition(status, TaskStatus.QUEUED)
        await self._requeue(task_id)
        again = TaskRequeued(task_id=task_id, task_kind=task.kind, document_id=task.document_id)
        await OutboxRepository(self._conn, self._ctx).add(again)
        return await self.get(task_id)

    async def cancel(self, task_id: UUID) -> Task:
        """Cancels a queued task at once, asks a running one's worker. Raises TASK_NOT_FOUND, TASK_NOT_CANCELLABLE."""
        status, kind = await self._lock(task_id)
        check_transition(status, TaskStatus.CANCELLED)
        if kind in REMOVALS:
            raise AppError(Code.TASK_NOT_CANCELLABLE, "What removes a deleted document goes on to its end.")
        if status is TaskStatus.QUEUED:
            await self._conn.execute(
                "update tasks set status = 'cancelled', stage = 'cancelled', dispatched_at = null,"
                " cancel_requested_at = clock_timestamp(), finished_at = clock_timestamp()"
                " where tenant_id = $1 and id = $2",
                self._ctx.tenant_id,
                task_id,
            )
            task = await self.get(task_id)
            await OutboxRepository(self._conn, self._ctx).add(_finished(task, TaskStatus.CANCELLED, None))
            return task
        await self._conn.execute(
            "update tasks set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())"
            " where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            task_id,
        )
        return await self.get(task_id)

    async def cancel_for_document(self, document_id: UUID) -> None:
        """Cancels whatever is still to be done for a document that the context's user may see.

        Waits for workers' transactions, so it comes before any lock that such a one takes.
        """
        rows = await self._conn.fetch(
            "select t.id from tasks t" + VISIBLE + " and t.document_id = $3"  # noqa: S608 - constants
            " and t.status in ('queued', 'running') order by t.id for update of t",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_id,
        )
        for row in rows:
            await self.cancel(row["id"])

    async def cancel_queued(self, document_id: UUID, task_ids: list[UUID] | None = None) -> None:
        """Cancels what no worker has begun for a document, or of that only these.

        For whoever has locked the document: it never waits for a worker's transaction, which may wait for them.
        """
        rows = await self._conn.fetch(
            "select t.id from tasks t" + VISIBLE + " and t.document_id = $3"  # noqa: S608 - constants
            " and t.status = 'queued' and ($4::uuid[] is null or t.id = any($4)) order by t.id for update of t",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_id,
            task_ids,
        )
        for row in rows:
            await self.cancel(row["id"])

    async def redrive(self, task_id: UUID) -> Task:
        """Queues a dead letter again. Raises TASK_NOT_FOUND when it isn't one that the context's user may see."""
        await self.dead_letter(task_id)
        return await self.retry(task_id)

    async def dead_letter(self, task_id: UUID) -> Task:
        """Raises TASK_NOT_FOUND for a task that isn't one, too."""
        task = await self.get(task_id)
        if task.status is not TaskStatus.DEAD:
            raise _missing()
        return task

    async def matter(self, task: Task) -> Matter:
        """What the task works on, as far as the context's user may see it."""
        row = await self._conn.fetchrow(
            "select d.filename, c.media_type, c.size from documents d"
            " join contents c on c.tenant_id = d.tenant_id and c.id = d.content_id"
            " where d.tenant_id = $1 and d.id = $3 and (d.visibility = 'tenant' or d.owner_id = $2)",
            self._ctx.tenant_id,
            self._ctx.user_id,
            task.document_id,
        )
        return Matter() if row is None else Matter(**row)

    async def fence(self, lease: Lease) -> None:
        """Keeps the lease until this transaction ends; a worker's first statement. Raises TASK_FENCED.

        A lease whose time is over but that nobody has taken away is still good: as long as this lock is held, the
        sweeper passes over the task.
        """
        held = await self._conn.fetchval(
            "select true from tasks where tenant_id = $1 and id = $2 and fence = $3 and status = 'running' for share",
            self._ctx.tenant_id,
            lease.task.id,
            lease.fence,
        )
        if not held:
            raise _fenced()

    async def heartbeat(self, lease: Lease, lease_seconds: float) -> bool:
        """Renews the lease; True when somebody asked to cancel the task. Raises TASK_FENCED."""
        cancelled = await self._conn.fetchval(
            "update tasks set lease_until = clock_timestamp() + make_interval(secs => $4)"
            " where tenant_id = $1 and id = $2 and fence = $3 and status = 'running'"
            " returning cancel_requested_at is not null",
            self._ctx.tenant_id,
            lease.task.id,
            lease.fence,
            lease_seconds,
        )
        if cancelled is None:
            raise _fenced()
        return cancelled

    async def progress(self, lease: Lease, stage: str, progress: float) -> None:
        """Tells readers how far the task is, 0 to 1. Raises TASK_FENCED."""
        done = await self._conn.fetchval(
            "update tasks set stage = $4, progress = $5"
            " where tenant_id = $1 and id = $2 and fence = $3 and status = 'running' returning true",
            self._ctx.tenant_id,
            lease.task.id,
            lease.fence,
            stage,
            progress,
        )
        if not done:
            raise _fenced()

    async def payload(self, task_id: UUID) -> dict[str, Any]:
        """What the task was given; a worker's read. Raises TASK_NOT_FOUND."""
        found = await self._conn.fetchval(
            "select payload from tasks where tenant_id = $1 and id = $2", self._ctx.tenant_id, task_id
        )
        if found is None:
            raise _missing()
        return msgspec.json.decode(found)

    async def _requeue(self, task_id: UUID) -> None:
        await self._conn.execute(
            "with again as (update tasks t" + ANEW + " where t.tenant_id = $1 and t.id = $2)"
            " select pg_notify('dreamhub_tasks', '')",
            self._ctx.tenant_id,
            task_id,
        )

    async def _lock(self, task_id: UUID) -> tuple[TaskStatus, str]:
        row = await self._conn.fetchrow(
            "select t.status, t.kind from tasks t" + VISIBLE + " and t.id = $3 for update of t",  # noqa: S608 - constants
            self._ctx.tenant_id,
            self._ctx.user_id,
            task_id,
        )
        if row is None:
            raise _missing()
        return TaskStatus(row["status"]), row["kind"]

    async def list(self, narrow: TaskFilter, *, limit: int, cursor: str | None = None) -> tuple[list[Task], str | None]:
        """Up to `limit` tasks, the newest first, and the cursor of the next page. Raises REQUEST_INVALID."""
        rows = await self._conn.fetch(
            TASK + VISIBLE + NARROWED + " and ($11::uuid is null or t.id < $11) order by t.id desc limit $12",
            self._ctx.tenant_id,
            self._ctx.user_id,
            *conditions(narrow),
            _position(cursor),
            limit + 1,
        )
        # Ids are UUIDv7, so their order is the order of creation.
        items = [task_of(row) for row in rows[:limit]]
        return items, (str(items[-1].id) if len(rows) > limit else None)


def _finished(task: Task, status: TaskStatus, error_code: str | None) -> TaskFinished:
    return TaskFinished(
        task_id=task.id,
        task_kind=task.kind,
        status=status.value,
        document_id=task.document_id,
        content_id=task.content_id,
        error_code=error_code,
    )


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def _position(cursor: str | None) -> UUID | None:
    if cursor is None:
        return None
    try:
        return UUID(cursor)
    except ValueError:
        raise AppError(Code.REQUEST_INVALID, "cursor: want the next_cursor of an earlier answer.") from None


def _missing() -> AppError:
    return AppError(Code.TASK_NOT_FOUND, "There is no such task.")


def _fenced() -> AppError:
    return AppError(Code.TASK_FENCED, "This worker no longer holds the task; another one may be at it.")
