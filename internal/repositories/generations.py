"""SQL of generations: processings of a content, unpublished until one row is flipped."""

from uuid import UUID

import asyncpg

from internal.entities.documents import Generation
from internal.entities.ids import new_id
from internal.entities.processing import ProcessingState
from internal.repositories.rows import sure
from pkg.ctxutil import Context


class GenerationRepository:
    """Processing versions of one tenant's contents."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def ensure(self, content_id: UUID, version: str, space_id: int) -> Generation:
        """The generation of this content, version and space; a rerun continues the one that was begun.

        The row stays locked until the transaction ends, so that two workers take turns.
        """
        await self._conn.execute(
            "insert into generations (tenant_id, id, content_id, version, space_id) values ($1, $2, $3, $4, $5)"
            " on conflict (tenant_id, content_id, version, space_id) do nothing",
            self._ctx.tenant_id,
            new_id(),
            content_id,
            version,
            space_id,
        )
        row = await self._conn.fetchrow(
            "select id, content_id, version, space_id, status, chunk_count from generations"
            " where tenant_id = $1 and content_id = $2 and version = $3 and space_id = $4 for update",
            self._ctx.tenant_id,
            content_id,
            version,
            space_id,
        )
        return _generation(sure(row))

    async def status(self, generation_id: UUID) -> str | None:
        """None for one that is gone; the row is locked for sharing, so that the answer stays true in this transaction.

        Only what is `building` is written to: a retired one is being removed, whoever is still reading for it.
        """
        return await self._conn.fetchval(
            "select status from generations where tenant_id = $1 and id = $2 for share",
            self._ctx.tenant_id,
            generation_id,
        )

    async def version(self, generation_id: UUID) -> str | None:
        """Which version of the processing read it; None for one that is gone."""
        return await self._conn.fetchval(
            "select version from generations where tenant_id = $1 and id = $2", self._ctx.tenant_id, generation_id
        )

    async def answering(self, content_id: UUID) -> Generation | None:
        """The one that searches see of a content, if there is one."""
        row = await self._conn.fetchrow(
            "select g.id, g.content_id, g.version, g.space_id, g.status, g.chunk_count from contents c"
            " join generations g on g.tenant_id = $1 and g.id = c.generation_id where c.tenant_id = $1 and c.id = $2",
            self._ctx.tenant_id,
            content_id,
        )
        return None if row is None else _generation(row)

    async def publish(self, generation_id: UUID, chunk_count: int) -> None:
        """Marks the generation as the one that searches see."""
        await self._conn.execute(
            "update generations set status = 'published', chunk_count = $3, published_at = now()"
            " where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            generation_id,
            chunk_count,
        )

    async def finish(self, generation_id: UUID, chunk_count: int) -> None:
        """Marks one that is tried as whole; no search sees it."""
        await self._conn.execute(
            "update generations set status = 'ready', chunk_count = $3"
            " where tenant_id = $1 and id = $2 and status = 'building'",
            self._ctx.tenant_id,
            generation_id,
            chunk_count,
        )

    async def retire(self, generation_id: UUID) -> None:
        """Marks the generation as replaced; searches no longer see it, and `remove` may take it away."""
        await self._conn.execute(
            "update generations set status = 'retired', kept_until = null where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            generation_id,
        )

    async def replace(self, generation_ids: list[UUID], state: ProcessingState) -> None:
        """As `retire`, but what the previous version read is kept while one may go back to it."""
        await self._conn.execute(
            "update generations set"
            " status = case when version = $3 and $4 > now() then 'kept' else 'retired' end,"
            " kept_until = case when version = $3 and $4 > now() then $4 end"
            " where tenant_id = $1 and id = any($2)",
            self._ctx.tenant_id,
            generation_ids,
            state.previous,
            state.kept_until,
        )

    async def remove(self, generation_id: UUID) -> None:
        """Removes a retired generation with whatever chunks are left."""
        await self._conn.execute(
            "delete from generations where tenant_id = $1 and id = $2 and status = 'retired'",
            self._ctx.tenant_id,
            generation_id,
        )

    async def of_content(self, content_id: UUID) -> list[Generation]:
        """Every generation of a content, oldest first."""
        rows = await self._conn.fetch(
            "select id, content_id, version, space_id, status, chunk_count from generations"
            " where tenant_id = $1 and content_id = $2 order by created_at",
            self._ctx.tenant_id,
            content_id,
        )
        return [_generation(row) for row in rows]


def _generation(row: asyncpg.Record) -> Generation:
    return Generation(
        id=row["id"],
        content_id=row["content_id"],
        version=row["version"],
        space_id=row["space_id"],
        status=row["status"],
        chunk_count=row["chunk_count"],
    )
