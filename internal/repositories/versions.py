"""SQL of versions: the contents that a document had, has, and will have. A document that was never replaced has no rows
here, and is read as its own only version."""

from typing import Any
from uuid import UUID

import asyncpg

from internal.entities.documents import Document
from internal.entities.versions import Forgotten, Switched, Version, VersionStatus
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

# $1 is the tenant, $2 the user, $3 the document in each statement that uses this.
VERSION = (
    "select v.number, v.content_id, c.sha256, c.size, c.media_type, c.blob_key, v.filename, v.created_by, v.created_at,"
    " case when v.number < d.version then 'superseded'"
    " when v.number = d.version and d.generation_id is not null then 'current'"
    " when t.status in ('failed', 'dead', 'cancelled') then 'failed' else 'reading' end as status,"
    " t.error_code, t.error_message"
    " from documents d cross join lateral ("
    " select v.number, v.content_id, v.filename, v.created_by, v.created_at, v.task_id from document_versions v"
    " where v.tenant_id = d.tenant_id and v.document_id = d.id"
    " union all select d.version, d.content_id, d.filename, d.owner_id, d.created_at, null"
    " where not exists (select 1 from document_versions v where v.tenant_id = d.tenant_id and v.document_id = d.id)) v"
    " join contents c on c.tenant_id = d.tenant_id and c.id = v.content_id"
    " left join lateral (select t.status, t.error_code, t.error_message from tasks t where t.tenant_id = d.tenant_id"
    " and t.document_id = d.id and t.kind = 'ingest_content' and t.content_id = v.content_id"
    " and (v.task_id is null or t.id = v.task_id) order by t.created_at desc limit 1) t on true"
    " where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2) and d.id = $3"
)


class VersionRepository:
    """Versions of documents that the context's user may see, and a worker's switch from one to the next."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def get(self, document_id: UUID, number: int) -> Version:
        """Raises VERSION_NOT_FOUND, for a document that isn't there too."""
        row = await self._conn.fetchrow(
            VERSION + " and v.number = $4", self._ctx.tenant_id, self._ctx.user_id, document_id, number
        )
        if row is None:
            raise AppError(Code.VERSION_NOT_FOUND, "There is no such version of this document.")
        return _version(row)

    async def begin(self, document: Document) -> None:
        """Writes down the version that a document is, where its history hasn't begun."""
        await self._conn.execute(
            "insert into document_versions (tenant_id, document_id, number, content_id, filename, created_by,"
            " created_at) values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
            self._ctx.tenant_id,
            document.id,
            document.version,
            document.content_id,
            document.filename,
            document.owner_id,
            document.created_at,
        )

    async def add(self, document_id: UUID, content_id: UUID, filename: str, task_id: UUID) -> None:
        """Adds the next version, by the context's user; the document is locked and its history has begun."""
        await self._conn.execute(
            "insert into document_versions (tenant_id, document_id, number, content_id, filename, created_by, task_id,"
            " created_at) select $1, $3, max(v.number) + 1, $4, $5, $2, $6, clock_timestamp() from document_versions v"
            " where v.tenant_id = $1 and v.document_id = $3",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_id,
            content_id,
            filename,
            task_id,
        )

    async def trim(self, document_id: UUID, keep: int) -> list[Forgotten]:
        """Forgets all but the last `keep` versions and the one that answers; returns the others."""
        rows = await self._conn.fetch(
            "delete from document_versions v using documents d where v.tenant_id = $1 and d.tenant_id = $1"
            " and d.id = $2 and v.document_id = $2 and v.number <> d.version and v.number <= (select max(w.number)"
            " from document_versions w where w.tenant_id = $1 and w.document_id = $2) - $3"
            " returning v.content_id, v.task_id",
            self._ctx.tenant_id,
            document_id,
            keep,
        )
        return [Forgotten(row["content_id"], row["task_id"]) for row in rows]

    async def contents(self, document_id: UUID) -> list[UUID]:
        """The different contents of a document's history."""
        rows = await self._conn.fetch(
            "select distinct content_id from document_versions where tenant_id = $1 and document_id = $2",
            self._ctx.tenant_id,
            document_id,
        )
        return [row["content_id"] for row in rows]

    async def switch(self, content_id: UUID, generation_id: UUID) -> list[Switched]:
        """Lets every document answer from this content that waits for it as a later version; the worker's.

        Publications of one tenant take turns, so between these statements no document moves.
        """
        waiting = await self._conn.fetch(
            "select d.id, d.version from documents d where d.tenant_id = $1 and exists (select 1"
            " from document_versions v where v.tenant_id = $1 and v.document_id = d.id and v.content_id = $2"
            " and v.number > d.version)",
            self._ctx.tenant_id,
            content_id,
        )
        if not waiting:
            return []
        rows = await self._conn.fetch(
            "update documents d set content_id = v.content_id, generation_id = $3, version = v.number,"
            " filename = v.filename, source_type = c.source_type, updated_at = now()"
            " from document_versions v join contents c on c.tenant_id = v.tenant_id and c.id = v.content_id"
            " where d.tenant_id = $1 and v.tenant_id = $1 and v.document_id = d.id and v.content_id = $2"
            " and v.number > d.version and v.number = (select max(w.number) from document_versions w"
            " where w.tenant_id = $1 and w.document_id = d.id and w.content_id = $2) returning d.id, d.version",
            self._ctx.tenant_id,
            content_id,
            generation_id,
        )
        before = {row["id"]: row["version"] for row in waiting}
        return [
            Switched(row["id"], await self._between(row["id"], before[row["id"]], row["version"], content_id))
            for row in rows
        ]

    async def is_overtaken(self, content_id: UUID) -> bool:
        """Whether the content is nothing but history: no document answers from it or waits for it; the worker's."""
        found: bool | None = await self._conn.fetchval(
            "select exists (select 1 from document_versions where tenant_id = $1 and content_id = $2)"
            " and not exists (select 1 from documents where tenant_id = $1 and content_id = $2)"
            " and not exists (select 1 from document_versions v join documents d on d.tenant_id = v.tenant_id"
            " and d.id = v.document_id where v.tenant_id = $1 and v.content_id = $2 and v.number > d.version)",
            self._ctx.tenant_id,
            content_id,
        )
        return sure(found)

    async def _between(self, document_id: UUID, first: int, before: int, but: UUID) -> list[UUID]:
        """The different contents of versions from `first` to before `before`, without one."""
        rows = await self._conn.fetch(
            "select distinct v.content_id from document_versions v where v.tenant_id = $1 and v.document_id = $2"
            " and v.number >= $3 and v.number < $4 and v.content_id <> $5",
            self._ctx.tenant_id,
            document_id,
            first,
            before,
            but,
        )
        return [row["content_id"] for row in rows]

    async def list(self, document_id: UUID) -> list[Version]:
        """The newest first; none for a document that isn't there."""
        rows = await self._conn.fetch(
            VERSION + " order by v.number desc", self._ctx.tenant_id, self._ctx.user_id, document_id
        )
        return [_version(row) for row in rows]


def _version(row: asyncpg.Record) -> Version:
    fields: dict[str, Any] = dict(row)
    fields["status"] = VersionStatus(row["status"])
    if fields["status"] is not VersionStatus.FAILED:
        fields["error_code"] = fields["error_message"] = None
    return Version(**fields)
