"""What users see of tasks, and what they may ask for."""

from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import msgspec

from internal.entities.tasks import Acted, Attempt, Matter, Task, TaskFilter, TaskStatus
from internal.repositories.store import Store, Tx
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

CHUNK = 500
"""Tasks a transaction: short enough that no worker waits long for a row."""

MOST = 10_000
"""Tasks a request: it ends within seconds, and says whether more are left."""

FAILED = frozenset({TaskStatus.FAILED, TaskStatus.DEAD})
DEAD = frozenset({TaskStatus.DEAD})


class TaskService:
    """Tasks as far as the context's user may see them. Raises TASK_NOT_FOUND for all others."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, ctx: Context, task_id: UUID) -> Task:
        """One task."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.get(task_id)

    async def attempts(self, ctx: Context, task_id: UUID) -> list[Attempt]:
        """Every try at the task, the first one first."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.attempts(task_id)

    async def retry(self, ctx: Context, task_id: UUID) -> Task:
        """Queues a failed, dead or cancelled task again with all its tries. Raises TASK_NOT_RETRYABLE, QUEUE_FULL."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.retry(task_id)

    async def cancel(self, ctx: Context, task_id: UUID) -> Task:
        """Cancels a queued task at once, a running one within 2 s. Raises AUTH_FORBIDDEN, TASK_NOT_CANCELLABLE."""
        async with self._store.tenant(ctx) as tx:
            task = await tx.tasks.get(task_id)
            if task.user_id != ctx.user_id and not _may_cancel_all(ctx):
                raise AppError(Code.AUTH_FORBIDDEN, "A task is cancelled by who began it, or by an admin.")
            return await tx.tasks.cancel(task_id)

    async def retry_all(self, ctx: Context, narrow: TaskFilter) -> Acted:
        """Queues again what fits and can be: failed and dead ones, where no status is named. Raises QUEUE_FULL."""
        return await self._again(ctx, narrow if narrow.statuses is not None else _of(narrow, FAILED))

    async def cancel_all(self, ctx: Context, narrow: TaskFilter) -> Acted:
        """Cancels what fits and can be, queued tasks at once, running ones within 2 s; a member's own only."""
        of_others = _may_cancel_all(ctx)
        return await self._in_chunks(ctx, lambda tx, limit: tx.task_batches.cancel(narrow, limit, of_others=of_others))

    async def dead_letter(self, ctx: Context, task_id: UUID) -> tuple[Task, list[Attempt], Matter]:
        """A dead letter with its whole history and what it is about. Raises TASK_NOT_FOUND when it isn't one."""
        async with self._store.tenant(ctx) as tx:
            task = await tx.tasks.dead_letter(task_id)
            return task, await tx.tasks.attempts(task_id), await tx.tasks.matter(task)

    async def redrive(self, ctx: Context, task_id: UUID) -> Task:
        """Queues one dead letter again. Raises TASK_NOT_FOUND when it isn't one, QUEUE_FULL."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.redrive(task_id)

    async def redrive_all(self, ctx: Context, narrow: TaskFilter) -> Acted:
        """Queues the dead letters that fit again. Raises QUEUE_FULL."""
        return await self._again(ctx, _of(narrow, DEAD))

    async def discard(self, ctx: Context, task_id: UUID) -> None:
        """Gives one dead letter up: its task has failed. Raises TASK_NOT_FOUND when it isn't one."""
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.dead_letter(task_id)
            await tx.task_batches.discard(TaskFilter(ids=[task_id]), 1)

    async def discard_all(self, ctx: Context, narrow: TaskFilter) -> Acted:
        """Gives the dead letters that fit up."""
        return await self._in_chunks(ctx, lambda tx, limit: tx.task_batches.discard(narrow, limit))

    async def _again(self, ctx: Context, narrow: TaskFilter) -> Acted:
        """`_in_chunks`, as far as the tenant's queues have room. Raises QUEUE_FULL when there is none to begin with."""
        count = 0
        while count < MOST:
            async with self._store.tenant(ctx) as tx:
                limit = min(CHUNK, await tx.room.left())
                if not limit and not count:
                    await tx.room.require()
                done = await tx.task_batches.retry(narrow, limit)
            count += done
            if done < limit or not limit:
                return Acted(count, more=not limit)
        return Acted(count, more=True)

    async def _in_chunks(self, ctx: Context, act: Callable[[Tx, int], Coroutine[Any, Any, int]]) -> Acted:
        """Acts until nothing is left that fits, in transactions of a bounded size, on at most `MOST` tasks."""
        count = 0
        while count < MOST:
            async with self._store.tenant(ctx) as tx:
                done = await act(tx, CHUNK)
            count += done
            if done < CHUNK:
                return Acted(count, more=False)
        return Acted(count, more=True)

    async def list(
        self, ctx: Context, narrow: TaskFilter, *, limit: int, cursor: str | None = None
    ) -> tuple[list[Task], str | None]:
        """A page of tasks, the newest first, and the next page's cursor. Raises REQUEST_INVALID."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.list(narrow, limit=limit, cursor=cursor)


def _may_cancel_all(ctx: Context) -> bool:
    return ctx.role.at_least(Role.ADMIN)


def _of(narrow: TaskFilter, statuses: frozenset[TaskStatus]) -> TaskFilter:
    return msgspec.structs.replace(narrow, statuses=statuses)
