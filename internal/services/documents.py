"""Documents: receiving, listing, changing and deleting them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

import msgspec

from internal.entities.documents import (
    Chunk,
    Content,
    Document,
    DocumentChanges,
    DocumentFilter,
    NewContent,
    NewDocument,
    Visibility,
)
from internal.entities.events import DocumentDeleted, FileUploaded
from internal.entities.ids import new_id
from internal.entities.tasks import INGEST_VERSION, NewTask, Queue, Task, TaskKind, TaskStatus
from internal.parsers.detect import detect
from internal.providers.antivirus import Antivirus
from internal.providers.blobs import BlobStore
from internal.repositories.store import Store, Tx
from internal.services.caching import CacheKind, TwoLevelCache
from internal.services.names import check_filename, check_name, check_tags
from internal.services.purge import purging
from internal.services.spool import Spooled, room_left, spooled
from internal.services.sweep import file_missing
from pkg import failpoints, logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

MEGABYTE = 1024 * 1024
QUEUES = {"high": Queue.HIGH_PRIORITY, "normal": Queue.DEFAULT, "batch": Queue.BATCH}
BULK_FILES = 100
"""Who has so many unfinished files in the default queue imports in bulk: what they upload meanwhile, without a priority
of its own, goes to the batch queue."""


class UploadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What came with a file. `priority` is high, normal or batch; None: normal, or batch in a bulk import."""

    filename: str
    priority: str | None = None
    tags: list[str] = []
    collection: str | None = None
    visibility: Visibility = Visibility.TENANT
    document_id: UUID | None = None
    """Of the document that the file replaces; then only name and priority count."""
    folder: str | None = None
    """Where in its archive the file lay."""


class UploadResult(msgspec.Struct, frozen=True):
    """The document and the task that reads it; `duplicate` when this user had uploaded the same bytes before."""

    document: Document
    task: Task
    duplicate: bool


Describe = Callable[[bytes], Awaitable[UploadRequest]]
"""What came with a file, asked with the SHA-256 of its bytes once they are in."""
Known = Callable[[Context, bytes], Awaitable[UploadResult | None]]
"""The answer for bytes with this SHA-256 where there is nothing to be done, else None."""
Write = Callable[[Tx, Content, UploadRequest], Awaitable[UploadResult]]
"""Writes a stored content's document and task."""
Along = Callable[[Tx, UploadResult], Awaitable[None]]
"""Writes what belongs to a document's transaction besides."""


class DocumentService:
    """The rules of documents. Everyone sees the tenant's and their own private ones."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        antivirus: Antivirus,
        *,
        spool: Path,
        max_file_mb: int,
        cache: TwoLevelCache | None = None,
    ) -> None:
        self._store = store
        self._cache = cache or TwoLevelCache(None)
        self._blobs = blobs
        self._antivirus = antivirus
        self._spool = spool
        self._limit = max_file_mb * MEGABYTE
        self._log = logger.get("documents")

    async def upload(self, ctx: Context, chunks: AsyncIterator[bytes], describe: Describe) -> UploadResult:
        """Receives a file as a new document, and queues its reading; see `take_in`.

        The same bytes again by the same user answer with the document and task that are there.
        """
        return await self.take_in(ctx, chunks, describe, known=self._find_duplicate, write=self._add)

    async def take_in(
        self,
        ctx: Context,
        chunks: AsyncIterator[bytes],
        describe: Describe,
        *,
        known: Known,
        write: Write,
    ) -> UploadResult:
        """Receives, checks, scans and stores a file; nothing of a refused file stays.

        `describe` is asked after the bytes, because a form's fields may follow its file; `known` may answer before
        they are scanned; `write` adds the rows to the content's own transaction. Raises FILE_* for the file
        itself, SCAN_UNAVAILABLE, QUEUE_FULL, BLOB_UNAVAILABLE.
        """
        async with room_left(), spooled(chunks, folder=self._spool, limit=self._limit) as file:
            return await self._take(ctx, file, checked(await describe(file.sha256)), known, write)

    async def take(self, ctx: Context, file: Spooled, request: UploadRequest, along: Along) -> UploadResult:
        """As `upload`, for a file that lies on the disk; `along` is done in the transaction that has the document."""

        async def known(ctx: Context, sha256: bytes) -> UploadResult | None:
            async with self._store.tenant(ctx) as tx:
                found = await self._duplicate(tx, sha256)
                if found is not None:
                    await along(tx, found)
                return found

        async def write(tx: Tx, stored: Content, request: UploadRequest) -> UploadResult:
            result = await self._add(tx, stored, request)
            await along(tx, result)
            return result

        return await self._take(ctx, file, checked(request), known, write)

    async def _take(
        self, ctx: Context, file: Spooled, request: UploadRequest, known: Known, write: Write
    ) -> UploadResult:
        found = await asyncio.to_thread(detect, file.head, file.path, request.filename)
        await failpoints.hit("upload.after_spool")
        duplicate = await known(ctx, file.sha256)
        lost = await self._lost(ctx, file) if duplicate is not None else None
        if duplicate is not None and lost is None:
            return duplicate
        await self._antivirus.scan(file.path)
        await failpoints.hit("upload.after_scan")
        if duplicate is not None and lost is not None:
            return await self._bring_back(ctx, file, lost, duplicate)
        content = NewContent(
            id=new_id(),
            sha256=file.sha256,
            size=file.size,
            media_type=found.media_type,
            source_type=found.source_type,
            blob_key="",
        )
        result = await self._admit(ctx, file, content, request, write)
        await failpoints.hit("upload.after_commit")
        return result

    async def _admit(
        self, ctx: Context, file: Spooled, content: NewContent, request: UploadRequest, write: Write
    ) -> UploadResult:
        """Stores the object, then writes content, document, task and event in one transaction.

        A crash in between leaves an object without a row, never a row without its object.
        """
        content = msgspec.structs.replace(content, blob_key=self._blobs.key(ctx.tenant_id, content.id))
        await self._blobs.put_file(content.blob_key, file.path)
        await failpoints.hit("upload.after_blob")
        kept = False
        try:
            async with self._store.tenant(ctx) as tx:
                stored = await tx.contents.ensure(content)
                result = await write(tx, stored, request)
                # From here on only the commit can fail, and a lost answer doesn't tell whether it took effect.
                kept = stored.id == content.id
            if not kept and not await self._blobs.exists(stored.blob_key):
                await self._blobs.put_file(stored.blob_key, file.path)
                self._log.warning("an object was gone and is stored again", content=str(stored.id))
            return result
        finally:
            if not kept:
                await self._blobs.remove(content.blob_key)

    async def _lost(self, ctx: Context, file: Spooled) -> Content | None:
        """The content of these bytes whose object is gone; None where all is well."""
        async with self._store.tenant(ctx) as tx:
            content = await tx.contents.find_by_digest(file.sha256)
        return None if content is None or await self._blobs.exists(content.blob_key) else content

    async def _bring_back(self, ctx: Context, file: Spooled, lost: Content, known: UploadResult) -> UploadResult:
        """Stores the object of known bytes again, and has them read where that has failed for want of it.

        The next sweep of objects finds the row mended and begins whatever else has failed anew. A purge in between
        leaves an object without a row to it.
        """
        await self._blobs.put_file(lost.blob_key, file.path)
        self._log.warning("an object was gone and is stored again", content=str(lost.id))
        if known.task.error_code != Code.FILE_MISSING or known.task.status is not TaskStatus.FAILED:
            return known
        async with self._store.tenant(ctx) as tx:
            return msgspec.structs.replace(known, task=await tx.tasks.retry(known.task.id))

    async def _add(self, tx: Tx, stored: Content, request: UploadRequest) -> UploadResult:
        collection_id = None
        if request.collection:
            collection_id = await tx.collections.ensure(
                request.collection, announced=request.visibility is Visibility.TENANT
            )
        document_id = await tx.documents.add(
            NewDocument(
                content_id=stored.id,
                filename=request.filename,
                source_type=stored.source_type,
                visibility=request.visibility,
                collection_id=collection_id,
                tags=request.tags,
                metadata={"folder": request.folder} if request.folder else {},
            )
        )
        return await self._queue_reading(tx, stored, document_id, request)

    async def _queue_reading(
        self, tx: Tx, content: Content, document_id: UUID | None, request: UploadRequest
    ) -> UploadResult:
        if document_id is None:
            # The same user sent the same bytes at the same moment, and the other request came first.
            return await self._existing(tx, content.id)
        task = await tx.tasks.add(await reading(tx, document_id, content.id, request.priority, size=content.size))
        await tx.outbox.add(FileUploaded(document_id=document_id, content_id=content.id, task_id=task.id))
        return UploadResult(await tx.documents.get(document_id), task, duplicate=False)

    async def _find_duplicate(self, ctx: Context, sha256: bytes) -> UploadResult | None:
        async with self._store.tenant(ctx) as tx:
            return await self._duplicate(tx, sha256)

    async def _duplicate(self, tx: Tx, sha256: bytes) -> UploadResult | None:
        """This user's document on the same bytes; another's tells nothing."""
        content = await tx.contents.find_by_digest(sha256)
        if content is None or await tx.documents.find_own(content.id) is None:
            return None
        return await self._existing(tx, content.id)

    async def _existing(self, tx: Tx, content_id: UUID) -> UploadResult:
        document = await tx.documents.find_own(content_id)
        if document is None:
            raise AppError(Code.REQUEST_CONFLICT, "The document was deleted while it was uploaded; upload it again.")
        task = (await tx.tasks.latest_for_documents([document.id]))[document.id]
        return UploadResult(document, task, duplicate=True)

    async def get(self, ctx: Context, document_id: UUID) -> Document:
        """Raises DOCUMENT_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            return await tx.documents.get(document_id)

    async def chunks(self, ctx: Context, document_id: UUID, *, limit: int, after: int) -> list[Chunk]:
        """Up to `limit` passages in order, those whose ordinal is greater than `after` (from -1)."""
        async with self._store.tenant(ctx) as tx:
            generation = (await tx.documents.get(document_id)).generation_id
        if generation is None:
            return []

        async def compute() -> bytes:
            async with self._store.tenant(ctx) as tx:
                return msgspec.msgpack.encode(await tx.chunks.list(generation, limit=limit, after=after))

        # What was read once never changes: whether it may be seen was asked just now.
        named = (str(generation), str(limit), str(after))
        kept = await self._cache.through(ctx, CacheKind.CHUNKS, named, compute)
        return msgspec.msgpack.decode(kept.data, type=list[Chunk])

    async def content(self, ctx: Context, document_id: UUID) -> tuple[Document, str]:
        """The document and the key of its object, for `read`."""
        async with self._store.tenant(ctx) as tx:
            document = await tx.documents.get(document_id)
            content = await tx.contents.find(document.content_id)
        if content is None:
            raise AppError(Code.DOCUMENT_NOT_FOUND, "There is no such document.")
        return document, content.blob_key

    async def require(self, ctx: Context, key: str) -> None:
        """Raises FILE_MISSING when the object that `content` named is gone."""
        if not await self._blobs.exists(self._own(ctx, key)):
            raise file_missing()

    def read(self, ctx: Context, key: str, *, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` to before `end` of an object that `content` named. Raises for another tenant's key."""
        return self._blobs.read(self._own(ctx, key), start=start, end=end)

    @staticmethod
    def _own(ctx: Context, key: str) -> str:
        if not key.startswith(f"{ctx.tenant_id}/"):
            raise AppError(Code.INTERNAL, "An object of another tenant was asked for.")
        return key

    async def update(self, ctx: Context, document_id: UUID, changes: DocumentChanges) -> Document:
        """Applies a PATCH. Only a document's owner changes who may see it."""
        async with self._store.tenant(ctx) as tx:
            await tx.documents.get(document_id)
            await tx.lexicon.touch()  # before the document's row is locked, as a publication does it
            document = await tx.documents.lock(document_id)
            visibility = document.visibility if changes.visibility is msgspec.UNSET else changes.visibility
            if visibility != document.visibility and document.owner_id != ctx.user_id:
                raise AppError(Code.AUTH_FORBIDDEN, "Only the person who uploaded a document changes who may see it.")
            await tx.documents.update(
                document_id,
                filename=document.filename if changes.filename is msgspec.UNSET else check_filename(changes.filename),
                tags=document.tags if changes.tags is msgspec.UNSET else check_tags(changes.tags),
                collection_id=await _collection_of(tx, document, changes, visibility),
                visibility=visibility,
            )
            return await tx.documents.get(document_id)

    async def delete(self, ctx: Context, document_id: UUID) -> Task:
        """Removes the document at once; tasks remove text, vectors and objects of all its versions that nobody else
        holds. Answers the one for what it was last.

        A member deletes their own documents, an admin any of the tenant's.
        """
        async with self._store.tenant(ctx) as tx:
            return await remove_document(tx, ctx, document_id)

    async def list(
        self, ctx: Context, *, limit: int, before: tuple[datetime, UUID] | None, narrow: DocumentFilter
    ) -> list[Document]:
        """Up to `limit` documents, newest first, older than `before`."""
        async with self._store.tenant(ctx) as tx:
            return await tx.documents.list(limit=limit, before=before, narrow=narrow)


async def reading(tx: Tx, document_id: UUID, content_id: UUID, priority: str | None, *, size: int) -> NewTask:
    """The task that reads a document's content. Without a priority it is normal, and batch in a bulk import."""
    queue = QUEUES[priority or "normal"]
    if priority is None and await tx.room.unfinished_of_user(queue, BULK_FILES) >= BULK_FILES:
        queue = Queue.BATCH
    return NewTask(
        kind=TaskKind.INGEST_CONTENT,
        version=INGEST_VERSION,
        queue=queue,
        priority=1 if priority == "high" else 0,
        document_id=document_id,
        content_id=content_id,
        size=size,
    )


async def remove_document(tx: Tx, ctx: Context, document_id: UUID, queue: Queue = Queue.DEFAULT) -> Task:
    """What `DocumentService.delete` does, its tasks in this queue. Raises DOCUMENT_NOT_FOUND, AUTH_FORBIDDEN."""
    document = await tx.documents.get(document_id)
    if not may_change(ctx, document):
        raise AppError(Code.AUTH_FORBIDDEN, "Only its owner or an admin deletes a document.")
    # In the order in which a publication locks: its task, the statistics, the document.
    await tx.tasks.cancel_for_document(document_id)
    await tx.lexicon.touch()
    document = await tx.documents.lock(document_id)  # from here on no version is added
    await tx.tasks.cancel_queued(document_id)  # one that came meanwhile; if it runs, it will find nothing
    history = await tx.versions.contents(document_id)
    content_id = await tx.documents.remove(document_id)
    for earlier in history:
        if earlier != content_id:
            await tx.tasks.add(purging(earlier, queue=queue))
    task = await tx.tasks.add(purging(content_id, document_id=document_id, queue=queue))
    await tx.outbox.add(
        DocumentDeleted(document_id=document_id, content_id=content_id, task_id=task.id, visibility=document.visibility)
    )
    return task


def may_change(ctx: Context, document: Document) -> bool:
    """A member deletes and replaces their own documents, an admin any that they see."""
    return document.owner_id == ctx.user_id or ctx.role.at_least(Role.ADMIN)


def checked(request: UploadRequest) -> UploadRequest:
    """Names as they may stand in the database. Raises FILE_NAME_INVALID or REQUEST_INVALID."""
    return msgspec.structs.replace(
        request,
        filename=check_filename(request.filename),
        tags=check_tags(request.tags),
        collection=check_name(request.collection, "collection name") if request.collection else None,
    )


async def _collection_of(tx: Tx, document: Document, changes: DocumentChanges, visibility: Visibility) -> UUID | None:
    if changes.collection is msgspec.UNSET:
        return document.collection_id
    if changes.collection is None:
        return None
    name = check_name(changes.collection, "collection name")
    return await tx.collections.ensure(name, announced=visibility is Visibility.TENANT)
