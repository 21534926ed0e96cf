"""Files that come in pieces: a request's bytes are stored as parts, and the last byte makes a document of them.

No server keeps anything: parts lie in the object store, and what counts stands in the database. Bytes count once their
object is stored, and the last ones count together with the document. Whoever dies before that leaves an upload that
lacks its last part, which the client sends again.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import msgspec

from internal.entities.ids import new_id
from internal.entities.uploads import NewUpload, Upload, UploadPart, UploadStatus
from internal.providers.blobs import BlobStore
from internal.repositories.store import Store
from internal.services.documents import MEGABYTE, DocumentService, UploadRequest, checked
from internal.services.pieces import Body, Pieces, too_long
from internal.services.spool import room_left, spooled, too_large
from internal.services.versions import VersionService
from pkg import failpoints, logger
from pkg.apperr import PERMANENT, AppError, Code
from pkg.ctxutil import Context
from pkg.sections import Limits

KEEP = timedelta(hours=24)
"""After its last byte an unfinished upload is kept for so long, and a finished one's answer too."""
HOLD_SECONDS = 30.0
RENEW_SECONDS = 10.0
FULL_SECONDS = 60.0
PART_BYTES = 5 * MEGABYTE
"""Lost at most when a server dies; one request to S3 each."""


class Held(msgspec.Struct, frozen=True):
    """An upload as it was when `holder` became its only writer."""

    upload: Upload
    holder: UUID


class UploadService:
    """Uploads that may be interrupted and continued, each its user's own."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        documents: DocumentService,
        versions: VersionService,
        *,
        spool: Path,
        limits: Limits,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._documents = documents
        self._versions = versions
        self._spool = spool
        self._limits = limits
        self._log = logger.get("uploads")

    async def begin(self, ctx: Context, length: int, metadata: str, request: UploadRequest) -> Upload:
        """Announces `length` bytes. Raises FILE_EMPTY, FILE_TOO_LARGE, FILE_NAME_INVALID, UPLOAD_TOO_MANY,
        and for a replacement DOCUMENT_NOT_FOUND, AUTH_FORBIDDEN."""
        if length == 0:
            raise AppError(Code.FILE_EMPTY, "The file is empty; choose one that has content.")
        if length > self._limits.max_file_mb * MEGABYTE:
            raise too_large(self._limits.max_file_mb * MEGABYTE)
        if request.document_id is not None:
            await self._versions.check(ctx, request.document_id)
        new = NewUpload(length=length, metadata=metadata, request=msgspec.to_builtins(checked(request)))
        async with self._store.tenant(ctx) as tx:
            count, announced = await tx.uploads.open_ones()
            if count >= self._limits.uploads:
                raise _too_many(f"{count} uploads of this tenant are unfinished already")
            if announced + length > self._limits.uploads_mb * MEGABYTE:
                raise _too_many(f"Unfinished uploads of this tenant take {self._limits.uploads_mb} MB at most")
            return await tx.uploads.add(new, keep=KEEP)

    async def begin_with(self, ctx: Context, length: int, metadata: str, request: UploadRequest, body: Body) -> Upload:
        """`begin` and `append`; raises what they raise, and then nothing stays that the client has no name for."""
        upload = await self.begin(ctx, length, metadata, request)
        try:
            return await self.append(ctx, upload.id, 0, body)
        except AppError:
            try:
                await self.remove(ctx, upload.id)
            except AppError as error:
                self._log.warning("a nameless upload stays until it expires", code=error.code.value)
            raise

    async def get(self, ctx: Context, upload_id: UUID) -> Upload:
        """How far it is. Raises UPLOAD_NOT_FOUND, or what the whole file was refused with."""
        async with self._store.tenant(ctx) as tx:
            return _unless_refused(await tx.uploads.get(upload_id))

    async def append(self, ctx: Context, upload_id: UUID, offset: int, body: Body) -> Upload:
        """Takes the bytes from `offset` on; what came before an interruption counts, unless there is a checksum.

        The last byte makes the document: raises what `DocumentService.upload` raises, and UPLOAD_NOT_FOUND,
        UPLOAD_LOCKED, UPLOAD_OFFSET_MISMATCH, UPLOAD_CHECKSUM_MISMATCH.
        """
        async with self._held(ctx, upload_id) as held, room_left():
            upload = _unless_refused(held.upload)
            if offset != upload.received:
                raise AppError(
                    Code.UPLOAD_OFFSET_MISMATCH, f"{upload.received} bytes are stored, so Upload-Offset must be that."
                )
            if body.size is not None and body.size > upload.length - offset:
                raise too_long()
            return await self._receive(ctx, held, body)

    async def remove(self, ctx: Context, upload_id: UUID) -> None:
        """Forgets an upload and its bytes, not the document that was made of it."""
        async with self._held(ctx, upload_id) as held:
            async with self._store.tenant(ctx) as tx:
                await tx.uploads.end(upload_id, held.holder)
            if await self._remove_parts(ctx, upload_id):
                async with self._store.tenant(ctx) as tx:
                    await tx.uploads.remove(upload_id)

    async def _receive(self, ctx: Context, held: Held, body: Body) -> Upload:
        """Stores parts as the bytes come, and counts each at once where nothing has to be known of the rest first."""
        upload, end = held.upload, held.upload.received
        pieces = Pieces(body, limit=upload.length - end)
        waiting: list[UploadPart] = []
        try:
            while await pieces.more():
                part, size = await self._store_part(ctx, upload.id, end, pieces)
                waiting.append(part)
                end += size
                if body.checksum is None and end < upload.length:
                    upload = await self._count(ctx, held, waiting, end)
                    waiting = []
            pieces.check()
            if end == upload.length and waiting:
                upload = await self._finish(ctx, held, waiting)
            elif waiting:
                upload = await self._count(ctx, held, waiting, end)
            waiting = []
            return upload
        finally:
            if waiting:
                await self._discard(ctx, waiting)

    async def _store_part(self, ctx: Context, upload_id: UUID, start: int, pieces: Pieces) -> tuple[UploadPart, int]:
        """One object of at most PART_BYTES, and its size."""
        async with spooled(pieces.part(PART_BYTES), folder=self._spool, limit=PART_BYTES) as file:
            async with self._store.tenant(ctx) as tx:
                part = UploadPart(await tx.uploads.plan_part(upload_id), start)
            await self._blobs.put_file(BlobStore.part_key(ctx.tenant_id, part.id), file.path)
            await failpoints.hit("part.after_object")
            return part, file.size

    async def _count(self, ctx: Context, held: Held, parts: list[UploadPart], received: int) -> Upload:
        async with self._store.tenant(ctx) as tx:
            return await tx.uploads.commit_parts(held.upload.id, held.holder, parts, received=received, keep=KEEP)

    async def _finish(self, ctx: Context, held: Held, last: list[UploadPart]) -> Upload:
        """Gives all parts, in order, to the same checks as any file. A repetition finds the document that is there."""
        upload = held.upload
        request = msgspec.convert(upload.request, UploadRequest)

        async def described(_sha256: bytes) -> UploadRequest:
            return request

        async with self._store.tenant(ctx) as tx:
            parts = [*await tx.uploads.parts(upload.id), *last]
        try:
            whole = self._bytes(ctx, parts, upload.length)
            if request.document_id is None:
                result = await self._documents.upload(ctx, whole, described)
            else:
                result = await self._versions.replace(ctx, request.document_id, whole, described)
        except AppError as error:
            if error.code in PERMANENT:
                async with self._store.tenant(ctx) as tx:
                    await tx.uploads.refuse(upload.id, held.holder, error.code.value, error.detail)
                await self._remove_parts(ctx, upload.id)
            raise
        await failpoints.hit("part.after_document")
        async with self._store.tenant(ctx) as tx:
            finished = await tx.uploads.finish(upload.id, held.holder, result.document.id, result.task.id, keep=KEEP)
        await self._remove_parts(ctx, upload.id)
        return finished

    async def _bytes(self, ctx: Context, parts: list[UploadPart], length: int) -> AsyncIterator[bytes]:
        """The whole file. Raises FILE_UNREADABLE where the object store has lost something of it."""
        position = 0
        try:
            for part in parts:
                if part.start != position:
                    break
                async for block in self._blobs.read(BlobStore.part_key(ctx.tenant_id, part.id)):
                    position += len(block)
                    yield block
        except FileNotFoundError:
            position = -1
        if position != length:
            raise AppError(Code.FILE_UNREADABLE, "Stored bytes of this upload are gone; begin a new one.")

    async def _discard(self, ctx: Context, parts: list[UploadPart]) -> None:
        """Removes parts that won't count. What can't be removed now goes with the upload."""
        try:
            await self._blobs.remove_all([BlobStore.part_key(ctx.tenant_id, part.id) for part in parts])
            async with self._store.tenant(ctx) as tx:
                await tx.uploads.remove_parts([part.id for part in parts])
        except AppError as error:
            self._log.warning("parts of an upload stay until it expires", code=error.code.value)

    async def _remove_parts(self, ctx: Context, upload_id: UUID) -> bool:
        """Removes all bytes of an upload; False when that is left to its expiry."""
        try:
            async with self._store.tenant(ctx) as tx:
                parts = await tx.uploads.objects(upload_id)
            await self._blobs.remove_all([BlobStore.part_key(ctx.tenant_id, part) for part in parts])
            async with self._store.tenant(ctx) as tx:
                await tx.uploads.remove_parts(parts)
        except AppError as error:
            self._log.warning("an upload's bytes stay until it expires", code=error.code.value)
            return False
        return True

    @asynccontextmanager
    async def _held(self, ctx: Context, upload_id: UUID) -> AsyncGenerator[Held]:
        """Makes this request the only writer. Raises UPLOAD_NOT_FOUND, UPLOAD_LOCKED."""
        holder = new_id()
        async with self._store.tenant(ctx) as tx:
            upload = await tx.uploads.hold(upload_id, holder, seconds=HOLD_SECONDS)
        renewing = asyncio.create_task(self._renew(ctx, upload_id, holder))
        try:
            yield Held(upload, holder)
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            try:
                async with self._store.tenant(ctx) as tx:
                    await tx.uploads.release(upload_id, holder)
            except AppError as error:
                self._log.warning("an upload stays locked for some seconds", code=error.code.value)

    async def _renew(self, ctx: Context, upload_id: UUID, holder: UUID) -> None:
        """Holds on for as long as the request lasts. Whoever lost the upload is refused at its next write."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                async with self._store.tenant(ctx) as tx:
                    await tx.uploads.renew(upload_id, holder, seconds=HOLD_SECONDS)
            except AppError as error:
                self._log.warning("an upload's lock was not renewed", code=error.code.value)


def _unless_refused(upload: Upload) -> Upload:
    """Raises the error that the whole file was refused with."""
    if upload.status is UploadStatus.REFUSED:
        raise AppError(Code(upload.error_code), upload.error_message or "")
    return upload


def _too_many(what: str) -> AppError:
    return AppError(Code.UPLOAD_TOO_MANY, f"{what}; finish or delete some first.", retry_after=FULL_SECONDS)
