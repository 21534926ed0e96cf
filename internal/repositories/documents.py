"""SQL of documents. Each statement adds the tenant and the visibility predicate; the policies lie beneath."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.documents import Document, DocumentFilter, DocumentStatus, NewDocument, Visibility
from internal.entities.ids import new_id
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

LATEST_READING = (
    " left join lateral (select t.status from tasks t where t.tenant_id = d.tenant_id and t.document_id = d.id"
    " and t.kind = 'ingest_content' order by t.created_at desc limit 1) t on true"
)
# $1 is the tenant and $2 the user in each statement that uses these.
DOCUMENT = (
    "select d.id, d.version, d.content_id, d.owner_id, d.generation_id, d.filename, c.media_type,"  # noqa: S608 - constants
    " d.source_type,"
    " c.size, c.sha256, d.visibility, d.collection_id, k.name as collection, d.tags,"
    " c.metadata || d.metadata as metadata,"
    " coalesce(g.chunk_count, 0) as chunk_count, t.status as task_status, d.created_at, d.updated_at"
    " from documents d join contents c on c.tenant_id = d.tenant_id and c.id = d.content_id"
    " left join collections k on k.tenant_id = d.tenant_id and k.id = d.collection_id"
    " left join generations g on g.tenant_id = d.tenant_id and g.id = d.generation_id" + LATEST_READING
)
VISIBLE = " where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2)"
# What a DocumentFilter says, after LATEST_READING and VISIBLE; `narrowing` gives the parameters.
NARROWED = (
    " and ($3::uuid is null or d.collection_id = $3) and ($4::text is null or $4 = any(d.tags))"
    " and ($5::text is null or d.source_type = $5)"
    " and ($6::text is null or position(lower($6) in lower(d.filename)) > 0)"
    " and ($7::text is null or $7 = case when d.generation_id is not null then 'ready'"
    " when t.status in ('failed', 'dead') then 'failed' when t.status = 'cancelled' then 'cancelled'"
    " when t.status = 'queued' then 'queued' else 'processing' end)"
)

STATUS_OF_TASK = {
    "queued": DocumentStatus.QUEUED,
    "running": DocumentStatus.PROCESSING,
    "succeeded": DocumentStatus.PROCESSING,
    "failed": DocumentStatus.FAILED,
    "dead": DocumentStatus.FAILED,
    "cancelled": DocumentStatus.CANCELLED,
}


class DocumentRepository:
    """Users' handles on contents, as far as the context's user may see them."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(self, new: NewDocument) -> UUID | None:
        """Adds a document of the context's user; None when this user holds the content already."""
        return await self._conn.fetchval(
            "insert into documents (tenant_id, id, content_id, owner_id, filename, source_type, visibility,"
            " collection_id, tags, metadata) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb)"
            " on conflict (tenant_id, owner_id, content_id) where version = 1 do nothing returning id",
            self._ctx.tenant_id,
            new_id(),
            new.content_id,
            self._ctx.user_id,
            new.filename,
            new.source_type,
            new.visibility.value,
            new.collection_id,
            new.tags,
            msgspec.json.encode(new.metadata).decode(),
        )

    async def find_own(self, content_id: UUID) -> Document | None:
        """The context's user's document on this content; the one that was uploaded as such, if there are several."""
        row = await self._conn.fetchrow(
            DOCUMENT + VISIBLE + " and d.owner_id = $2 and d.content_id = $3 order by d.version",
            self._ctx.tenant_id,
            self._ctx.user_id,
            content_id,
        )
        return None if row is None else _document(row)

    async def get(self, document_id: UUID) -> Document:
        """Raises DOCUMENT_NOT_FOUND, for a foreign or private one too."""
        row = await self._conn.fetchrow(
            DOCUMENT + VISIBLE + " and d.id = $3", self._ctx.tenant_id, self._ctx.user_id, document_id
        )
        if row is None:
            raise missing()
        return _document(row)

    async def these(self, document_ids: Sequence[UUID]) -> list[Document]:
        """Documents in the order of the ids; one that isn't there, or that the user doesn't see, is left out."""
        rows = await self._conn.fetch(
            DOCUMENT + VISIBLE + " and d.id = any($3) order by array_position($3, d.id)",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_ids,
        )
        return [_document(row) for row in rows]

    async def lock(self, document_id: UUID) -> Document:
        """The document, for a transaction that changes, replaces or removes it. Raises DOCUMENT_NOT_FOUND."""
        await self._conn.execute(
            "select 1 from documents d where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2)"
            " and d.id = $3 for update",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_id,
        )
        return await self.get(document_id)

    async def update(
        self,
        document_id: UUID,
        *,
        filename: str,
        tags: list[str],
        collection_id: UUID | None,
        visibility: Visibility,
    ) -> None:
        """Writes every changeable field. Raises DOCUMENT_NOT_FOUND."""
        done = await self._conn.fetchval(
            "update documents d set filename = $4, tags = $5, collection_id = $6, visibility = $7, updated_at = now()"
            " where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2) and d.id = $3 returning d.id",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_id,
            filename,
            tags,
            collection_id,
            visibility.value,
        )
        if done is None:
            raise missing()

    async def remove(self, document_id: UUID) -> UUID:
        """Removes the handle and answers the content's id. Raises DOCUMENT_NOT_FOUND."""
        content_id = await self._conn.fetchval(
            "delete from documents d where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2)"
            " and d.id = $3 returning d.content_id",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_id,
        )
        if content_id is None:
            raise missing()
        return content_id

    async def visible(self, document_ids: list[UUID]) -> set[UUID]:
        """Which of these ids the context's user may see."""
        rows = await self._conn.fetch(
            "select d.id from documents d where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2)"
            " and d.id = any($3)",
            self._ctx.tenant_id,
            self._ctx.user_id,
            document_ids,
        )
        return {row["id"] for row in rows}

    async def named(self, files: Sequence[str], titles: Sequence[str], *, limit: int) -> dict[UUID, str]:
        """File names, by id, of up to `limit` readable documents, the newest first: one of `files` ends with the name,
        or one of `titles` stands in it. Both are given in lower case; forms of characters aren't made alike, which
        would take ten times as long."""
        rows = await self._conn.fetch(
            "select d.id, d.filename from documents d"
            " cross join lateral (select lower(d.filename) as name) n"
            " where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2) and d.generation_id is not null"
            " and (exists (select 1 from unnest($3::text[]) f where right(f, length(n.name)) = n.name)"
            " or exists (select 1 from unnest($4::text[]) t where position(t in n.name) > 0))"
            " order by d.created_at desc, d.id desc limit $5",
            self._ctx.tenant_id,
            self._ctx.user_id,
            files,
            titles,
            limit,
        )
        return {row["id"]: row["filename"] for row in rows}

    async def extent(self, document_ids: Sequence[UUID]) -> int:
        """How many passages a search of these documents, or of all, looks among; about, for a reader of few of many."""
        if not document_ids:
            found = await self._conn.fetchval(
                "select s.chunks from tenant_statistics s where s.tenant_id = $1", self._ctx.tenant_id
            )
            return found or 0
        return sure(
            await self._conn.fetchval(
                "select coalesce(sum(g.chunk_count), 0)::int from documents d"
                " join generations g on g.tenant_id = d.tenant_id and g.id = d.generation_id"
                " where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2) and d.id = any($3)",
                self._ctx.tenant_id,
                self._ctx.user_id,
                document_ids,
            )
        )

    async def publish(self, content_id: UUID, generation_id: UUID) -> list[UUID]:
        """Points every document of a content at its published generation; the worker's, for all owners.

        Answers those that could not be found before.
        """
        rows = await self._conn.fetch(
            "with shown as (select id, generation_id from documents where tenant_id = $1 and content_id = $2"
            " and generation_id is distinct from $3 for update)"
            " update documents d set generation_id = $3 from shown s where d.tenant_id = $1 and d.id = s.id"
            " returning d.id, s.generation_id is null as fresh",
            self._ctx.tenant_id,
            content_id,
            generation_id,
        )
        return [row["id"] for row in rows if row["fresh"]]

    async def list(self, *, limit: int, before: tuple[datetime, UUID] | None, narrow: DocumentFilter) -> list[Document]:
        """Up to `limit` documents, newest first, those older than the (created_at, id) of `before`."""
        rows = await self._conn.fetch(
            DOCUMENT + VISIBLE + NARROWED + " and ($8::timestamptz is null or (d.created_at, d.id) < ($8, $9::uuid))"
            " order by d.created_at desc, d.id desc limit $10",
            self._ctx.tenant_id,
            self._ctx.user_id,
            *narrowing(narrow),
            before[0] if before else None,
            before[1] if before else None,
            limit,
        )
        return [_document(row) for row in rows]


def narrowing(narrow: DocumentFilter) -> tuple[object, ...]:
    """The parameters $3 to $7 of NARROWED."""
    return (
        narrow.collection_id,
        narrow.tag,
        narrow.source_type,
        narrow.name,
        narrow.status.value if narrow.status else None,
    )


def missing() -> AppError:
    """The answer for an id that isn't there, is another tenant's, or is somebody's private one."""
    return AppError(Code.DOCUMENT_NOT_FOUND, "There is no such document.")


def _document(row: asyncpg.Record) -> Document:
    if row["generation_id"] is not None:
        status = DocumentStatus.READY
    else:
        status = STATUS_OF_TASK.get(row["task_status"], DocumentStatus.QUEUED)
    return Document(
        id=row["id"],
        version=row["version"],
        content_id=row["content_id"],
        owner_id=row["owner_id"],
        generation_id=row["generation_id"],
        filename=row["filename"],
        media_type=row["media_type"],
        source_type=row["source_type"],
        size=row["size"],
        sha256=row["sha256"],
        visibility=Visibility(row["visibility"]),
        collection_id=row["collection_id"],
        collection=row["collection"],
        tags=list(row["tags"]),
        metadata=msgspec.json.decode(row["metadata"], type=dict[str, Any]),
        chunk_count=row["chunk_count"],
        status=status,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
