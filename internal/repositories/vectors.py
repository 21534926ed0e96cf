"""SQL of vectors: written in bulk under an unpublished generation, into the partitioned table of a space."""

import struct
from typing import NamedTuple
from uuid import UUID

import asyncpg
import numpy as np
import numpy.typing as npt
from pgvector import HalfVector, Vector

from internal.entities.search import Space
from pkg.ctxutil import Context

Vectors = npt.NDArray[np.float32]

STATEMENT_BYTES = 200_000
"""Of embeddings in one statement; the statements of a call go out together. A parameter of some megabytes costs the
server three to five times as much a byte, because memory of that size is mapped and returned each time."""


class _Encoded:
    """A vector as it goes over the wire. pgvector's codec asks a vector for nothing but this."""

    def __init__(self, binary: bytes) -> None:
        self._binary = binary

    def to_binary(self) -> bytes:
        """Dimension and a zero as 16 bits each, then the numbers, all of them big-endian."""
        return self._binary


class _EncodedVector(_Encoded, Vector):
    """A `vector`."""


class _EncodedHalfVector(_Encoded, HalfVector):
    """A `halfvec`."""


class Known(NamedTuple):
    """A passage's vector of shape (space.dim,), and the codes of its tokens, empty where it has none."""

    vector: Vectors
    codes: bytes


class VectorRepository:
    """Vectors of one tenant's passages."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(
        self, space: Space, generation_id: UUID, source_type: str, chunk_ids: list[UUID], embeddings: Vectors
    ) -> None:
        """Inserts many at once; `embeddings` has the shape (len(chunk_ids), space.dim).

        Only for chunks that this transaction added: whose chunk was there has its vector, for both come together.
        `on conflict` would cost a sixth of the rate (measured at 384 dimensions).
        """
        if embeddings.shape != (len(chunk_ids), space.dim):
            raise ValueError(f"want {(len(chunk_ids), space.dim)} embeddings, got {embeddings.shape}")
        encoded = _encoded(space, embeddings)
        rows = max(1, STATEMENT_BYTES // (4 * space.dim))
        await self._conn.executemany(
            f"insert into {space.table} (tenant_id, chunk_id, generation_id, source_type, embedding)"  # noqa: S608 - a name made by code
            f" select $1, r.chunk_id, $2, $3, r.embedding from unnest($4::uuid[], $5::{space.storage}[])"
            " as r (chunk_id, embedding)",
            [
                (
                    self._ctx.tenant_id,
                    generation_id,
                    source_type,
                    chunk_ids[start : start + rows],
                    encoded[start : start + rows],
                )
                for start in range(0, len(chunk_ids), rows)
            ],
        )

    async def reuse(self, space: Space, text_hashes: list[bytes], *, coded: bool) -> dict[bytes, Known]:
        """What the tenant has for texts with these hashes, of any file, so that nothing is computed twice.

        Where passages are `coded`, only those that are.
        """
        rows = await self._conn.fetch(
            f"select distinct on (c.text_hash) c.text_hash, v.embedding, t.codes from chunks c"  # noqa: S608 - a name made by code
            f" join {space.table} v on v.tenant_id = $1 and v.chunk_id = c.id"
            " left join token_codes t on t.tenant_id = $1 and t.chunk_id = c.id"
            " where c.tenant_id = $1 and c.text_hash = any($2) and (t.codes is not null or $3 is not true)",
            self._ctx.tenant_id,
            text_hashes,
            coded,
        )
        return {
            row["text_hash"]: Known(row["embedding"].to_numpy().astype(np.float32), row["codes"] or b"") for row in rows
        }

    async def of_chunks(self, space: Space, chunk_ids: list[UUID]) -> dict[UUID, Vectors]:
        """The vectors of these passages, each of shape (space.dim,)."""
        rows = await self._conn.fetch(
            f"select chunk_id, embedding from {space.table}"  # noqa: S608 - a name made by code
            " where tenant_id = $1 and chunk_id = any($2)",
            self._ctx.tenant_id,
            chunk_ids,
        )
        return {row["chunk_id"]: row["embedding"].to_numpy().astype(np.float32) for row in rows}

    async def analyze(self, space: Space) -> None:
        """Refreshes the statistics of the tenant's partition if many rows have come since; a few milliseconds.

        Without them the planner scans the partition instead of using its index.
        """
        partition = await self._conn.fetchval(
            "select c.oid::regclass::text from pg_class c"  # noqa: S608 - a name made by code
            f" where c.oid = (select tableoid from {space.table} where tenant_id = $1 limit 1)"
            " and (c.reltuples < 0 or pg_stat_get_mod_since_analyze(c.oid) > 50 + c.reltuples / 10)",
            self._ctx.tenant_id,
        )
        if partition is not None:
            await self._conn.execute(f"analyze {partition}")


def _encoded(space: Space, embeddings: Vectors) -> list[_Encoded]:
    """All rows turned round at once: one by one it takes a tenth of the time of a bulk write."""
    single = space.storage == "vector"
    kind, number = (_EncodedVector, ">f4") if single else (_EncodedHalfVector, ">f2")
    data = embeddings.astype(number).tobytes()
    head, width = struct.pack(">HH", space.dim, 0), len(data) // max(1, len(embeddings))
    return [kind(head + data[start : start + width]) for start in range(0, len(data), width or 1)]
