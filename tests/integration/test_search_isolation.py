"""What lies beneath a search: policies without the function's own predicates, settings that end, and plans."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import suppress

import asyncpg
import pytest
from pgvector.asyncpg import register_vector

from internal.entities.search import Filters
from internal.repositories.search import Found
from internal.repositories.search_function import EXACT_CHUNKS, function_sql
from internal.repositories.store import Store, open_store
from pkg.ctxutil import Context
from tests.library import SPACE, Library, embed
from tests.servers import Database

TOUCHED = [
    "app.tenant_id",
    "app.user_id",
    "plan_cache_mode",
    "enable_seqscan",
    "jit",
    "hnsw.ef_search",
    "hnsw.iterative_scan",
]
CALL = "($1, $2, $3, $4, $5, 10, 100, 20, 50, null, null, null, null, null, null, false)"


@pytest.fixture(scope="module")
async def library(module_database: Database) -> AsyncGenerator[Library]:
    opened = await Library.open(module_database)
    yield opened
    await opened.close()


async def test_without_its_predicates_the_function_still_leaks_nothing(
    library: Library, module_database: Database
) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    member = await library.member(ctx.tenant_id)
    await library.add(ctx, ["shared canary words"])
    await library.add(ctx, ["private canary words"], visibility="private")
    await library.add(other, ["foreign canary words"])
    sql, grant = function_sql(SPACE)
    stripped = re.sub(r"\b\w+\.tenant_id = p_tenant", "true", sql)
    stripped = re.sub(r"\((d\.visibility = 'tenant') or d\.owner_id = p_user\)", "true", stripped)
    assert stripped.count("true") > sql.count("true") + 10
    await library.owner.execute(stripped.replace(SPACE.function, "search_stripped"))
    await library.owner.execute(grant.replace(SPACE.function, "search_stripped"))
    conn = await asyncpg.connect(module_database.app)
    await register_vector(conn)
    try:
        for user, expected in ((member, 1), (ctx, 2), (other, 1)):
            for mode in ("hybrid", "vector", "keyword"):
                terms = library.analyser.query(user.tenant_id, "canary words")
                rows = await conn.fetch(
                    f"select * from search_stripped{CALL}",
                    user.tenant_id,
                    user.user_id,
                    None if mode == "keyword" else embed("canary words"),
                    None if mode == "vector" else terms.terms,
                    None if mode == "vector" else terms.counts,
                )
                assert len(rows) == expected
                assert all(("foreign" in row["text"]) == (user is other) for row in rows)
    finally:
        await conn.close()
        await library.owner.execute("drop function search_stripped")


async def test_the_definer_gives_ids_of_the_set_tenant_only(library: Library, module_database: Database) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    mine = await library.add(ctx, ["walrus"])
    await library.add(other, ["walrus"])
    terms = [library.analyser.query(one.tenant_id, "walrus").terms[0] for one in (ctx, other)]
    query = f"{{{terms[0]}:1,{terms[1]}:1}}/1000000000"
    conn = await asyncpg.connect(module_database.app)
    try:
        ask = "select chunk_id from keyword_candidates_v1($1, $2::text::sparsevec)"
        assert await conn.fetch(ask, terms, query) == []
        async with conn.transaction():
            await conn.execute("select set_config('app.tenant_id', $1, true)", str(ctx.tenant_id))
            assert [row[0] for row in await conn.fetch(ask, terms, query)] == mine.chunks
    finally:
        await conn.close()


async def test_nothing_stays_set_after_a_search(library: Library, module_database: Database) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["settings end"])
    store = await open_store(module_database.app, pool_max=1)
    try:
        before = await _settings(store)
        assert before["app.tenant_id"] == before["app.user_id"] == ""
        assert (await _search(store, ctx, library)).hits
        assert await _settings(store) == before
    finally:
        await store.close()


async def test_nothing_stays_set_after_a_cancelled_search(library: Library, module_database: Database) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["settings end"])
    store = await open_store(module_database.app, pool_max=1)
    try:
        before = await _settings(store)
        async with library.owner.transaction():
            # The search sets its tenant first and then waits for this lock.
            await library.owner.execute("lock table tenant_statistics in access exclusive mode")
            running = asyncio.create_task(_search(store, ctx, library))
            await _until_waiting(library)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            assert running.cancelled()
            assert await _settings(store) == before
        assert (await _search(store, ctx, library)).hits
    finally:
        await store.close()


async def test_plans_use_the_indexes_of_one_partition(library: Library, module_database: Database) -> None:
    ctx = await library.tenant()
    await library.add(ctx, [f"passage number{n} about topic{n % 7}" for n in range(EXACT_CHUNKS + 200)])
    await library.owner.execute("analyze chunk_terms, documents, chunks")
    async with library.worker.tenant(ctx) as tx:
        await tx.vectors.analyze(SPACE)
    plans = await _plans(library, module_database, ctx, "topic3 number500")
    partitions = set(re.findall(rf"\bon ({SPACE.table}_\d+) ", plans))
    assert len(partitions) == 1
    assert "Bitmap Index Scan on chunk_terms_terms" in plans
    assert re.search(rf"Index Scan using {SPACE.table}_\d+_hnsw", plans)
    assert "Index Scan using chunks_pkey" in plans
    assert not re.search(r"Seq Scan on (chunk_terms|vectors_|chunks|documents)", plans)


async def _plans(library: Library, database: Database, ctx: Context, query: str) -> str:
    """What auto_explain tells of every statement inside one search of the application's role."""
    conn = await asyncpg.connect(database.superuser)
    lines: list[str] = []
    try:
        await register_vector(conn)
        conn.add_log_listener(lambda _conn, message: lines.append(str(message)))
        await conn.execute(
            "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
            " set client_min_messages = log; set role dreamhub_app"
        )
        terms = library.analyser.query(ctx.tenant_id, query)
        rows = await conn.fetch(
            f"select * from {SPACE.function}{CALL}",
            ctx.tenant_id,
            ctx.user_id,
            embed(query),
            terms.terms,
            terms.counts,
        )
        assert len(rows) == 10
    finally:
        await conn.close()
    await asyncio.sleep(0)
    return "\n".join(lines)


async def _search(store: Store, ctx: Context, library: Library) -> Found:
    return await store.search(
        ctx,
        SPACE,
        embedding=embed("settings"),
        terms=library.analyser.query(ctx.tenant_id, "settings"),
        filters=Filters(),
        k=10,
    )


async def _settings(store: Store) -> dict[str, str]:
    """Every setting that a search touches, on the pool's only connection."""
    async with store._connection() as conn:
        assert not conn.is_in_transaction()
        await conn.fetchval("select '[1]'::vector <-> '[1]'")  # loads pgvector, which then knows its settings
        rows = await conn.fetch(
            "select name, coalesce(current_setting(name, true), '') as setting from unnest($1::text[]) as name", TOUCHED
        )
    return {row["name"]: row["setting"] for row in rows}


async def _until_waiting(library: Library) -> None:
    """Returns when a search waits for the lock."""
    for _ in range(500):
        waiting = await library.owner.fetchval(
            "select count(*) from pg_locks where relation = 'tenant_statistics'::regclass and not granted"
        )
        if waiting:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the search never waited")
