"""Tenant-safe bulk writes of vectors beside raw COPY, as ratios of one run: `python -m tests.bench.bulk_write`.

Ours goes as the worker through row-level security, the partitioned table and its foreign key. Raw COPY goes past all of
it as the owner, into a plain table with the same columns and primary key; for the second part both have an HNSW index.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pgvector import Vector
from pgvector.asyncpg import register_vector

from internal.entities.ids import new_id
from internal.entities.search import Space
from internal.repositories.spaces import PARTITIONS, create_space
from pkg.ctxutil import Context
from tests.library import Library
from tests.servers import Servers, borrowed_database, running_servers

Write = Callable[[list[UUID], npt.NDArray[np.float32]], Awaitable[None]]
GOALS = {384: 0.75, 768: 0.75, 1536: 0.6}


async def compare_all(servers: Servers, rows: int, batch: int, rounds: int, indexed_rows: int) -> None:
    async with borrowed_database(servers) as database:
        library = await Library.open(database)
        await register_vector(library.owner)
        print(f"{'dim':>5} {'HNSW':>5} {'ours/s':>8} {'COPY/s':>8} {'ratio':>6} {'goal':>5}")
        for dim, goal in GOALS.items():
            await compare(library, dim, (rows, batch, rounds), indexed=False, goal=goal)
        await compare(library, 384, (indexed_rows, batch, 1), indexed=True, goal=0.9)
        await library.close()


async def compare(library: Library, dim: int, sizes: tuple[int, int, int], *, indexed: bool, goal: float) -> None:
    """Both methods in turn, `rounds` times, each with fresh rows; prints medians."""
    rows, batch, rounds = sizes
    space = await create_space(library.owner, Space("bench", str(indexed), dim))
    if not indexed:
        for part in range(PARTITIONS):
            await library.owner.execute(f"drop index {space.table}_{part}_hnsw")
    plain = f"plain_{space.id}"
    await library.owner.execute(
        f"create table {plain} (tenant_id uuid not null, chunk_id uuid not null, generation_id uuid not null,"
        f" source_type text not null, embedding vector({dim}) not null, primary key (tenant_id, chunk_id));"
        f" alter table {plain} alter column embedding set storage plain"
    )
    if indexed:
        await library.owner.execute(f"create index on {plain} using hnsw (embedding vector_cosine_ops)")
    ctx = await library.tenant()
    generation = new_id()

    async def ours(ids: list[UUID], vectors: npt.NDArray[np.float32]) -> None:
        async with library.worker.tenant(ctx) as tx:
            await tx.vectors.add(space, generation, "document", ids, vectors)

    async def copy(ids: list[UUID], vectors: npt.NDArray[np.float32]) -> None:
        await library.owner.copy_records_to_table(
            plain,
            records=[
                (ctx.tenant_id, chunk, generation, "document", Vector(row))
                for chunk, row in zip(ids, vectors, strict=True)
            ],
        )

    rates: dict[str, list[float]] = {"ours": [], "copy": []}
    for _ in range(rounds):
        ids = await chunks(library, ctx, rows)
        vectors = np.random.default_rng(1).standard_normal((rows, dim)).astype(np.float32)
        for name, write in (("ours", ours), ("copy", copy)):
            rates[name].append(await rate(write, ids, vectors, batch))
    own, raw = median(rates["ours"]), median(rates["copy"])
    print(f"{dim:>5} {'yes' if indexed else 'no':>5} {own:>8.0f} {raw:>8.0f} {own / raw:>6.2f} {goal:>5}")


async def rate(write: Write, ids: list[UUID], vectors: npt.NDArray[np.float32], batch: int) -> float:
    """Rows a second, each batch committed."""
    started = time.perf_counter()
    for start in range(0, len(ids), batch):
        await write(ids[start : start + batch], vectors[start : start + batch])
    return len(ids) / (time.perf_counter() - started)


async def chunks(library: Library, ctx: Context, rows: int) -> list[UUID]:
    """Passages for the vectors to belong to; not part of the measurement."""
    entry = await library.add(ctx, [])
    ids = [new_id() for _ in range(rows)]
    await library.owner.execute(
        "insert into chunks (tenant_id, id, content_id, generation_id, ordinal, hash, text_hash, text, tokens)"
        " select $1, c, $2, $3, 0, sha256(c::text::bytea), sha256(c::text::bytea), '', 1 from unnest($4::uuid[]) as c",
        ctx.tenant_id,
        entry.content,
        entry.generation,
        ids,
    )
    return ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--indexed-rows", type=int, default=2000)
    given = parser.parse_args()
    with running_servers() as running:
        asyncio.run(compare_all(running, given.rows, given.batch, given.rounds, given.indexed_rows))
