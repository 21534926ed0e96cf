"""The database's own catalogue says that no table, key, view or function opens a way around the tenant."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from internal.repositories import migrate
from tests.servers import Database, Servers, borrowed_database, running_servers

WITHOUT_TENANT = {"schema_migrations", "embedding_spaces", "users", "tenants", "watch", "processing"}
PROCESSES = (migrate.APP, migrate.WORKER, migrate.RELAY)
SECURITY_PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"


@pytest.fixture(scope="module")
async def conn(module_database: Database):
    found = await asyncpg.connect(module_database.superuser)
    yield found
    await found.close()


async def test_every_table_names_its_tenant_or_is_allowed_not_to(conn):
    rows = await conn.fetch(
        "select c.relname, exists (select 1 from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id'"
        " and a.attnotnull) as tenant from pg_class c"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')"
    )
    assert {row["relname"] for row in rows if not row["tenant"]} == WITHOUT_TENANT


async def test_every_table_has_forced_row_level_security_and_a_policy(conn):
    rows = await conn.fetch(
        "select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')"
        " and c.relname <> 'schema_migrations' and not (c.relrowsecurity and c.relforcerowsecurity"
        " and exists (select 1 from pg_policy p where p.polrelid = c.oid))"
    )
    assert [row["relname"] for row in rows] == []


async def test_every_key_of_a_tenant_table_begins_with_the_tenant(conn):
    rows = await conn.fetch(
        "select c.relname, i.indexrelid::regclass::text as name from pg_index i join pg_class c on c.oid = i.indrelid"
        " join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]"
        " where c.relnamespace = 'public'::regnamespace and i.indisunique and a.attname <> 'tenant_id'"
        " and c.relname <> all($1)",
        list(WITHOUT_TENANT),
    )
    assert [tuple(row) for row in rows] == []


async def test_every_reference_between_tenant_tables_carries_the_tenant(conn):
    rows = await conn.fetch(
        "select k.conname, c.relname from pg_constraint k join pg_class c on c.oid = k.conrelid"
        " join pg_attribute a on a.attrelid = c.oid and a.attnum = k.conkey[1]"
        " join pg_class f on f.oid = k.confrelid"
        " where k.contype = 'f' and c.relnamespace = 'public'::regnamespace and a.attname <> 'tenant_id'"
        " and f.relname <> all($1)",
        list(WITHOUT_TENANT),
    )
    assert [tuple(row) for row in rows] == []


async def test_views_show_what_their_reader_may_see(conn):
    rows = await conn.fetch(
        "select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and (c.relkind = 'm'"
        " or (c.relkind = 'v' and not coalesce(c.reloptions @> array['security_invoker=true'], false)))"
    )
    assert [row["relname"] for row in rows] == []


async def test_definers_belong_to_the_directory_and_pin_their_path(conn):
    rows = await conn.fetch(
        "select p.proname, p.proowner::regrole::text as owner, p.proconfig, p.proacl::text[] as acl from pg_proc p"
        " where p.pronamespace = 'public'::regnamespace and p.prosecdef"
    )
    assert rows
    for row in rows:
        assert row["owner"] == migrate.DIRECTORY, row["proname"]
        assert any(item.startswith("search_path=pg_catalog") for item in row["proconfig"]), row["proname"]
        assert row["acl"] is not None and not any(item.startswith("=") for item in row["acl"]), row["proname"]
        assert row["proname"][-3:-1] == "_v", f"{row['proname']} needs a version: old and new code run side by side"


async def test_login_roles_own_nothing_and_can_not_bypass(conn):
    rows = await conn.fetch(
        "select rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolinherit from pg_roles"
        " where rolname like 'dreamhub_%'"
    )
    found = {row["rolname"]: row for row in rows}
    assert set(found) == {*migrate.LOGIN_ROLES, migrate.DIRECTORY}
    for name, row in found.items():
        assert not row["rolsuper"] and not row["rolcreaterole"] and not row["rolcreatedb"], name
        assert row["rolbypassrls"] == (name == migrate.BACKUP), name
    owned = await conn.fetch("select relname from pg_class where relowner = any($1::regrole[])", list(PROCESSES))
    assert owned == []


async def test_processes_have_no_dangerous_rights(conn):
    for role in PROCESSES:
        for right in ("TRUNCATE", "REFERENCES", "TRIGGER"):
            rows = await conn.fetch(
                "select relname from pg_class where relnamespace = 'public'::regnamespace"
                " and relkind in ('r', 'p', 'v') and has_table_privilege($1, oid, $2)",
                role,
                right,
            )
            assert [row["relname"] for row in rows] == [], (role, right)
        assert not await conn.fetchval("select has_schema_privilege($1, 'public', 'CREATE')", role)
        for right in ("CREATE", "TEMP"):
            assert not await conn.fetchval("select has_database_privilege($1, current_database(), $2)", role, right)


async def test_partitions_can_not_be_named(conn):
    rows = await conn.fetch(
        "select c.relname, r.rolname from pg_class c, pg_roles r where c.relispartition and c.relkind = 'r'"
        " and r.rolname = any($1) and (has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE'))",
        list(PROCESSES),
    )
    assert [tuple(row) for row in rows] == []


async def test_the_matrix_in_the_documentation_is_the_database(conn):
    """`PYTHONPATH=.:cmd python -m tests.integration.test_catalogue` writes it anew."""
    before, written, after = parts(SECURITY_PAGE.read_text(encoding="utf-8"))
    assert before and after
    assert written.strip() == await matrix(conn)


async def matrix(conn: asyncpg.Connection) -> str:
    """Role × table × rights × policy as a Markdown table; partitions have none and are left out."""
    rows = await conn.fetch(
        "select r.rolname, c.relname,"
        " array(select lower(right_name) || case when has_table_privilege(r.oid, c.oid, right_name) then '' else"
        "   ' (' || (select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a"
        "   where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        "   and has_column_privilege(r.oid, c.oid, a.attnum, right_name)) || ')' end"
        "   from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) right_name"
        "   where case right_name when 'DELETE' then has_table_privilege(r.oid, c.oid, right_name)"
        "   else has_any_column_privilege(r.oid, c.oid, right_name) end) as rights,"
        " array(select p.polname || ': ' || coalesce(pg_get_expr(p.polqual, p.polrelid), 'none')"
        "   || case when p.polwithcheck is null then '' else ' / ' || pg_get_expr(p.polwithcheck, p.polrelid) end"
        "   from pg_policy p where p.polrelid = c.oid and r.oid = any(p.polroles) order by p.polname) as policies"
        " from pg_class c cross join pg_roles r"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition"
        " and r.rolname = any($1) order by c.relname, r.rolname",
        [*PROCESSES, migrate.DIRECTORY],
    )
    lines = ["| table | role | rights | policies: using / with check |", "|---|---|---|---|"]
    for row in rows:
        if row["rights"] or row["policies"]:
            policies = "<br>".join(f"`{' '.join(item.split())}`" for item in row["policies"]).replace("|", "\\|")
            rights = ", ".join(row["rights"])
            lines.append(f"| {row['relname']} | {row['rolname']} | {rights} | {policies or '—'} |")
    return "\n".join(lines)


def parts(page: str) -> tuple[str, str, str]:
    """What stands before, between and after the two marks."""
    before, _, rest = page.partition(BEGIN)
    written, _, after = rest.partition(END)
    return before, written, after


async def rewrite(servers: Servers) -> None:
    """Puts the matrix of a migrated database into the documentation."""
    async with borrowed_database(servers) as database:
        conn = await asyncpg.connect(database.superuser)
        before, _, after = parts(SECURITY_PAGE.read_text(encoding="utf-8"))
        SECURITY_PAGE.write_text(f"{before}{BEGIN}\n{await matrix(conn)}\n{END}{after}", encoding="utf-8")
        await conn.close()


if __name__ == "__main__":
    with running_servers() as running:
        asyncio.run(rewrite(running))
