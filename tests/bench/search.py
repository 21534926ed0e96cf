"""Search under row-level security beside plain asyncpg, as ratios of one run: `python -m tests.bench.search`.

Tenants of Zipf sizes share one embedding space. Plain is a prepared statement with the same predicates, joins and
columns, sent by a role that passes row-level security; unbound is our own function called by the tables' owner, whose
policies are constant. Recall is against the exact ranking, computed here.
"""

import argparse
import asyncio
import sys
import time
from statistics import median
from typing import NamedTuple

import asyncpg
import msgspec
import numpy as np
import numpy.typing as npt
from pgvector.asyncpg import register_vector

from internal.repositories.spaces import create_space
from pkg.ctxutil import Context
from tests.bench.parts import RECALL_GOALS
from tests.library import SPACE, Library
from tests.servers import Database, Servers, borrowed_database, running_servers

Vectors = npt.NDArray[np.float32]

PER_DOCUMENT = 50
PLAIN = f"""
    select c.id, d.id, d.filename, d.source_type, c.text, c.page, c.heading, 1 - (v.embedding <=> $3) as score
    from {SPACE.table} v
    join chunks c on c.tenant_id = v.tenant_id and c.id = v.chunk_id
    join documents d on d.tenant_id = v.tenant_id and d.generation_id = v.generation_id
    where v.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2)
    order by v.embedding <=> $3 limit 10
"""
UNBOUND = f"""
    select * from {SPACE.function}($1, $2, $3, null, null, 10, 20, 20, 0, null, null, null, null, null, null, false)
"""


class Shelf(NamedTuple):
    """One tenant, its passages' texts and vectors."""

    ctx: Context
    texts: list[str]
    vectors: Vectors


async def bench(servers: Servers, total: int, tenants: int, queries: int) -> None:
    async with borrowed_database(servers) as database:
        library = await Library.open(database)
        rng = np.random.default_rng(3)
        shares = 1 / np.arange(1, tenants + 1)
        sizes = np.maximum(20, (total * shares / shares.sum()).astype(int))
        shelves = [await fill(library, rng, int(size)) for size in sizes]
        await library.owner.execute("vacuum analyze")
        for shelf in shelves:
            async with library.worker.tenant(shelf.ctx) as tx:
                await tx.vectors.analyze(SPACE)
        print(f"{sum(sizes)} passages, {tenants} tenants, the largest {sizes[0]}; milliseconds, one client")
        print("tenants    ours  plain  unbound   of plain  of unbound  recall@10")
        recalls = {
            name: await measure(name, library, database, chosen, max(1, queries // len(chosen)))
            for name, chosen in classes(shelves).items()
        }
        await hybrid(library, shelves, queries)
        recalls |= await in_half_precision(library, shelves, queries)
        await library.close()
    missed = [f"{name} {recall:.3f}" for name, recall in recalls.items() if recall < RECALL_GOALS[name.split()[0]]]
    if missed:
        sys.exit(f"recall@10 is too low: {', '.join(missed)}")


async def fill(library: Library, rng: np.random.Generator, size: int) -> Shelf:
    """Passages around a few centres, as real texts are; their words follow Zipf's law."""
    ctx = await library.tenant()
    centres = rng.standard_normal((max(4, size // 100), SPACE.dim))
    vectors = centres[rng.integers(len(centres), size=size)] + 0.7 * rng.standard_normal((size, SPACE.dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    texts = [" ".join(f"w{word}" for word in np.minimum(rng.zipf(1.3, 80), 20_000)) for _ in range(size)]
    for start in range(0, size, PER_DOCUMENT):
        part = slice(start, start + PER_DOCUMENT)
        await library.add(ctx, texts[part], name=f"{start}.txt", embeddings=vectors[part])
    return Shelf(ctx, texts, vectors)


def classes(shelves: list[Shelf]) -> dict[str, list[Shelf]]:
    """The largest, those around the median, the smallest."""
    middle = len(shelves) // 2
    return {"large": shelves[:2], "medium": shelves[middle - 4 : middle + 4], "small": shelves[-8:]}


async def measure(name: str, library: Library, database: Database, shelves: list[Shelf], each: int) -> float:
    """Vector searches by three ways in turn, so that what disturbs one disturbs all; answers recall@10.

    Raises AssertionError for an answer that is short.
    """
    # Through pools, as any server would; nothing but the statement goes over the wire.
    plain, unbound = await pool(database.backup), await pool(database.owner)
    rng = np.random.default_rng(5)
    times: dict[str, list[float]] = {"ours": [], "plain": [], "unbound": []}
    recalls: list[float] = []
    for shelf in shelves:
        ids = shelf.ctx.tenant_id, shelf.ctx.user_id
        for number in range(each + 3):
            near = shelf.vectors[rng.integers(len(shelf.texts))] + 0.04 * rng.standard_normal(SPACE.dim)
            query = (near / np.linalg.norm(near)).astype(np.float32)
            ways = {
                "ours": lambda: library.search(shelf.ctx, "", mode="vector", embedding=query),  # noqa: B023 - called here
                "plain": lambda: plain.fetch(PLAIN, *ids, query),  # noqa: B023 - called here
                "unbound": lambda: unbound.fetch(UNBOUND, *ids, query),  # noqa: B023 - called here
            }
            # Each comes first in its turn: the first finds the graph cold.
            for way in np.roll(list(ways), number):
                began = time.perf_counter()
                found = await ways[way]()
                if number >= 3:
                    times[way].append(time.perf_counter() - began)
                if way == "ours":
                    best = {shelf.texts[place] for place in np.argsort(-(shelf.vectors @ query))[:10]}
                    assert len(found) == 10
                    recalls.append(len(best & {hit.text for hit in found}) / len(best))
    ours, bare, free = (median(times[way]) * 1000 for way in ("ours", "plain", "unbound"))
    print(
        f"{name:>8} {ours:>6.2f} {bare:>6.2f} {free:>8.2f} {bare / ours:>9.2f} {free / ours:>11.2f}"
        f" {np.mean(recalls):>10.3f}"
    )
    await plain.close()
    await unbound.close()
    return float(np.mean(recalls))


async def in_half_precision(library: Library, shelves: list[Shelf], queries: int) -> dict[str, float]:
    """Recall of the same vectors in a space of half precision, by class, and the room that both take."""
    single = msgspec.structs.replace(SPACE, id=0)
    half = await create_space(library.owner, msgspec.structs.replace(single, half=True))
    await library.owner.execute(
        f"insert into {half.table} select tenant_id, chunk_id, generation_id, source_type, embedding::halfvec from"
        f" {SPACE.table}"
    )
    await library.owner.execute("vacuum analyze")
    for shelf in shelves:
        async with library.worker.tenant(shelf.ctx) as tx:
            await tx.vectors.analyze(half)
    found: dict[str, float] = {}
    rng = np.random.default_rng(7)
    for name, chosen in classes(shelves).items():
        recalls: list[float] = []
        times: list[float] = []
        for shelf in chosen:
            for _ in range(max(1, queries // len(chosen))):
                near = shelf.vectors[rng.integers(len(shelf.texts))] + 0.04 * rng.standard_normal(SPACE.dim)
                query = (near / np.linalg.norm(near)).astype(np.float32)
                began = time.perf_counter()
                hits = await library.search(shelf.ctx, "", mode="vector", embedding=query, space=half)
                times.append(time.perf_counter() - began)
                best = {shelf.texts[place] for place in np.argsort(-(shelf.vectors @ query))[:10]}
                recalls.append(len(best & {hit.text for hit in hits}) / len(best))
        found[f"{name} in half precision"] = float(np.mean(recalls))
        print(f"{name} in half precision: p50 {median(times) * 1000:.2f} ms, recall@10 {np.mean(recalls):.3f}")
    for space in (SPACE, half):
        room = await library.owner.fetchval(
            "select sum(pg_total_relation_size(inhrelid)) from pg_inherits where inhparent = $1::regclass", space.table
        )
        print(f"{space.storage}: {room / 2**20:.0f} MB with its indexes")
    return found


async def hybrid(library: Library, shelves: list[Shelf], queries: int) -> None:
    """Words and vectors together, on the largest and a small tenant."""
    rng = np.random.default_rng(6)
    for name, shelf in (("largest", shelves[0]), ("smallest", shelves[-1])):
        for mode in ("keyword", "hybrid"):
            times: list[float] = []
            for _ in range(queries):
                place = rng.integers(len(shelf.texts))
                query = " ".join(rng.choice(shelf.texts[place].split(), 8))
                began = time.perf_counter()
                hits = await library.search(shelf.ctx, query, mode=mode, embedding=shelf.vectors[place])
                times.append(time.perf_counter() - began)
                assert len(hits) == 10
            low, high = np.percentile(times, [50, 95]) * 1000
            print(f"{mode} search of the {name} tenant ({len(shelf.texts)}): p50 {low:.2f} ms, p95 {high:.2f} ms")


async def pool(dsn: str) -> asyncpg.Pool:
    settings = {"jit": "off", "hnsw.iterative_scan": "relaxed_order", "hnsw.ef_search": "100"}
    return await asyncpg.create_pool(dsn, min_size=1, max_size=1, init=register_vector, server_settings=settings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=12_000)
    parser.add_argument("--tenants", type=int, default=40)
    parser.add_argument("--queries", type=int, default=100)
    given = parser.parse_args()
    with running_servers() as running:
        asyncio.run(bench(running, given.passages, given.tenants, given.queries))
