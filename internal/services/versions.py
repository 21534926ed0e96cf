"""Versions: a document gets another content and keeps its id, and what it had stays readable for a while."""

from collections.abc import AsyncIterator
from uuid import UUID

from internal.entities.documents import Content, Document
from internal.entities.events import FileUploaded
from internal.entities.versions import Version, VersionStatus
from internal.repositories.documents import missing
from internal.repositories.store import Store, Tx
from internal.services.documents import Describe, DocumentService, UploadRequest, UploadResult, may_change, reading
from internal.services.purge import purging
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context


class VersionService:
    """The rules of versions. The one that answers does so until a later one was read; then that one does."""

    def __init__(self, store: Store, documents: DocumentService, *, keep: int) -> None:
        self._store = store
        self._documents = documents
        self._keep = keep

    async def get(self, ctx: Context, document_id: UUID, number: int) -> Version:
        """Raises DOCUMENT_NOT_FOUND, VERSION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            await tx.documents.get(document_id)
            return await tx.versions.get(document_id, number)

    async def check(self, ctx: Context, document_id: UUID) -> None:
        """Raises DOCUMENT_NOT_FOUND, or AUTH_FORBIDDEN for who may not replace the document."""
        async with self._store.tenant(ctx) as tx:
            _changeable(ctx, await tx.documents.get(document_id))

    async def replace(
        self,
        ctx: Context,
        document_id: UUID,
        chunks: AsyncIterator[bytes],
        describe: Describe,
    ) -> UploadResult:
        """Takes a file in as the document's next version; see `DocumentService.take_in`.

        The bytes of the newest version again are a duplicate, unless that one could not be read.
        """
        await self.check(ctx, document_id)

        async def known(ctx: Context, sha256: bytes) -> UploadResult | None:
            async with self._store.tenant(ctx) as tx:
                document = _changeable(ctx, await tx.documents.get(document_id))
                return await _duplicate(tx, document, sha256)

        async def write(tx: Tx, stored: Content, request: UploadRequest) -> UploadResult:
            document = _changeable(ctx, await tx.documents.lock(document_id))
            return await _duplicate(tx, document, stored.sha256) or await self._add(
                tx, document, stored.id, request.filename, request.priority, size=stored.size
            )

        return await self._documents.take_in(ctx, chunks, describe, known=known, write=write)

    async def restore(self, ctx: Context, document_id: UUID, number: int) -> UploadResult:
        """Reads an earlier version again, as the next one. Raises DOCUMENT_NOT_FOUND, VERSION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            _changeable(ctx, await tx.documents.get(document_id))
            await tx.contents.hold((await tx.versions.get(document_id, number)).content_id)
            document = await tx.documents.lock(document_id)
            version = await tx.versions.get(document_id, number)  # it may have been forgotten meanwhile
            return await _duplicate(tx, document, version.sha256) or await self._add(
                tx, document, version.content_id, version.filename, "normal", size=version.size
            )

    async def _add(
        self, tx: Tx, document: Document, content_id: UUID, filename: str, priority: str | None, *, size: int
    ) -> UploadResult:
        await tx.versions.begin(document)
        task = await tx.tasks.add(await reading(tx, document.id, content_id, priority, size=size))
        await tx.versions.add(document.id, content_id, filename, task.id)
        forgotten = await tx.versions.trim(document.id, self._keep)
        await tx.tasks.cancel_queued(document.id, [item.task_id for item in forgotten if item.task_id is not None])
        for content in {item.content_id for item in forgotten}:
            await tx.tasks.add(purging(content))
        await tx.outbox.add(FileUploaded(document_id=document.id, content_id=content_id, task_id=task.id))
        return UploadResult(document, task, duplicate=False)

    async def list(self, ctx: Context, document_id: UUID) -> list[Version]:
        """The newest first. Raises DOCUMENT_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            found = await tx.versions.list(document_id)
        if not found:
            raise missing()
        return found


def _changeable(ctx: Context, document: Document) -> Document:
    if not may_change(ctx, document):
        raise AppError(Code.AUTH_FORBIDDEN, "Only its owner or an admin replaces a document.")
    return document


async def _duplicate(tx: Tx, document: Document, sha256: bytes) -> UploadResult | None:
    """The answer for bytes that the newest version has already."""
    newest = (await tx.versions.list(document.id))[0]
    if newest.sha256 != sha256 or newest.status is VersionStatus.FAILED:
        return None
    task = (await tx.tasks.latest_for_documents([document.id]))[document.id]
    return UploadResult(document, task, duplicate=True)
