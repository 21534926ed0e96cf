"""Vectors in their spaces: bulk writes, reuse, statistics, and spaces too wide for `vector`."""

from collections.abc import AsyncGenerator

import asyncpg
import msgspec
import numpy as np
import pytest

from internal.entities.documents import Chunk
from internal.entities.ids import new_id
from internal.entities.parsed import Location
from internal.entities.search import Space
from internal.repositories.spaces import PARTITIONS, create_space, find_space
from tests.library import SPACE, Library, text_hash
from tests.servers import Database


@pytest.fixture(scope="module")
async def library(module_database: Database) -> AsyncGenerator[Library]:
    opened = await Library.open(module_database)
    yield opened
    await opened.close()


async def test_a_chunk_is_written_once(library: Library) -> None:
    ctx = await library.tenant()
    entry = await library.add(ctx, ["one"])
    chunk = Chunk(
        id=new_id(), ordinal=9, hash=bytes(32), text_hash=bytes(32), text="two", tokens=1, location=Location(page=1)
    )
    async with library.worker.tenant(ctx) as tx:
        assert await tx.chunks.add(entry.content, entry.generation, [chunk]) == {chunk.id}
    again = msgspec.structs.replace(chunk, text="three")
    async with library.worker.tenant(ctx) as tx:
        assert await tx.chunks.add(entry.content, entry.generation, [again]) == set()
        assert [found.text for found in await tx.chunks.list(entry.generation, limit=9, after=8)] == ["two"]


async def test_wrong_shapes_are_refused(library: Library) -> None:
    ctx = await library.tenant()
    async with library.worker.tenant(ctx) as tx:
        with pytest.raises(ValueError, match="want"):
            await tx.vectors.add(SPACE, new_id(), "document", [new_id()], np.zeros((2, SPACE.dim), np.float32))
        with pytest.raises(ValueError, match="want"):
            await tx.vectors.add(SPACE, new_id(), "document", [new_id()], np.zeros((1, 8), np.float32))
        await tx.vectors.add(SPACE, new_id(), "document", [], np.zeros((0, SPACE.dim), np.float32))


async def test_vectors_are_reused_within_the_tenant_only(library: Library) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    await library.add(ctx, ["a known text", "a known text"])
    hashes = [text_hash("a known text"), text_hash("an unknown text")]
    async with library.worker.tenant(ctx) as tx:
        assert list(await tx.vectors.reuse(SPACE, hashes, coded=False)) == hashes[:1]
    async with library.worker.tenant(other) as tx:
        assert await tx.vectors.reuse(SPACE, hashes, coded=False) == {}


async def test_the_worker_may_refresh_statistics(library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, [f"text {n}" for n in range(80)])
    async with library.worker.tenant(ctx) as tx:
        await tx.vectors.analyze(SPACE)
    rows = await library.owner.fetchval(
        f"select reltuples from pg_class where oid = (select tableoid from {SPACE.table} where tenant_id = $1 limit 1)",
        ctx.tenant_id,
    )
    assert rows >= 80


async def test_a_partition_gives_nothing_by_its_own_name(library: Library, module_database: Database) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["text"])
    for dsn in (module_database.app, module_database.worker):
        conn = await asyncpg.connect(dsn)
        try:
            await conn.execute("select set_config('app.tenant_id', $1, false)", str(ctx.tenant_id))
            for part in range(PARTITIONS):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await conn.fetch(f"select chunk_id from {SPACE.table}_{part}")
        finally:
            await conn.close()


@pytest.mark.parametrize("dim", [2500, 4200])
async def test_wide_spaces_are_half_precision(library: Library, dim: int) -> None:
    """2,500 dimensions are indexed, 4,200 are searched exactly."""
    space = await create_space(library.owner, Space("wide", "1", dim))
    assert await create_space(library.owner, Space("wide", "1", dim)) == space
    assert space.storage == "halfvec"
    ctx = await library.tenant()
    entry = await library.add(ctx, ["north wind", "south sea"], space=space)
    hits = await library.search(ctx, "north wind", space=space)
    assert hits[0].text == "north wind"
    assert hits[0].similarity == pytest.approx(1, abs=1e-2)
    async with library.worker.tenant(ctx) as tx:
        assert set(await tx.vectors.reuse(space, [text_hash("north wind")], coded=False)) == {text_hash("north wind")}
    indexes = await library.owner.fetchval(
        "select count(*) from pg_indexes where tablename like $1 and indexdef like '%hnsw%'", f"{space.table}\\_%"
    )
    assert indexes == (PARTITIONS if dim <= 4000 else 0)
    assert len(entry.chunks) == 2


async def test_a_model_may_be_kept_in_either_precision(library: Library) -> None:
    """Two spaces, which know nothing of each other's vectors."""
    single = await create_space(library.owner, Space("either", "1", 64))
    half = await create_space(library.owner, Space("either", "1", 64, half=True))
    assert (single.storage, half.storage) == ("vector", "halfvec")
    assert single.id != half.id
    assert await find_space(library.owner, Space("either", "1", 64, half=True)) == half
    assert await find_space(library.owner, Space("either", "1", 64)) == single
    ctx = await library.tenant()
    texts = [f"north wind {number}" for number in range(30)]
    await library.add(ctx, texts, space=half)
    for mode in ("hybrid", "vector"):
        hits = await library.search(ctx, "north wind 7", space=half, mode=mode)
        assert hits[0].text == "north wind 7"
    assert hits[0].similarity == pytest.approx(1, abs=1e-2)
    assert await library.search(ctx, "north wind 7", space=single, mode="vector") == []
    async with library.worker.tenant(ctx) as tx:
        known = await tx.vectors.of_chunks(half, [hit.chunk_id for hit in hits])
        assert {vector.dtype for vector in known.values()} == {np.dtype(np.float32)}
        await tx.vectors.analyze(half)


async def test_vectors_and_terms_go_with_their_chunks(library: Library) -> None:
    ctx = await library.tenant()
    first = await library.add(ctx, ["stays", "goes"])
    second = await library.add(ctx, ["goes with its content"])
    async with library.worker.tenant(ctx) as tx:
        assert await tx.chunks.remove(first.generation, limit=1) == 1
    await library.owner.execute(
        "with d as (delete from documents where tenant_id = $1 and id = $2)"
        " delete from contents where tenant_id = $1 and id = $3",
        ctx.tenant_id,
        second.document,
        second.content,
    )
    for table in ("chunks", "chunk_terms", SPACE.table):
        left = await library.owner.fetchval(f"select count(*) from {table} where tenant_id = $1", ctx.tenant_id)
        assert left == 1, table
