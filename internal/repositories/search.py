"""Asks the search function of a space (see search_function.py), again where copies leave too few passages."""

from typing import Any, NamedTuple

import asyncpg
import numpy as np
import numpy.typing as npt

from internal.entities.parsed import Location
from internal.entities.search import Filters, QueryTerms, SearchHit, Space
from internal.repositories.rows import box_of, sure
from pkg.ctxutil import Context

CANDIDATES = 100
"""Passages of each lane that are fused."""
SPARE, MANY = 10, 2000
"""Passages looked at beyond those asked for, so that copies can be dropped; and how many when that is too few."""


class Found(NamedTuple):
    """Hits, best first; the coverage of the query by the best of them; whether there may be more."""

    hits: list[SearchHit]
    coverage: float
    more: bool


class CacheScope(NamedTuple):
    """What a remembered search depends on besides its words."""

    data_version: int
    owns: bool


async def cache_scope(conn: asyncpg.Connection, ctx: Context) -> CacheScope:
    """The tenant's data version, and whether the user owns documents; one round trip outside any transaction."""
    row = sure(await conn.fetchrow("select data_version, owns from cache_scope_v1($1, $2)", ctx.tenant_id, ctx.user_id))
    return CacheScope(row["data_version"], row["owns"])


async def search(
    conn: asyncpg.Connection,
    ctx: Context,
    space: Space,
    *,
    embedding: npt.NDArray[np.float32] | None,
    terms: QueryTerms | None,
    filters: Filters,
    k: int,
    reranked: int = 0,
) -> Found:
    """The best `k` passages, in one round trip outside any transaction; up to `reranked` where words tell little.

    `embedding` or `terms` is None for a mode that doesn't use it. Copies of one text count once; where they leave the
    answer short, a second round looks among more candidates.
    """
    both = embedding is not None and terms is not None
    pool = k + SPARE
    depth = max(CANDIDATES, pool) if both else pool
    found = await _ask(conn, ctx, space, embedding, terms, filters, (k, depth, pool, reranked))
    if len(found.hits) < k and found.more:
        return await _ask(conn, ctx, space, embedding, terms, filters, (k, MANY, 2 * MANY, reranked))
    return found


async def _ask(
    conn: asyncpg.Connection,
    ctx: Context,
    space: Space,
    embedding: npt.NDArray[np.float32] | None,
    terms: QueryTerms | None,
    filters: Filters,
    sizes: tuple[int, int, int, int],
) -> Found:
    rows = await conn.fetch(
        f"select * from {space.function}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",  # noqa: S608 - a name made by code
        ctx.tenant_id,
        ctx.user_id,
        embedding,
        terms.terms if terms else None,
        terms.counts if terms else None,
        *sizes,
        filters.source_types or None,
        filters.document_ids or None,
        filters.collections or None,
        filters.tags or None,
        filters.created_after,
        filters.created_before,
        filters.mine,
    )
    if not rows:
        return Found([], 0.0, False)
    return Found([_hit(row) for row in rows], rows[0]["coverage"], rows[0]["more"])


def _hit(row: Any) -> SearchHit:
    return SearchHit(
        chunk_id=row["chunk_id"],
        document_id=row["document_id"],
        filename=row["filename"],
        source_type=row["source_type"],
        text=row["text"],
        score=row["score"],
        location=Location(
            page=row["page"],
            heading=row["heading"],
            start_ms=row["start_ms"],
            end_ms=row["end_ms"],
            box=box_of(row["box"]),
        ),
        similarity=row["similarity"],
        keyword=row["keyword"],
    )
