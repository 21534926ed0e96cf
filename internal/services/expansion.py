"""Archives: their files become documents, each once, whatever happens to the worker meanwhile.

The archive is expanded in the parser's child, whole, into an empty folder; only then is anything made of it. Each entry
is settled in the transaction that makes its document, under the task's fence, so a rerun expands the archive again and
goes on with what is left.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from internal.entities.archives import ArchiveBounds, ArchiveEntry
from internal.entities.batches import BatchWork, PlannedItem
from internal.entities.tasks import Lease
from internal.parsers.confine import FILE_BYTES
from internal.parsers.sandbox import Sandbox, regular
from internal.providers.blobs import BlobStore
from internal.repositories.store import Store, Tx
from internal.services.documents import MEGABYTE, DocumentService, UploadRequest, UploadResult
from internal.services.names import shown
from internal.services.spool import room_left, spooled_file
from pkg import failpoints, logger
from pkg.apperr import PERMANENT, AppError, Code
from pkg.ctxutil import Context
from pkg.sections import Limits

REFUSALS = PERMANENT | {Code.FILE_NAME_INVALID, Code.FILE_TOO_LARGE, Code.REQUEST_CONFLICT}
"""What is wrong with one file, and would be at every try."""
SLICE = 500


class CancelledError(Exception):
    """Somebody cancelled the batch, or it is gone."""


class ExpansionService:
    """Makes documents of an archive's files."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        sandbox: Sandbox,
        documents: DocumentService,
        *,
        workdir: Path,
        limits: Limits,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._sandbox = sandbox
        self._documents = documents
        self._workdir = workdir
        self._bounds = ArchiveBounds(
            entries=limits.archive_entries,
            entry_bytes=min(limits.max_file_mb * MEGABYTE, FILE_BYTES),
            total_bytes=limits.batch_mb * MEGABYTE,
        )
        self._log = logger.get("expansion")

    async def expand_archive(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `expand_archive`. A tenant without room for more tasks holds it (QUEUE_FULL); nothing is lost."""
        batch_id = UUID(lease.task.payload["batch_id"])
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            work = await tx.batch_work.find(batch_id)
        if work is None or work.cancelled:
            return {"skipped": "the batch was cancelled"}
        try:
            count = await self._expand(ctx, lease, work)
        except CancelledError:
            return {"skipped": "the batch was cancelled"}
        except AppError as error:
            if error.code in PERMANENT:
                await self._refuse(ctx, lease, batch_id, error)
            raise
        await failpoints.hit("archive.before_removal")
        await self._remove(ctx, lease, batch_id)
        self._log.info("archive expanded", batch=str(batch_id), entries=count)
        return {"entries": count}

    async def _expand(self, ctx: Context, lease: Lease, work: BatchWork) -> int:
        """Raises CancelledError, and what is wrong with the archive as a whole."""
        request = msgspec.convert(work.request, UploadRequest)
        with tempfile.TemporaryDirectory(prefix="archive-", dir=self._workdir) as name:
            archive, folder = Path(name) / "archive", Path(name) / "files"
            folder.mkdir()
            await self._fetch(ctx, work, archive)
            entries = await self._sandbox.expand(archive, workdir=folder, bounds=self._bounds)
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                await tx.batch_work.plan(work.id, [_planned(entry) for entry in entries])
                await tx.batches.complete(work.id)
            await failpoints.hit("archive.after_plan")
            while True:
                async with self._store.tenant(ctx) as tx:
                    left = await tx.batch_work.left(work.id, SLICE)
                for item in left:
                    await self._settle(ctx, lease, work.id, item, folder, request)
                    await failpoints.hit("archive.after_entry")
                if not left:
                    return len(entries)

    async def _fetch(self, ctx: Context, work: BatchWork, path: Path) -> None:
        """Raises FILE_UNREADABLE for an archive that is gone."""
        try:
            if not work.stored:
                raise FileNotFoundError
            async with room_left():
                await self._blobs.fetch(BlobStore.archive_key(ctx.tenant_id, work.id), path)
        except FileNotFoundError:
            raise AppError(Code.FILE_UNREADABLE, "The archive is gone; upload it again.") from None

    async def _settle(
        self, ctx: Context, lease: Lease, batch_id: UUID, item: PlannedItem, folder: Path, request: UploadRequest
    ) -> None:
        """Makes a document of an entry, or notes why it is refused. Raises what is no fault of the file."""

        async def note(tx: Tx, result: UploadResult) -> None:
            await tx.tasks.fence(lease)
            if not await tx.batch_work.hold(batch_id):
                raise CancelledError
            await tx.batches.take(
                batch_id,
                item.ordinal,
                document_id=result.document.id,
                task_id=result.task.id,
                duplicate=result.duplicate,
            )

        named = msgspec.structs.replace(request, filename=item.filename or "", folder=item.folder)
        try:
            path = regular(str(item.ordinal), folder)
            file = await asyncio.to_thread(spooled_file, path)
            await self._documents.take(ctx, file, named, note)
            await asyncio.to_thread(path.unlink)
        except AppError as error:
            if error.code not in REFUSALS:
                raise
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                await tx.batches.refuse(
                    batch_id, item.ordinal, filename=item.filename, code=error.code, message=error.detail
                )

    async def _refuse(self, ctx: Context, lease: Lease, batch_id: UUID, error: AppError) -> None:
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await tx.batch_work.fail(batch_id, error.code, error.detail)
        await self._remove(ctx, lease, batch_id)

    async def _remove(self, ctx: Context, lease: Lease, batch_id: UUID) -> None:
        await self._blobs.remove(BlobStore.archive_key(ctx.tenant_id, batch_id))
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await tx.batch_work.forget_archive(batch_id)


def _planned(entry: ArchiveEntry) -> PlannedItem:
    return PlannedItem(
        ordinal=entry.ordinal,
        filename=shown(entry.filename),
        folder=shown(entry.folder) or None,
        error_code=entry.error_code,
        error_message=entry.error_message,
    )
