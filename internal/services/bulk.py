"""What one order does with many tasks or documents: written down first, then done item by item.

Every step commits under the task's fence together with the items that it settles, so a rerun goes on with what is left.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import msgspec

from internal.entities.batches import BatchWork, PlannedItem
from internal.entities.tasks import Lease, Queue, TaskFilter
from internal.repositories.store import Store, Tx
from internal.services.batches import Deletion
from internal.services.documents import remove_document
from internal.services.tasks import CHUNK, FAILED
from pkg import failpoints
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

MOST = 100_000
"""Items of a batch. Who has more asks once more."""
REFUSALS = frozenset({Code.DOCUMENT_NOT_FOUND, Code.AUTH_FORBIDDEN})


class BulkService:
    """Retries and deletions, with the rights of whoever began the batch."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def retry_tasks(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `retry_tasks`: queues failed and dead tasks again, each once, however soon it fails again.

        A tenant without room for them holds it (QUEUE_FULL).
        """
        work = await self._begin(ctx, lease)
        if work is None:
            return {}
        narrow = msgspec.convert(work.request, TaskFilter)
        meant = msgspec.structs.replace(
            narrow, statuses=FAILED if narrow.statuses is None else narrow.statuses & FAILED
        )
        await self._plan(ctx, lease, work, lambda tx: tx.batch_work.plan_tasks(work.id, meant, MOST))
        while True:
            async with self._store.tenant(ctx) as tx:
                left = await self._left(tx, lease, work)
                room = await tx.room.left()
                if left and not room:
                    await tx.room.require()
                chosen = left[:room]
                tasks = [item.task_id for item in chosen if item.task_id is not None]
                await tx.task_batches.retry(TaskFilter(statuses=FAILED, ids=tasks), CHUNK)
                await tx.batch_work.settle(work.id, [item.ordinal for item in chosen])
            await failpoints.hit("bulk.after_slice")
            if not left:
                return {}

    async def delete_documents(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `delete_documents`: each as `DocumentService.delete` does it, its tasks in the batch queue."""
        work = await self._begin(ctx, lease)
        if work is None:
            return {}
        deletion = msgspec.convert(work.request, Deletion)
        await self._plan(ctx, lease, work, lambda tx: _plan_deletion(tx, ctx, work.id, deletion))
        while True:
            async with self._store.tenant(ctx) as tx:
                left = await self._left(tx, lease, work)
            for item in left:
                await self._delete(ctx, lease, work, item)
                await failpoints.hit("bulk.after_item")
            if not left:
                return {}

    async def _begin(self, ctx: Context, lease: Lease) -> BatchWork | None:
        """What is to be done; None when the batch was cancelled, or is gone."""
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            work = await tx.batch_work.find(UUID(lease.task.payload["batch_id"]))
        return None if work is None or work.cancelled else work

    async def _plan(self, ctx: Context, lease: Lease, work: BatchWork, write: Callable[[Tx], Awaitable[None]]) -> None:
        """Writes the items down, once: what comes to fit later isn't meant."""
        if work.planned:
            return
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await write(tx)
            await tx.batches.complete(work.id)

    async def _left(self, tx: Tx, lease: Lease, work: BatchWork) -> list[PlannedItem]:
        """The next items; none of a batch that was cancelled."""
        await tx.tasks.fence(lease)
        return await tx.batch_work.left(work.id, CHUNK) if await tx.batch_work.hold(work.id) else []

    async def _delete(self, ctx: Context, lease: Lease, work: BatchWork, item: PlannedItem) -> None:
        if item.document_id is None:
            raise AppError(Code.INTERNAL, "The item names no document.")
        try:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                if not await tx.batch_work.hold(work.id):
                    return
                task = await remove_document(tx, ctx, item.document_id, Queue.BATCH)
                await tx.batches.take(work.id, item.ordinal, document_id=item.document_id, task_id=task.id)
        except AppError as error:
            if error.code not in REFUSALS:
                raise
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                await tx.batches.refuse(work.id, item.ordinal, filename=None, code=error.code, message=error.detail)


async def _plan_deletion(tx: Tx, ctx: Context, batch_id: UUID, deletion: Deletion) -> None:
    if deletion.document_ids is None:
        others = ctx.role.at_least(Role.ADMIN)
        await tx.batch_work.plan_documents(batch_id, deletion.narrow, MOST, others=others)
        return
    named = dict.fromkeys(deletion.document_ids)
    await tx.batch_work.plan(
        batch_id, [PlannedItem(ordinal=ordinal, document_id=found) for ordinal, found in enumerate(named)]
    )
