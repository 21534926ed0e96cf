"""SQL of token codes: what late interaction compares, written with the passages that it belongs to."""

from uuid import UUID

import asyncpg

from pkg.ctxutil import Context


class TokenCodeRepository:
    """Token codes of one tenant's passages."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(self, chunk_ids: list[UUID], codes: list[bytes]) -> None:
        """Inserts many at once, for chunks that this transaction added."""
        await self._conn.execute(
            "insert into token_codes (tenant_id, chunk_id, codes)"
            " select $1, r.chunk_id, r.codes from unnest($2::uuid[], $3::bytea[]) as r (chunk_id, codes)",
            self._ctx.tenant_id,
            chunk_ids,
            codes,
        )

    async def of_chunks(self, chunk_ids: list[UUID]) -> dict[UUID, bytes]:
        """The codes of those of these passages that have some."""
        rows = await self._conn.fetch(
            "select chunk_id, codes from token_codes where tenant_id = $1 and chunk_id = any($2)",
            self._ctx.tenant_id,
            chunk_ids,
        )
        return {row["chunk_id"]: row["codes"] for row in rows}
