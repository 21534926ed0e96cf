"""Comparing a tenant's objects with its rows: what nobody holds is removed, and what is gone is told and mended."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from internal.entities.documents import Visibility
from internal.entities.events import AlertRaised
from internal.entities.objects import HeldObject, StoredObject
from internal.entities.tasks import Lease, TaskKind
from internal.providers.blobs import BlobStore
from internal.repositories.objects import FOLDERS
from internal.repositories.store import Store
from internal.services.processing import following
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

PAGE = 500
BREATH_SECONDS = 0.05
"""Between pages, so that a million objects keep nobody else from the store or the database."""
ASKED_AT_ONCE = 16
TOLD = 100
"""Documents a content that are told of the loss of their file."""
NAMED = 20
"""Ids in a log line."""


class SweepService:
    """Objects without a row and rows without an object, of one tenant at a time and a page at a time."""

    def __init__(self, store: Store, blobs: BlobStore, *, orphan_hours: int) -> None:
        self._store = store
        self._blobs = blobs
        self._grace = timedelta(hours=orphan_hours)
        self._log = logger.get("sweep")

    async def sweep_objects(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `sweep_objects`. Each page stands for itself: a rerun, or a second run at once, does no harm."""
        objects = removed = 0
        async for page in self._blobs.pages(f"{ctx.tenant_id}", size=PAGE):
            objects += len(page)
            removed += await self._remove_orphans(ctx, lease, page)
            await asyncio.sleep(BREATH_SECONDS)
        missing = await self._compare_rows(ctx, lease)
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await tx.objects.finish_sweep(objects)
            if await tx.processing.has_expired():
                await tx.tasks.add_hidden(following(TaskKind.PURGE_GENERATIONS))
            if await tx.processing.is_behind():
                await tx.tasks.add_hidden(following(TaskKind.SWITCH_PROCESSING))
        return {"objects": objects, "removed": removed, "missing": missing}

    async def report_missing(self, ctx: Context, lease: Lease, content_id: UUID, key: str) -> bool:
        """Marks a content whose object is gone and tells who sees its documents; False where it is there after all.

        The object is looked for once more under the row's lock: a purge removes the object first.
        """
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            if not await tx.objects.lock(content_id) or await self._blobs.exists(key):
                return False
            await tx.objects.mark_missing(content_id)
            for document_id in await tx.objects.documents(content_id, TOLD):
                await tx.outbox.add(_alert(document_id, active=True))
        self._log.warning("an object is gone", content=str(content_id))
        return True

    async def _remove_orphans(self, ctx: Context, lease: Lease, page: Sequence[StoredObject]) -> int:
        """Removes what no row holds and is old.

        An upload stores its object before its row, within minutes; a row never comes to an object that is older.
        """
        if not self._grace:
            return 0
        before = datetime.now(UTC) - self._grace
        old = {number: item.key for item in page if item.modified < before and (number := _id_of(ctx, item.key))}
        if not old:
            return 0
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            held = await tx.objects.held(list(old))
        orphans = {number: key for number, key in old.items() if number not in held}
        if not orphans:
            return 0
        await self._blobs.remove_all(list(orphans.values()))
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            await tx.objects.count_removed(len(orphans))
        ids = [str(number) for number in orphans]
        self._log.warning("objects without a row removed", count=len(ids), objects=ids[:NAMED])
        return len(orphans)

    async def _compare_rows(self, ctx: Context, lease: Lease) -> int:
        """How many of the tenant's contents lack their object; each one is told of once."""
        missing, after = 0, UUID(int=0)
        while True:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                page = await tx.objects.page(after=after, limit=PAGE)
            if not page:
                return missing
            after = page[-1].id
            for start in range(0, len(page), ASKED_AT_ONCE):
                missing += await self._look(ctx, lease, page[start : start + ASKED_AT_ONCE])
            await asyncio.sleep(BREATH_SECONDS)

    async def _look(self, ctx: Context, lease: Lease, contents: Sequence[HeldObject]) -> int:
        there = await asyncio.gather(*(self._blobs.exists(content.blob_key) for content in contents))
        missing = 0
        for content, found in zip(contents, there, strict=True):
            if found and content.missing:
                await self._tell_found(ctx, lease, content)
            elif not found:
                missing += content.missing or await self.report_missing(ctx, lease, content.id, content.blob_key)
        return missing

    async def _tell_found(self, ctx: Context, lease: Lease, content: HeldObject) -> None:
        """The object was uploaded again, or restored from a backup."""
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            if not await tx.objects.mark_found(content.id):
                return
            for document_id in await tx.objects.documents(content.id, TOLD):
                await tx.outbox.add(_alert(document_id, active=False))
        self._log.info("an object is there again", content=str(content.id))


def file_missing() -> AppError:
    """Whoever wants a file whose object is gone is told how to mend that."""
    return AppError(Code.FILE_MISSING, "The stored file is gone; upload the same file again to bring it back.")


def _alert(document_id: UUID, *, active: bool) -> AlertRaised:
    """For those who see the document, and nobody else."""
    return AlertRaised(
        name="document.file_missing",
        severity="critical" if active else "info",
        active=active,
        detail="The stored file of this document is gone; upload the same file again to bring it back."
        if active
        else "The stored file of this document is there again.",
        visibility=Visibility.PRIVATE,
        document_id=document_id,
    )


def _id_of(ctx: Context, key: str) -> UUID | None:
    """The id that a row would have for this object; None for what isn't of a kind that is known."""
    folder, _, name = key.removeprefix(f"{ctx.tenant_id}/").rpartition("/")
    if folder not in FOLDERS:
        return None
    try:
        return UUID(name)
    except ValueError:
        return None
