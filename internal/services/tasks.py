"""What users see of tasks, and what they may ask for."""

from uuid import UUID

from internal.entities.tasks import Attempt, Queue, Task, TaskStatus
from internal.repositories.store import Store
from pkg.ctxutil import Context

REDRIVE_BATCH = 500


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
        """Queues a failed, dead or cancelled task again with all its tries. Raises TASK_NOT_RETRYABLE."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.retry(task_id)

    async def cancel(self, ctx: Context, task_id: UUID) -> Task:
        """Cancels a queued task at once, a running one within 2 s. Raises TASK_NOT_CANCELLABLE."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.cancel(task_id)

    async def dead_letters(
        self, ctx: Context, *, limit: int, cursor: str | None = None
    ) -> tuple[list[Task], str | None]:
        """A page of tasks that have used up their tries, the newest first."""
        return await self.list(ctx, status=TaskStatus.DEAD, limit=limit, cursor=cursor)

    async def redrive(self, ctx: Context, task_id: UUID) -> Task:
        """Queues one dead letter again. Raises TASK_NOT_FOUND when it isn't one."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.redrive(task_id)

    async def redrive_all(self, ctx: Context) -> int:
        """Queues every dead letter again, in transactions of a bounded size; answers how many."""
        count = 0
        while True:
            async with self._store.tenant(ctx) as tx:
                batch = await tx.tasks.redrive_batch(REDRIVE_BATCH)
            count += len(batch)
            if len(batch) < REDRIVE_BATCH:
                return count

    async def list(
        self,
        ctx: Context,
        *,
        status: TaskStatus | None = None,
        queue: Queue | None = None,
        document_id: UUID | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> tuple[list[Task], str | None]:
        """A page of tasks, the newest first, and the next page's cursor. Raises REQUEST_INVALID."""
        async with self._store.tenant(ctx) as tx:
            return await tx.tasks.list(status=status, queue=queue, document_id=document_id, limit=limit, cursor=cursor)
