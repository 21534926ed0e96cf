"""SQL of contents: uploaded bytes, once for each digest and tenant."""

from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.documents import Content, NewContent
from pkg.ctxutil import Context


class ContentRepository:
    """What was uploaded to one tenant."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def ensure(self, new: NewContent) -> Content:
        """The tenant's content with this digest: `new` if it is the first, else the one that was there.

        The row is locked for sharing until the transaction ends, so that a purge can't take it away meanwhile.
        """
        await self._conn.execute(
            "insert into contents (tenant_id, id, sha256, size, media_type, source_type, blob_key)"
            " values ($1, $2, $3, $4, $5, $6, $7) on conflict (tenant_id, sha256) where purged_at is null do nothing",
            self._ctx.tenant_id,
            new.id,
            new.sha256,
            new.size,
            new.media_type,
            new.source_type,
            new.blob_key,
        )
        found = await self.find_by_digest(new.sha256)
        # A purge may have claimed the row between the two statements; then the bytes are new again.
        return found if found is not None else await self.ensure(new)

    async def find_by_digest(self, sha256: bytes) -> Content | None:
        """The live content with this digest, locked for sharing."""
        row = await self._conn.fetchrow(
            "select id, sha256, size, media_type, source_type, blob_key, generation_id, metadata from contents"
            " where tenant_id = $1 and sha256 = $2 and purged_at is null for key share",
            self._ctx.tenant_id,
            sha256,
        )
        return None if row is None else _content(row)

    async def find(self, content_id: UUID) -> Content | None:
        """The content, or None when it is gone or being purged."""
        row = await self._conn.fetchrow(
            "select id, sha256, size, media_type, source_type, blob_key, generation_id, metadata from contents"
            " where tenant_id = $1 and id = $2 and purged_at is null",
            self._ctx.tenant_id,
            content_id,
        )
        return None if row is None else _content(row)

    async def publish(self, content_id: UUID, generation_id: UUID, metadata: dict[str, Any]) -> None:
        """Points a content that is held at a generation."""
        await self._conn.execute(
            "update contents set generation_id = $3, metadata = $4 where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            content_id,
            generation_id,
            msgspec.json.encode(metadata).decode(),
        )

    async def condemn(self, content_id: UUID) -> Content | None:
        """Marks a content that nobody holds as being purged, for good; None when a document or its history does.

        The lock is exclusive: an upload of the same bytes either came first and holds it, or makes a new content.
        """
        row = await self._conn.fetchrow(
            "select id, sha256, size, media_type, source_type, blob_key, generation_id, metadata from contents"
            " where tenant_id = $1 and id = $2 for update",
            self._ctx.tenant_id,
            content_id,
        )
        if row is None:
            return None
        held = await self._conn.fetchval(
            "select exists (select 1 from documents where tenant_id = $1 and content_id = $2)"
            " or exists (select 1 from document_versions where tenant_id = $1 and content_id = $2)",
            self._ctx.tenant_id,
            content_id,
        )
        if held:
            return None
        await self._conn.execute(
            "update contents set purged_at = coalesce(purged_at, now()), generation_id = null"
            " where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            content_id,
        )
        return _content(row)

    async def hold(self, content_id: UUID) -> Content | None:
        """As `find`, and until the transaction ends a purge of the content, or of what was read from it, waits."""
        row = await self._conn.fetchrow(
            "select id, sha256, size, media_type, source_type, blob_key, generation_id, metadata from contents"
            " where tenant_id = $1 and id = $2 and purged_at is null for key share",
            self._ctx.tenant_id,
            content_id,
        )
        return None if row is None else _content(row)

    async def unpublish(self, content_id: UUID) -> None:
        """No search sees anything of the content any more; its object stays."""
        await self._conn.execute(
            "update contents set generation_id = null where tenant_id = $1 and id = $2", self._ctx.tenant_id, content_id
        )

    async def remove(self, content_id: UUID) -> None:
        """Removes a condemned content with its generations and whatever chunks are left."""
        await self._conn.execute(
            "delete from contents where tenant_id = $1 and id = $2 and purged_at is not null",
            self._ctx.tenant_id,
            content_id,
        )


def _content(row: asyncpg.Record) -> Content:
    return Content(
        id=row["id"],
        sha256=row["sha256"],
        size=row["size"],
        media_type=row["media_type"],
        source_type=row["source_type"],
        blob_key=row["blob_key"],
        generation_id=row["generation_id"],
        metadata=msgspec.json.decode(row["metadata"], type=dict[str, Any]),
    )
