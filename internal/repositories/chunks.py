"""SQL of chunks: passages with their places, written in bulk under an unpublished generation."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.documents import Chunk, Neighbourhood
from internal.entities.parsed import Location, Part
from internal.repositories.rows import box_of, sure
from pkg.ctxutil import Context


class ChunkRepository:
    """Passages of one tenant's contents."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(self, content_id: UUID, generation_id: UUID, chunks: list[Chunk]) -> set[UUID]:
        """Inserts many at once and answers the ids of the new ones; what is there (by C7's hash) stays as it is."""
        rows = await self._conn.fetch(
            "insert into chunks (tenant_id, id, content_id, generation_id, ordinal, hash, text_hash, text, tokens,"
            " page, heading, start_ms, end_ms, box, parts)"
            " select $1, c.id, $2, $3, c.ordinal, c.hash, c.text_hash, c.text, c.tokens, c.page, c.heading,"
            " c.start_ms, c.end_ms, string_to_array(nullif(c.box, ''), ' ')::real[], c.parts::json"
            " from unnest($4::uuid[], $5::int[], $6::bytea[], $7::bytea[], $8::text[], $9::int[], $10::int[],"
            " $11::text[], $12::int[], $13::int[], $14::text[], $15::text[])"
            " as c (id, ordinal, hash, text_hash, text, tokens, page, heading, start_ms, end_ms, box, parts)"
            " on conflict (tenant_id, hash) do nothing returning id",
            self._ctx.tenant_id,
            content_id,
            generation_id,
            [chunk.id for chunk in chunks],
            [chunk.ordinal for chunk in chunks],
            [chunk.hash for chunk in chunks],
            [chunk.text_hash for chunk in chunks],
            [chunk.text for chunk in chunks],
            [chunk.tokens for chunk in chunks],
            [chunk.location.page for chunk in chunks],
            [chunk.location.heading for chunk in chunks],
            [chunk.location.start_ms for chunk in chunks],
            [chunk.location.end_ms for chunk in chunks],
            [" ".join(map(str, chunk.location.box or ())) for chunk in chunks],
            [_written(chunk.parts) for chunk in chunks],
        )
        return {row["id"] for row in rows}

    async def hashes(self, generation_id: UUID) -> set[bytes]:
        """Hashes of the chunks that a generation has; a rerun skips them."""
        rows = await self._conn.fetch(
            "select hash from chunks where tenant_id = $1 and generation_id = $2", self._ctx.tenant_id, generation_id
        )
        return {row["hash"] for row in rows}

    async def parts(self, chunk_ids: Sequence[UUID]) -> dict[UUID, tuple[Part, ...]]:
        """Where the parts of chunks stand; a chunk that stands at one place has none, one that is gone neither."""
        rows = await self._conn.fetch(
            "select id, parts from chunks where tenant_id = $1 and id = any($2) and parts is not null",
            self._ctx.tenant_id,
            chunk_ids,
        )
        return {row["id"]: _read(row["parts"]) for row in rows}

    async def around(self, chunk_ids: Sequence[UUID], *, steps: int) -> dict[UUID, Neighbourhood]:
        """Of each chunk up to `steps` before and after it, by its id; one that is gone has none."""
        rows = await self._conn.fetch(
            "select h.id as hit, n.generation_id, n.id, n.ordinal, n.hash, n.text_hash, n.text, n.tokens, n.page,"
            " n.heading, n.start_ms, n.end_ms, n.box, n.parts from chunks h"
            " join chunks n on n.tenant_id = $1 and n.generation_id = h.generation_id"
            " and n.ordinal between h.ordinal - $3 and h.ordinal + $3"
            " where h.tenant_id = $1 and h.id = any($2) order by h.id, n.ordinal",
            self._ctx.tenant_id,
            chunk_ids,
            steps,
        )
        found: dict[UUID, Neighbourhood] = {}
        for hit, group in groupby(rows, key=lambda row: row["hit"]):
            chunks = {row["id"]: (row["generation_id"], _chunk(row)) for row in group}
            generation, own = chunks.pop(hit)
            around = tuple(chunk for _, chunk in chunks.values())
            found[hit] = Neighbourhood(generation_id=generation, chunk=own, around=around)
        return found

    async def remove(self, generation_id: UUID, *, limit: int) -> int:
        """Removes up to `limit` chunks with their vectors and terms; answers how many, 0 when none is left."""
        return sure(
            await self._conn.fetchval(
                "with gone as (delete from chunks where tenant_id = $1 and id in (select id from chunks"
                " where tenant_id = $1 and generation_id = $2 limit $3) returning 1) select count(*)::int from gone",
                self._ctx.tenant_id,
                generation_id,
                limit,
            )
        )

    async def size(self, generation_id: UUID) -> tuple[int, int]:
        """How many chunks a generation has, and how many tokens they have."""
        row = sure(
            await self._conn.fetchrow(
                "select count(*)::int as chunks, coalesce(sum(tokens), 0)::bigint as tokens from chunks"
                " where tenant_id = $1 and generation_id = $2",
                self._ctx.tenant_id,
                generation_id,
            )
        )
        return row["chunks"], row["tokens"]

    async def list(self, generation_id: UUID, *, limit: int, after: int) -> list[Chunk]:
        """Up to `limit` chunks in the order of the text, those whose ordinal is greater than `after`."""
        rows = await self._conn.fetch(
            "select id, ordinal, hash, text_hash, text, tokens, page, heading, start_ms, end_ms, box, parts"
            " from chunks"
            " where tenant_id = $1 and generation_id = $2 and ordinal > $3 order by ordinal limit $4",
            self._ctx.tenant_id,
            generation_id,
            after,
            limit,
        )
        return [_chunk(row) for row in rows]


def _chunk(row: asyncpg.Record) -> Chunk:
    return Chunk(
        id=row["id"],
        ordinal=row["ordinal"],
        hash=row["hash"],
        text_hash=row["text_hash"],
        text=row["text"],
        tokens=row["tokens"],
        location=Location(
            page=row["page"],
            heading=row["heading"],
            start_ms=row["start_ms"],
            end_ms=row["end_ms"],
            box=box_of(row["box"]),
        ),
        parts=_read(row["parts"]),
    )


def _written(parts: Sequence[Part]) -> str | None:
    """Pairs of start and what differs from the place before, which is a third of all of it; null for no parts."""
    if not parts:
        return None
    told, pairs = Location(), list[tuple[int, dict[str, Any]]]()
    for part in parts:
        known, new = msgspec.structs.asdict(told), msgspec.structs.asdict(part.location)
        pairs.append((part.start, {field: value for field, value in new.items() if value != known[field]}))
        told = part.location
    return msgspec.json.encode(pairs).decode()


def _read(written: str | None) -> tuple[Part, ...]:
    parts: list[Part] = []
    told: dict[str, Any] = {}
    for start, changes in msgspec.json.decode(written, type=list[tuple[int, dict[str, Any]]]) if written else ():
        told = told | changes
        parts.append(Part(start=start, location=msgspec.convert(told, Location)))
    return tuple(parts)
