"""Removing what nobody needs any more: contents without a document, generations that were replaced, uploads that
nobody went on with, and batches that ended long ago."""

from typing import Any
from uuid import UUID

from internal.entities.batches import ARCHIVES_KEPT, BATCHES_KEPT
from internal.entities.tasks import PURGE_VERSION, Lease, NewTask, Queue, TaskKind
from internal.providers.blobs import BlobStore
from internal.repositories.store import Store, Tx
from pkg import failpoints, logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

BATCH = 500
"""Chunks a transaction, so that no long one holds up a vacuum."""

UPLOADS = 100
"""Uploads, archives or batches that are ended at a time."""


def purging(content_id: UUID, *, document_id: UUID | None = None, queue: Queue = Queue.DEFAULT) -> NewTask:
    """The task that removes of a content whatever nobody needs. With a document it ends like that one's others."""
    return NewTask(
        kind=TaskKind.PURGE_CONTENT,
        bounded=False,
        version=PURGE_VERSION,
        queue=queue,
        document_id=document_id,
        content_id=content_id,
    )


class PurgeService:
    """Removes contents that no document holds any more, and uploads whose time is over."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._log = logger.get("purge")

    async def purge_content(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `purge_content`: terms, vectors, chunks, object, then the row. A rerun goes on from anywhere.

        Of what only a document's history holds the object and the row stay.

        The result is empty whatever was found: that somebody else holds the same bytes is nobody's business.
        """
        if lease.task.content_id is None:
            raise AppError(Code.INTERNAL, "The task names no content.")
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await tx.lexicon.touch()  # before the content's row is locked, as a publication does it
            content = await tx.contents.condemn(lease.task.content_id)
            generations = await tx.generations.of_content(lease.task.content_id) if content else []
            if content is None and await tx.versions.is_overtaken(lease.task.content_id):
                await _retire(tx, lease.task.content_id)
        if content is None:
            await remove_retired(self._store, ctx, lease, lease.task.content_id)
            return {}
        removed = 0
        for generation in generations:
            removed += await _empty(self._store, ctx, lease, generation.id)
        await failpoints.hit("purge.after_rows")
        await self._blobs.remove(content.blob_key)
        await failpoints.hit("purge.after_blob")
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await tx.contents.remove(content.id)
        self._log.info("content purged", content=str(content.id), chunks=removed, bytes=content.size)
        return {}

    async def purge_uploads(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `purge_uploads`: removes every upload of the tenant whose time is over, its objects first."""
        count = 0
        while True:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                ended = {upload: await tx.uploads.objects(upload) for upload in await tx.uploads.end_expired(UPLOADS)}
            for upload, parts in ended.items():
                await self._blobs.remove_all([BlobStore.part_key(ctx.tenant_id, part) for part in parts])
                async with self._store.tenant(ctx) as tx:
                    await tx.tasks.fence(lease)
                    await tx.uploads.remove(upload)
            count += len(ended)
            if not ended:
                return {"uploads": count}

    async def purge_batches(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `purge_batches`: archives that nobody will expand any more, then the tenant's old batches."""
        archives = batches = 0
        while True:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                found = await tx.batch_work.archives(ARCHIVES_KEPT, UPLOADS)
            await self._blobs.remove_all([BlobStore.archive_key(ctx.tenant_id, batch) for batch in found])
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                for batch in found:
                    await tx.batch_work.forget_archive(batch)
            archives += len(found)
            if not found:
                break
        while True:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                count = await tx.batch_work.remove_ended(BATCHES_KEPT, UPLOADS)
            batches += count
            if count == 0:
                return {"archives": archives, "batches": batches}


async def _retire(tx: Tx, content_id: UUID) -> None:
    """Takes all that was read from a content out of searches, for `remove_retired`.

    Also what is still being built: whoever reads for it finds it retired, and stops.
    """
    await tx.contents.unpublish(content_id)
    for generation in await tx.generations.of_content(content_id):
        await tx.lexicon.retire(generation.id)
        await tx.generations.retire(generation.id)


async def remove_retired(store: Store, ctx: Context, lease: Lease, content_id: UUID) -> None:
    """Removes the generations of a content that another one has replaced."""
    async with store.tenant(ctx) as tx:
        await tx.tasks.fence(lease)
        found = await tx.generations.of_content(content_id)
    for generation in found:
        if generation.status == "retired":
            await remove_generation(store, ctx, lease, generation.id)


async def remove_generation(store: Store, ctx: Context, lease: Lease, generation_id: UUID) -> None:
    """Removes a retired generation with its passages."""
    await _empty(store, ctx, lease, generation_id)
    async with store.tenant(ctx) as tx:
        await tx.tasks.fence(lease)
        await tx.generations.remove(generation_id)


async def _empty(store: Store, ctx: Context, lease: Lease, generation_id: UUID) -> int:
    """Takes a generation out of the counts and removes its chunks in batches; answers how many."""
    async with store.tenant(ctx) as tx:
        await tx.tasks.fence(lease)
        await tx.lexicon.retire(generation_id)
    total = 0
    while True:
        async with store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            count = await tx.chunks.remove(generation_id, limit=BATCH)
        total += count
        if count == 0:
            return total
