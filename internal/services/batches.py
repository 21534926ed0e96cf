"""Batches: many files in one request, an archive, or one order for many tasks or documents."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from internal.entities.batches import Batch, BatchItem, BatchKind, ItemState, NewBatch
from internal.entities.documents import DocumentFilter
from internal.entities.ids import new_id
from internal.entities.tasks import NewTask, Queue, TaskFilter, TaskKind
from internal.parsers.entries import archive_type
from internal.providers.blobs import BlobStore
from internal.repositories.store import Store, Tx
from internal.services.documents import MEGABYTE, DocumentService, UploadRequest, UploadResult, checked
from internal.services.names import printable
from internal.services.spool import Spooled, room_left, spooled
from internal.services.tasks import CHUNK, FAILED
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role
from pkg.sections import Limits

FULL_SECONDS = 60.0
WORK: dict[BatchKind, TaskKind] = {
    BatchKind.ARCHIVE: TaskKind.EXPAND_ARCHIVE,
    BatchKind.RETRY: TaskKind.RETRY_TASKS,
    BatchKind.DELETE: TaskKind.DELETE_DOCUMENTS,
}
"""The task that does a batch's own work."""

Describe = Callable[[bytes], Awaitable[UploadRequest]]
"""What comes with each file, asked with a digest of all of them once they are in."""


class Incoming(msgspec.Struct, frozen=True):
    """A file of a form while it comes in."""

    filename: str
    chunks: AsyncIterator[bytes]
    is_archive: bool


class Received(msgspec.Struct, frozen=True):
    """A file that came in, or why it is refused."""

    filename: str
    is_archive: bool
    file: Spooled | None = None
    error: AppError | None = None


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """Which documents are meant: these, or all that fit and that the context's user may delete."""

    document_ids: list[UUID] | None = None
    narrow: DocumentFilter = DocumentFilter()


class BatchService:
    """Batches of the context's user. Raises BATCH_NOT_FOUND for all others."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        documents: DocumentService,
        *,
        spool: Path,
        limits: Limits,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._documents = documents
        self._spool = spool
        self._limits = limits

    @property
    def max_files(self) -> int:
        """How many files a request may have."""
        return self._limits.batch_files

    @property
    def max_bytes(self) -> int:
        """What they may have together."""
        return self._limits.batch_mb * MEGABYTE

    async def upload(self, ctx: Context, files: AsyncIterator[Incoming], describe: Describe) -> Batch:
        """Takes many files in, each as `DocumentService.upload` does; one that is refused refuses no other.

        An archive, which comes alone, is expanded by a worker. Raises REQUEST_INVALID, BATCH_TOO_MANY, QUEUE_FULL, and
        of an archive FILE_*.
        """
        async with room_left(), AsyncExitStack() as stack:
            received = [await self._receive(stack, incoming) async for incoming in files]
            request = await describe(_digest(received))
            request = msgspec.structs.replace(request, priority=request.priority or "batch")
            if any(item.is_archive for item in received):
                if len(received) > 1:
                    raise AppError(Code.REQUEST_INVALID, "An archive comes alone: send it without other files.")
                return await self._add_archive(ctx, received[0], request)
            return await self._take_all(ctx, received, request)

    async def retry(self, ctx: Context, narrow: TaskFilter) -> Batch:
        """Queues again, in the background, the failed and dead tasks that fit. Raises BATCH_TOO_MANY, QUEUE_FULL."""
        return await self._begin(ctx, new_id(), BatchKind.RETRY, msgspec.to_builtins(narrow))

    async def delete(self, ctx: Context, deletion: Deletion) -> Batch:
        """Deletes documents in the background, each as `DELETE` of it would. Raises BATCH_TOO_MANY, QUEUE_FULL."""
        return await self._begin(ctx, new_id(), BatchKind.DELETE, msgspec.to_builtins(deletion))

    async def get(self, ctx: Context, batch_id: UUID) -> Batch:
        """One batch, as it is now."""
        async with self._store.tenant(ctx) as tx:
            return await tx.batches.get(batch_id)

    async def items(
        self, ctx: Context, batch_id: UUID, *, state: ItemState | None, after: int, limit: int
    ) -> list[BatchItem]:
        """Up to `limit` items behind the ordinal `after`, in order."""
        async with self._store.tenant(ctx) as tx:
            await tx.batches.get(batch_id)
            return await tx.batches.items(batch_id, state=state, after=after, limit=limit)

    async def cancel(self, ctx: Context, batch_id: UUID) -> Batch:
        """Begins nothing more, and cancels what isn't done. What was there before the batch goes on, as do removals."""
        async with self._store.tenant(ctx) as tx:
            batch = await tx.batches.get(batch_id)
            if batch.finished_at is not None:
                return batch
            await tx.batches.cancel(batch_id)
            if batch.task_id is not None:
                await tx.task_batches.cancel(TaskFilter(ids=[batch.task_id]), 1, of_others=False)

        async def act(tx: Tx, found: list[tuple[UUID, bool]]) -> None:
            fresh = [task for task, duplicate in found if not duplicate]
            await tx.task_batches.cancel(TaskFilter(ids=fresh), CHUNK, of_others=ctx.role.at_least(Role.ADMIN))

        await self._with_tasks(ctx, batch_id, act)
        return await self.get(ctx, batch_id)

    async def retry_failed(self, ctx: Context, batch_id: UUID) -> Batch:
        """Queues its failed and dead tasks again, with all their tries, as far as there is room.

        Raises QUEUE_FULL when there is none to begin with.
        """
        count = 0

        async def act(tx: Tx, found: list[tuple[UUID, bool]]) -> None:
            nonlocal count
            limit = min(CHUNK, await tx.room.left())
            if not limit and not count:
                await tx.room.require()
            done = await tx.task_batches.retry(TaskFilter(statuses=FAILED, ids=[task for task, _ in found]), limit)
            if done:
                await tx.batches.reopen(batch_id)
            count += done

        async with self._store.tenant(ctx) as tx:
            batch = await tx.batches.get(batch_id)
            if batch.task_id is not None:
                await act(tx, [(batch.task_id, False)])
        await self._with_tasks(ctx, batch_id, act)
        return await self.get(ctx, batch_id)

    async def _with_tasks(
        self, ctx: Context, batch_id: UUID, act: Callable[[Tx, list[tuple[UUID, bool]]], Awaitable[None]]
    ) -> None:
        """Gives the tasks of its items to `act`, a transaction's worth at a time, each with whether it was there before
        the batch."""
        after = -1
        while True:
            async with self._store.tenant(ctx) as tx:
                found = await tx.batches.tasks(batch_id, after=after, limit=CHUNK)
                await act(tx, [(task, duplicate) for _ordinal, task, duplicate in found])
            if len(found) < CHUNK:
                return
            after = found[-1][0]

    async def _receive(self, stack: AsyncExitStack, incoming: Incoming) -> Received:
        """Spools a file until the request has been answered. Of one that is refused the rest is read and dropped."""
        limit = self.max_bytes if incoming.is_archive else self._limits.max_file_mb * MEGABYTE
        received = Received(incoming.filename, incoming.is_archive)
        try:
            file = await stack.enter_async_context(spooled(incoming.chunks, folder=self._spool, limit=limit))
        except AppError as error:
            if error.code not in (Code.FILE_EMPTY, Code.FILE_TOO_LARGE) or incoming.is_archive:
                raise
            return msgspec.structs.replace(received, error=error)
        return msgspec.structs.replace(received, file=file)

    async def _take_all(self, ctx: Context, received: list[Received], request: UploadRequest) -> Batch:
        batch_id = new_id()
        async with self._store.tenant(ctx) as tx:
            await self._require_room(tx)
            await tx.room.require()
            await tx.batches.add(NewBatch(id=batch_id, kind=BatchKind.UPLOAD, request={}))
        for ordinal, item in enumerate(received):
            await self._take(ctx, batch_id, ordinal, item, request)
        async with self._store.tenant(ctx) as tx:
            await tx.batches.complete(batch_id)
            return await tx.batches.get(batch_id)

    async def _take(self, ctx: Context, batch_id: UUID, ordinal: int, item: Received, request: UploadRequest) -> None:
        async def note(tx: Tx, result: UploadResult) -> None:
            await tx.batches.take(
                batch_id,
                ordinal,
                document_id=result.document.id,
                task_id=result.task.id,
                duplicate=result.duplicate,
            )

        error = item.error
        if item.file is not None:
            named = msgspec.structs.replace(request, filename=item.filename)
            try:
                await self._documents.take(ctx, item.file, named, note)
            except AppError as refusal:
                if refusal.code is Code.INTERNAL:
                    raise
                error = refusal
        if error is None:
            return
        async with self._store.tenant(ctx) as tx:
            await tx.batches.refuse(
                batch_id, ordinal, filename=printable(item.filename), code=error.code, message=error.detail
            )

    async def _add_archive(self, ctx: Context, received: Received, request: UploadRequest) -> Batch:
        """Stores the archive and queues its expansion. A crash in between leaves an object without a row."""
        file = received.file
        if file is None:
            raise AppError(Code.FILE_EMPTY, "The archive is empty.")
        archive_type(file.head)
        asked = msgspec.to_builtins(checked(msgspec.structs.replace(request, filename=received.filename)))
        batch_id = new_id()
        key = BlobStore.archive_key(ctx.tenant_id, batch_id)
        await self._blobs.put_file(key, file.path)
        kept = False
        try:
            batch = await self._begin(ctx, batch_id, BatchKind.ARCHIVE, asked, size=file.size)
            kept = True
            return batch
        except AppError as error:
            kept = error.code is Code.DATABASE_UNAVAILABLE  # a lost answer doesn't tell whether it took effect
            raise
        finally:
            if not kept:
                await self._blobs.remove(key)

    async def _begin(
        self, ctx: Context, batch_id: UUID, kind: BatchKind, request: dict[str, Any], *, size: int = 0
    ) -> Batch:
        async with self._store.tenant(ctx) as tx:
            await self._require_room(tx)
            task = await tx.tasks.add(
                NewTask(kind=WORK[kind], version=1, queue=Queue.BATCH, payload={"batch_id": str(batch_id)}, size=size)
            )
            await tx.batches.add(
                NewBatch(id=batch_id, kind=kind, request=request, task_id=task.id, stored=kind is BatchKind.ARCHIVE)
            )
            return await tx.batches.get(batch_id)

    async def _require_room(self, tx: Tx) -> None:
        """Raises BATCH_TOO_MANY. Batches never take all of a tenant's tasks: some are left for items."""
        limit = min(self._limits.batches, max(1, self._limits.queue_depth // 2))
        if await tx.batches.open_ones() >= limit:
            raise AppError(
                Code.BATCH_TOO_MANY,
                f"{limit} batches of this tenant are under way already; try again when some are done.",
                retry_after=FULL_SECONDS,
            )

    async def list(self, ctx: Context, *, limit: int, before: UUID | None) -> list[Batch]:
        """Up to `limit` batches, the newest first, older than `before`."""
        async with self._store.tenant(ctx) as tx:
            return await tx.batches.list(limit=limit, before=before)


def _digest(received: list[Received]) -> bytes:
    """Stands for all files of a request, refused ones too."""
    told = [
        (item.filename, item.is_archive, item.file.sha256 if item.file else b"", str(item.error or ""))
        for item in received
    ]
    return sha256(msgspec.msgpack.encode(told)).digest()
