"""deploy/postgres/roles.sql makes what the program's own bootstrap makes."""

import subprocess
from collections.abc import Generator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from dreamhub.accounts import find_binaries
from internal.repositories import migrate
from tests.servers import SPACE, Database, Servers, running_servers

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "postgres" / "roles.sql"
DATABASE = "dreamhub"
ROLES = """
select r.rolname, r.rolcanlogin, r.rolsuper, r.rolbypassrls, r.rolinherit, r.rolcreatedb, r.rolcreaterole,
    (select array_agg(s order by s) from pg_db_role_setting c, unnest(c.setconfig) s
        where c.setrole = r.oid) as settings,
    (select array_agg(format('%s %s %s', g.rolname, m.inherit_option, m.set_option) order by g.rolname)
        from pg_auth_members m join pg_roles g on g.oid = m.roleid where m.member = r.oid) as granted
from pg_roles r where r.rolname like 'dreamhub%' order by 1
"""
RIGHTS = """
select 'database' as kind, pg_get_userbyid(d.datdba) as owner,
    (select array_agg(a::text order by a::text) from unnest(d.datacl) a) as rights
from pg_database d where d.datname = current_database()
union all
select 'schema', pg_get_userbyid(n.nspowner), (select array_agg(a::text order by a::text) from unnest(n.nspacl) a)
from pg_namespace n where n.nspname = 'public'
union all
select 'extension', pg_get_userbyid(e.extowner), array[e.extname] from pg_extension e where e.extname = 'vector'
"""


async def facts(dsn: str) -> list[list[tuple]]:
    conn = await asyncpg.connect(dsn)
    try:
        return [[tuple(row.values()) for row in await conn.fetch(query)] for query in (ROLES, RIGHTS)]
    finally:
        await conn.close()


@pytest.fixture
def untouched() -> Generator[Servers]:
    """Roles belong to a whole server, so the script needs one of its own."""
    with running_servers() as found:
        yield found


async def test_the_script_equals_the_bootstrap(empty_database: Database, untouched: Servers):
    wanted = await facts(empty_database.superuser)
    assert len(wanted[0]) == len(migrate.LOGIN_ROLES) + 1

    run_script(untouched)
    assert await facts(untouched.superuser_dsn(DATABASE)) == wanted
    assert await migrate.migrate(untouched.dsn(migrate.OWNER, DATABASE), SPACE)
    conn = await asyncpg.connect(untouched.dsn(migrate.APP, DATABASE))
    try:
        assert await conn.fetch("select * from documents") == []
    finally:
        await conn.close()


def run_script(servers: Servers) -> None:
    passwords = [
        option
        for role in migrate.LOGIN_ROLES
        for option in (
            "-v",
            f"{role.removeprefix('dreamhub_')}={unquote(urlsplit(servers.dsn(role, DATABASE)).password or '')}",
        )
    ]
    psql = find_binaries().postgres / "bin" / "psql"
    subprocess.run(
        [psql, servers.superuser_dsn(), "-X", "-q", *passwords, "-f", SCRIPT],
        check=True,
        capture_output=True,
        timeout=60,
    )
