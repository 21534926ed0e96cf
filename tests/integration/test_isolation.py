"""Row-level security does its part alone: no predicate of ours is used here, and each policy is shown to matter."""

from uuid import UUID

import asyncpg
import pytest

from internal.repositories import migrate
from tests.seeds import Seeded, seed
from tests.servers import Database

ROLES = (migrate.APP, migrate.WORKER, migrate.RELAY, migrate.DIRECTORY, migrate.OWNER)


@pytest.fixture(scope="module")
async def conn(module_database: Database):
    found = await asyncpg.connect(module_database.superuser)
    yield found
    await found.close()


@pytest.fixture(scope="module")
async def tenants(conn) -> tuple[Seeded, Seeded]:
    return await seed(conn), await seed(conn)


@pytest.fixture(scope="module")
async def tables(conn) -> list[str]:
    rows = await conn.fetch(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
        " and not relispartition and relname <> 'schema_migrations' order by relname"
    )
    return [row["relname"] for row in rows]


async def seen(conn, role: str, table: str, tenant: UUID | None, user: UUID | None) -> list[str] | None:
    """The rows of a table as text, as a role sees them; None where it has no right to look."""
    columns = await conn.fetch(
        "select a.attname from pg_attribute a where a.attrelid = $1::regclass and a.attnum > 0 and not a.attisdropped"
        " and has_column_privilege($2, a.attrelid, a.attnum, 'select') order by a.attnum",
        table,
        role,
    )
    if not columns:
        return None
    await conn.execute(
        "select set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true)",
        str(tenant or ""),
        str(user or ""),
    )
    await conn.execute(f"set local role {role}")
    names = ", ".join(row["attname"] for row in columns)
    rows = await conn.fetch(f"select ({names})::text as row from {table} order by 1" if "," in names
                            else f"select {names}::text as row from {table} order by 1")  # fmt: skip
    await conn.execute("reset role")
    return [row["row"] for row in rows]


async def test_every_table_is_seeded(conn, tables, tenants):
    for table in tables:
        assert await conn.fetchval(f"select count(*) from {table}") > 0, f"{table}: add a row in tests/seeds.py"


async def test_no_process_sees_another_tenant(conn, tables, tenants):
    first, second = tenants
    looked = 0
    for role in (migrate.APP, migrate.WORKER, migrate.RELAY):
        for table in tables:
            async with conn.transaction():
                rows = await seen(conn, role, table, second.tenant, second.owner)
            if rows is not None:
                looked += 1
                assert not [row for row in rows if first.canary in row or str(first.tenant) in row], (role, table)
    assert looked > 30


async def test_without_a_tenant_no_process_sees_anything(conn, tables, tenants):
    for role in (migrate.APP, migrate.WORKER, migrate.RELAY):
        for table in tables:
            if table in ("embedding_spaces", "processing"):
                continue
            async with conn.transaction():
                assert not await seen(conn, role, table, None, None), (role, table)


async def test_a_private_document_and_its_text_exist_for_their_owner_alone(conn, tenants):
    first, _ = tenants
    hidden = f"{first.canary} private"
    for table in ("documents", "chunks", "document_versions"):
        async with conn.transaction():
            assert any(hidden in row for row in await seen(conn, migrate.APP, table, first.tenant, first.owner))
        async with conn.transaction():
            rows = await seen(conn, migrate.APP, table, first.tenant, first.member)
        assert not any(hidden in row for row in rows)
        assert any(f"{first.canary} tenant" in row for row in rows)
    async with conn.transaction():
        rows = await seen(conn, migrate.APP, "tasks", first.tenant, first.member)
    assert any(str(first.shared) in row for row in rows)
    assert not any(str(first.private) in row for row in rows)


async def test_conversations_uploads_and_batches_exist_for_their_user_alone(conn, tenants):
    first, _ = tenants
    for table in (
        "conversations",
        "messages",
        "message_feedback",
        "idempotency_keys",
        "uploads",
        "upload_parts",
        "batches",
        "batch_items",
    ):
        async with conn.transaction():
            assert await seen(conn, migrate.APP, table, first.tenant, first.owner), table
        async with conn.transaction():
            assert await seen(conn, migrate.APP, table, first.tenant, first.member) == [], table


async def test_no_process_writes_into_another_tenant(conn, tables, tenants):
    """A row of the other tenant is copied under one's own eyes and refused by WITH CHECK."""
    first, second = tenants
    refused = 0
    for role in (migrate.APP, migrate.WORKER):
        for table in tables:
            if not await conn.fetchval("select has_table_privilege($1, $2, 'INSERT')", role, table):
                continue
            transaction = conn.transaction()
            await transaction.start()
            try:
                await conn.execute(f"create temp table copied on commit drop as select * from {table}")
                await conn.execute(f"grant select on copied to {role}")
                await conn.execute(
                    "select set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true)",
                    str(second.tenant),
                    str(second.owner),
                )
                await conn.execute(f"set local role {role}")
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                    await conn.execute(f"insert into {table} select * from copied where tenant_id = $1", first.tenant)
                refused += 1
            finally:
                await transaction.rollback()
    assert refused > 10


async def test_each_policy_matters(conn, tables, tenants):
    """Mutation: without any one policy, somebody sees something else than before."""
    first, _ = tenants
    policies = await conn.fetch(
        "select c.relname, p.polname from pg_policy p join pg_class c on c.oid = p.polrelid"
        " where not c.relispartition order by 1, 2"
    )
    assert len(policies) > len(tables)

    async def picture(table: str) -> list[tuple[str, list[str] | None]]:
        return [(role, await seen(conn, role, table, first.tenant, first.owner)) for role in ROLES]

    blind = []
    for policy in policies:
        async with conn.transaction():
            before = await picture(policy["relname"])
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(f"drop policy {policy['polname']} on {policy['relname']}")
        after = await picture(policy["relname"])
        await transaction.rollback()
        if before == after:
            blind.append(tuple(policy))
    assert blind == []
