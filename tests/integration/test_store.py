"""The one door: what a transaction sees, and that nothing of it stays on the connection."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from internal.entities.ids import new_id
from internal.repositories.store import open_store
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role
from tests.servers import Database

SETTINGS = "select current_setting('app.tenant_id', true), current_setting('app.user_id', true)"


def context(tenant: UUID, user: UUID | None = None, role: Role = Role.OWNER) -> Context:
    return Context(tenant_id=tenant, user_id=user or new_id(), role=role, request_id="test", trace_id="0" * 32)


@pytest.fixture
async def tenants(database: Database) -> tuple[UUID, UUID]:
    conn = await asyncpg.connect(database.superuser)
    ids = (new_id(), new_id())
    for number, tenant in enumerate(ids):
        await conn.execute("insert into tenants (id, name) values ($1, $2)", tenant, f"tenant {number}")
    await conn.close()
    return ids


@pytest.fixture
async def store(database: Database):
    found = await open_store(database.app, pool_min=1, pool_max=1)
    yield found
    await found.close()


async def leftovers(store) -> tuple[str, str]:
    """What the pool's only connection still has set."""
    async with store._pool.acquire() as conn:
        row = await conn.fetchrow(SETTINGS)
        assert not conn.is_in_transaction()
        return (row[0] or "", row[1] or "")


async def test_a_tenant_sees_its_own_rows_and_nothing_else(store, tenants):
    first, second = context(tenants[0]), context(tenants[1])
    async with store.tenant(first) as tx:
        made = await tx.collections.add("contracts")
    async with store.tenant(second) as tx:
        assert await tx.collections.list(limit=10, after=None) == []
        with pytest.raises(AppError) as error:
            await tx.collections.get(made.id)
    assert error.value.code == Code.COLLECTION_NOT_FOUND
    async with store.tenant(first) as tx:
        assert [item.name for item in await tx.collections.list(limit=10, after=None)] == ["contracts"]


async def test_nothing_stays_after_commit(store, tenants):
    async with store.tenant(context(tenants[0])) as tx:
        await tx.collections.add("one")
    assert await leftovers(store) == ("", "")


async def test_nothing_stays_and_nothing_is_written_after_an_error(store, tenants):
    ctx = context(tenants[0])
    with pytest.raises(ZeroDivisionError):
        async with store.tenant(ctx) as tx:
            await tx.collections.add("one")
            raise ZeroDivisionError
    assert await leftovers(store) == ("", "")
    async with store.tenant(ctx) as tx:
        assert await tx.collections.list(limit=10, after=None) == []


async def test_nothing_stays_after_a_request_is_cancelled_in_the_middle_of_a_query(store, tenants):
    started = asyncio.Event()

    async def slow() -> None:
        async with store.tenant(context(tenants[0])) as tx:
            await tx.collections.add("cancelled")
            started.set()
            await tx._conn.execute("select pg_sleep(30)")

    task = asyncio.create_task(slow())
    await started.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await leftovers(store) == ("", "")
    async with store.tenant(context(tenants[1])) as tx:
        assert await tx.collections.list(limit=10, after=None) == []
    async with store.tenant(context(tenants[0])) as tx:
        assert await tx.collections.list(limit=10, after=None) == []


async def test_many_cancelled_requests_never_show_another_tenant(database, tenants):
    store = await open_store(database.app, pool_min=2, pool_max=4)
    names = dict(zip(tenants, ("first", "second"), strict=True))
    for tenant, name in names.items():
        async with store.tenant(context(tenant)) as tx:
            await tx.collections.add(name)

    async def look(tenant: UUID, patience: float) -> list[str]:
        async with asyncio.timeout(patience), store.tenant(context(tenant)) as tx:
            found = [item.name for item in await tx.collections.list(limit=10, after=None)]
            await tx._conn.execute("select pg_sleep(0.002)")
            return found

    requests = [look(tenants[number % 2], 0.001 if number % 3 else 5) for number in range(300)]
    results = await asyncio.gather(*requests, return_exceptions=True)
    seen = [(tenants[number % 2], found) for number, found in enumerate(results) if isinstance(found, list)]
    assert len(seen) >= 100
    assert all(found == [names[tenant]] for tenant, found in seen)
    await store.close()


async def test_without_a_tenant_every_query_fails_closed(database, tenants):
    for dsn in (database.app, database.worker):
        conn = await asyncpg.connect(dsn)
        assert await conn.fetch("select * from collections") == []
        assert await conn.fetch("select * from tenants") == []
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute(
                "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id,"
                " trace_id, max_retries) values ($1, $2, 'x', 1, 'default', $2, 'owner', '', '', 1)",
                tenants[0],
                new_id(),
            )
        await conn.close()


async def test_a_role_that_row_level_security_does_not_bind_is_refused(database):
    for dsn in (database.superuser, database.backup):
        with pytest.raises(AppError, match="bypass"):
            await open_store(dsn)


async def test_a_database_that_is_away_is_named_as_such(database):
    store = await open_store(database.app, pool_min=0, pool_max=1)
    admin = await asyncpg.connect(database.superuser)
    with pytest.raises(AppError) as error:
        async with store.tenant(context(new_id())) as tx:
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where usename = 'dreamhub_app' and datname = $1",
                database.name,
            )
            await tx.collections.list(limit=1, after=None)
    assert error.value.code == Code.DATABASE_UNAVAILABLE
    async with store.tenant(context(new_id())) as tx:
        assert await tx.collections.list(limit=1, after=None) == []
    await admin.close()
    await store.close()
