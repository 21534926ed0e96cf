"""SQL of objects: which of them a row holds, and which rows have lost theirs. The worker's, of one tenant."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from internal.entities.objects import HeldObject
from internal.repositories.task_rows import ANEW
from pkg.ctxutil import Context

FOLDERS = frozenset({"", "archives", "uploads"})
"""Below a tenant's prefix, where the objects lie that `held` knows the rows of; what lies elsewhere is left alone."""


class ObjectRepository:
    """Contents, parts of uploads and archives, as far as they stand for an object."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def held(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of the ids that some row has. Another kind of object is one more branch here, and its folder above."""
        rows = await self._conn.fetch(
            "select c.id from contents c where c.tenant_id = $1 and c.id = any($2)"
            " union all select p.id from upload_parts p where p.tenant_id = $1 and p.id = any($2)"
            " union all select b.id from batches b where b.tenant_id = $1 and b.id = any($2) and b.stored",
            self._ctx.tenant_id,
            list(ids),
        )
        return {row["id"] for row in rows}

    async def page(self, *, after: UUID, limit: int) -> list[HeldObject]:
        """Up to `limit` contents that must have an object, in the order of their ids, behind `after`."""
        rows = await self._conn.fetch(
            "select id, blob_key, missing_at is not null as missing from contents"
            " where tenant_id = $1 and id > $2 and purged_at is null order by id limit $3",
            self._ctx.tenant_id,
            after,
            limit,
        )
        return [HeldObject(**row) for row in rows]

    async def lock(self, content_id: UUID) -> bool:
        """Keeps a purge away until the transaction ends; False where there is nothing to miss, or it is known."""
        found = await self._conn.fetchval(
            "select true from contents where tenant_id = $1 and id = $2 and purged_at is null and missing_at is null"
            " for update",
            self._ctx.tenant_id,
            content_id,
        )
        return bool(found)

    async def mark_missing(self, content_id: UUID) -> None:
        """Writes down that the content's object is gone."""
        await self._conn.execute(
            "update contents set missing_at = clock_timestamp() where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            content_id,
        )

    async def mark_found(self, content_id: UUID) -> bool:
        """The object is there again; False where that is known already. Whatever failed for want of it begins anew."""
        found = await self._conn.fetchval(
            "update contents set missing_at = null where tenant_id = $1 and id = $2 and missing_at is not null"
            " returning true",
            self._ctx.tenant_id,
            content_id,
        )
        if not found:
            return False
        await self._conn.execute(
            "update tasks t" + ANEW + " where t.tenant_id = $1 and t.content_id = $2 and t.status = 'failed'"
            " and t.error_code = 'file.missing'",
            self._ctx.tenant_id,
            content_id,
        )
        return True

    async def documents(self, content_id: UUID, limit: int) -> list[UUID]:
        """Up to `limit` documents that have the content, now or in their history."""
        rows = await self._conn.fetch(
            "select d.id from documents d where d.tenant_id = $1 and (d.content_id = $2 or exists (select 1"
            " from document_versions v where v.tenant_id = $1 and v.document_id = d.id and v.content_id = $2))"
            " limit $3",
            self._ctx.tenant_id,
            content_id,
            limit,
        )
        return [row["id"] for row in rows]

    async def count_removed(self, removed: int) -> None:
        """Adds to the number of objects that were ever removed."""
        await self._conn.execute(
            "insert into object_sweeps as s (tenant_id, removed) values ($1, $2)"
            " on conflict (tenant_id) do update set removed = s.removed + $2",
            self._ctx.tenant_id,
            removed,
        )

    async def finish_sweep(self, objects: int) -> None:
        """All of the tenant's objects, so many, were compared with its rows."""
        await self._conn.execute(
            "insert into object_sweeps (tenant_id, finished_at, objects) values ($1, clock_timestamp(), $2)"
            " on conflict (tenant_id) do update set finished_at = excluded.finished_at, objects = excluded.objects",
            self._ctx.tenant_id,
            objects,
        )
