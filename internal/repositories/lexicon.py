"""SQL of the lexicon: terms of passages, and how many published passages of the tenant hold each term."""

from uuid import UUID

import asyncpg
import numpy as np
from pgvector import SparseVector

from internal.entities.search import TERM_SPACE, ChunkTerms
from internal.repositories.rows import sure
from internal.repositories.search_function import LENGTH_SHARE, SATURATION, USUAL_LENGTH
from pkg.ctxutil import Context


class LexiconRepository:
    """The keyword side of one tenant's passages."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(self, generation_id: UUID, rows: list[ChunkTerms]) -> None:
        """Inserts the terms of passages that this transaction added. Searches see none before `publish`."""
        await self._conn.execute(
            "insert into chunk_terms (tenant_id, chunk_id, generation_id, terms, weights)"
            " select $1, r.chunk_id, $2, string_to_array(r.terms, ' ')::int[], r.weights"
            " from unnest($3::uuid[], $4::text[], $5::sparsevec[]) as r (chunk_id, terms, weights)",
            self._ctx.tenant_id,
            generation_id,
            [row.chunk_id for row in rows],
            [" ".join(map(str, row.terms)) for row in rows],
            [_weights(row) for row in rows],
        )

    async def publish(self, generation_id: UUID) -> None:
        """Counts a generation's terms into the tenant's frequencies, once; part of the publishing transaction."""
        await self.replace([], [generation_id])

    async def retire(self, generation_id: UUID) -> None:
        """Takes a generation out of the counts, once; call it before its chunks are removed."""
        await self.replace([generation_id], [])

    async def replace(self, olds: list[UUID], news: list[UUID]) -> None:
        """Takes generations out of the counts and others in, each once, whatever was counted before."""
        await self._lock()
        row = sure(
            await self._conn.fetchrow(
                "with outs as (delete from counted_generations where tenant_id = $1 and generation_id = any($2)"
                " returning generation_id, chunks),"
                " ins as (insert into counted_generations (tenant_id, generation_id, chunks)"
                " select $1, n.id, (select count(*)::int from chunk_terms c where c.tenant_id = $1"
                " and c.generation_id = n.id) from unnest($3::uuid[]) as n (id)"
                " on conflict do nothing returning generation_id, chunks)"
                " select array(select generation_id from outs) as outs, array(select generation_id from ins) as ins,"
                " (select coalesce(sum(chunks), 0) from ins)::bigint"
                " - (select coalesce(sum(chunks), 0) from outs)::bigint as chunks",
                self._ctx.tenant_id,
                olds,
                news,
            )
        )
        if not row["outs"] and not row["ins"]:
            return
        await self._conn.execute(
            "with delta as materialized (select t.term, sum(t.step)::int as chunks from ("
            " select unnest(c.terms) as term, -1 as step from chunk_terms c"
            " where c.tenant_id = $1 and c.generation_id = any($2) union all"
            " select unnest(c.terms), 1 from chunk_terms c where c.tenant_id = $1 and c.generation_id = any($3)) t"
            " group by t.term having sum(t.step) <> 0),"
            " emptied as (delete from term_frequencies f using delta d"
            " where f.tenant_id = $1 and f.term = d.term and f.chunks + d.chunks <= 0),"
            " counted as (insert into term_frequencies as f (tenant_id, term, chunks)"
            " select $1, d.term, coalesce(k.chunks, 0) + d.chunks from delta d"
            " left join term_frequencies k on k.tenant_id = $1 and k.term = d.term"
            " where coalesce(k.chunks, 0) + d.chunks > 0"
            " on conflict (tenant_id, term) do update set chunks = excluded.chunks returning 1)"
            " select count(*) from counted",
            self._ctx.tenant_id,
            row["outs"],
            row["ins"],
        )
        await self._conn.execute(
            "update tenant_statistics set chunks = greatest(0, chunks + $2), data_version = data_version + 1"
            " where tenant_id = $1",
            self._ctx.tenant_id,
            row["chunks"],
        )

    async def touch(self) -> int:
        """Raises the tenant's data version, for a change that no count shows, such as a document's visibility."""
        return await self._lock(1)

    async def _lock(self, step: int = 0) -> int:
        """Locks the tenant's row of statistics: publishers of one tenant take turns and so never deadlock."""
        version: int | None = await self._conn.fetchval(
            "insert into tenant_statistics as s (tenant_id, data_version) values ($1, $2)"
            " on conflict (tenant_id) do update set data_version = s.data_version + $2 returning data_version",
            self._ctx.tenant_id,
            step,
        )
        return version or 0


def _weights(row: ChunkTerms) -> SparseVector:
    """The passage's side of BM25: each count, saturated and set off against the passage's length."""
    counts = np.asarray(row.counts, dtype=np.float32)
    damp = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * row.length / USUAL_LENGTH)
    weights = counts * (SATURATION + 1) / (counts + damp)
    # pgvector counts elements from 1 in its text form and from 0 here.
    indices = (term - 1 for term in row.terms)
    return SparseVector(dict(zip(indices, weights.tolist(), strict=True)), TERM_SPACE)
