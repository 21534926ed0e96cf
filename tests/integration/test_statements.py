"""Every statement of the repositories fits the migrated schema, its role's rights, and its transaction's tenant.

The planner says which rows a statement looks at: on each tenant table it must be told the tenant. A regular
expression over the text would believe a `tenant_id` that stands anywhere.
"""

import json
import re
from collections.abc import Generator
from typing import Any

import asyncpg
import pytest

from internal.repositories import migrate
from tests.servers import Database
from tests.statements import Statement, statements

SESSION = {"begin", "begin;", "commit", "rollback", "analyze", "set"}
"""First words of what isn't planned."""
SETTINGS = re.compile(r"set local (?:app\.tenant_id|app\.user_id|plan_cache_mode) = [\w'-]+")
ALL = [item for item in statements() if item.sql.split()[0] not in SESSION]

RELAYS = {"LedgerRepository", "NewsLine", "WatchRepository"}
WORKERS = {
    "BatchRepository.complete",
    "BatchRepository.refuse",
    "BatchRepository.take",
    "BatchWorkRepository",
    "ChunkRepository.add",
    "ChunkRepository.hashes",
    "ChunkRepository.remove",
    "ChunkRepository.size",
    "CollectionRepository.ensure",
    "ContentRepository.condemn",
    "ContentRepository.ensure",
    "ContentRepository.find",
    "ContentRepository.find_by_digest",
    "ContentRepository.hold",
    "ContentRepository.publish",
    "ContentRepository.remove",
    "ContentRepository.unpublish",
    "DocumentRepository.add",
    "DocumentRepository.find_own",
    "DocumentRepository.get",
    "DocumentRepository.lock",
    "DocumentRepository.publish",
    "DocumentRepository.remove",
    "GenerationRepository",
    "LedgerRepository.claim",
    "LedgerRepository.depth",
    "LedgerRepository.end",
    "LedgerRepository.wake_relay",
    "LexiconRepository",
    "MemoryRepository.add",
    "MemoryRepository.begin",
    "MemoryRepository.find",
    "MemoryRepository.finish",
    "MemoryRepository.lock",
    "MemoryRepository.supersede",
    "MessageRepository.since",
    "ObjectRepository",
    "OutboxRepository",
    "ProcessingRepository",
    "RoomRepository",
    "TaskBatchRepository.retry",
    "TaskRepository._insert",
    "TaskRepository.cancel",
    "TaskRepository.cancel_for_document",
    "TaskRepository.cancel_queued",
    "TaskRepository.fence",
    "TaskRepository.heartbeat",
    "TaskRepository.payload",
    "TaskRepository.progress",
    "UploadRepository.end_expired",
    "UploadRepository.objects",
    "UploadRepository.remove",
    "TokenCodeRepository.add",
    "VectorRepository",
    "VersionRepository._between",
    "VersionRepository.contents",
    "VersionRepository.is_overtaken",
    "VersionRepository.switch",
}
BOTH = {
    "BatchRepository.complete",
    "BatchRepository.refuse",
    "BatchRepository.take",
    "CollectionRepository.ensure",
    "ContentRepository.ensure",
    "ContentRepository.find_by_digest",
    "ContentRepository.find",
    "ContentRepository.hold",
    "DocumentRepository.add",
    "DocumentRepository.find_own",
    "DocumentRepository.get",
    "DocumentRepository.lock",
    "DocumentRepository.remove",
    "LedgerRepository.depth",
    "MemoryRepository.find",
    "MemoryRepository.finish",
    "MemoryRepository.lock",
    "MessageRepository.since",
    "OutboxRepository",
    "RoomRepository",
    "TaskBatchRepository.retry",
    "TaskRepository._insert",
    "TaskRepository.cancel",
    "TaskRepository.cancel_for_document",
    "TaskRepository.cancel_queued",
    "UploadRepository.objects",
    "UploadRepository.remove",
    "VersionRepository.contents",
}
"""The application uses these too; whatever isn't named here is the application's."""
EVERYONES = {"open_store", "Store.ping", "find_space"}

PLAN = """
create function plan_of(statement text) returns json language plpgsql as $$
declare plan json;
begin
    execute 'explain (generic_plan, verbose, format json) ' || statement into plan;
    return plan;
end $$;
grant execute on function plan_of(text) to public;
"""
TOLD_THE_TENANT = re.compile(r"\(*(\w+\.)?tenant_id = (?:\$\d+|(?P<other>\w+)\.tenant_id)\)*")
TOLD_ITSELF = re.compile(r"\(*(\w+\.)?id = \$1\)*")


@pytest.fixture(scope="module")
async def conn(module_database: Database):
    found = await asyncpg.connect(module_database.superuser)
    await found.execute(PLAN)
    yield found
    await found.close()


@pytest.fixture(scope="module")
async def tenant_tables(conn) -> set[str]:
    rows = await conn.fetch(
        "select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')"
    )
    return {row["relname"] for row in rows}


def roles_of(statement: Statement) -> set[str]:
    """Who runs it."""
    names = {statement.owner, statement.owner.partition(".")[0]}
    found = {migrate.WORKER} if names & WORKERS else set()
    if names & RELAYS and not statement.owner.endswith((".claim", ".end")):
        found.add(migrate.RELAY)
    if names & EVERYONES:
        return {migrate.APP, migrate.WORKER, migrate.RELAY}
    return found | {migrate.APP} if names & BOTH or not found else found


def scans(plan: dict[str, Any]) -> Generator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from scans(inner)


async def plan_of(conn: asyncpg.Connection, sql: str) -> list[dict[str, Any]]:
    """The nodes of a statement's plan, made without values; rights are checked as if it ran."""
    return list(scans(json.loads(await conn.fetchval("select plan_of($1)", sql))[0]["Plan"]))


def conditions(node: dict[str, Any]) -> list[str]:
    """What every row that the node gives fulfils: the parts between a condition's outermost ANDs, without texts."""
    parts: list[str] = []
    for key in ("Index Cond", "Recheck Cond", "Filter"):
        text = re.sub(r"'(?:[^']|'')*'", "''", str(node.get(key, "")))
        while _is_wrapped(text):
            text = text[1:-1]
        depth = start = 0
        for place, char in enumerate(text):
            depth += (char == "(") - (char == ")")
            if depth == 0 and text.startswith(" AND ", place):
                parts.append(text[start:place])
                start = place + len(" AND ")
        parts.append(text[start:])
    return parts


def _is_wrapped(text: str) -> bool:
    """Whether the first bracket closes at the end."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return char == ")" and place == len(text) - 1
    return False


def telling(node: dict[str, Any], pattern: re.Pattern[str]) -> re.Match[str] | None:
    return next(filter(None, map(pattern.fullmatch, conditions(node))), None)


def unscoped(nodes: list[dict[str, Any]], tenant_tables: set[str]) -> list[str]:
    """Tables of which rows of any tenant would be looked at or written."""
    found: list[str] = []
    matches = {node["Alias"]: telling(node, TOLD_THE_TENANT) for node in nodes if "Alias" in node}
    told = {alias for alias, match in matches.items() if match and not match["other"]}
    for node in nodes:
        table = node.get("Relation Name")
        if table is None or table not in tenant_tables | {"tenants", "users"}:
            continue
        if node["Node Type"] == "ModifyTable":
            if node["Operation"] == "Insert" and node["Plans"][0]["Output"][0] != "$1":
                found.append(f"insert into {table}")
        elif table == "tenants":
            found += [] if telling(node, TOLD_ITSELF) else [table]
        elif table == "users":
            found += [] if any(other.get("Relation Name") == "memberships" for other in nodes) else [table]
        else:
            match = telling(node, TOLD_THE_TENANT)
            if match is None or (match["other"] and match["other"] not in told):
                found.append(table)
    return found


def test_there_is_something_to_check():
    assert len(ALL) > 100
    named = {name for item in ALL for name in (item.owner, item.owner.partition(".")[0])}
    assert named >= WORKERS | RELAYS | BOTH, "a name above that no statement has"


def test_nothing_is_set_for_longer_than_a_transaction():
    for item in statements():
        for part in item.sql.split(";"):
            assert not re.match(r"\s*set\b", part) or SETTINGS.fullmatch(part.strip()), item.where
            assert "set_config" not in part, item.where


@pytest.mark.parametrize("statement", ALL, ids=lambda item: f"{item.where}:{item.line}")
async def test_a_statement_fits_schema_role_and_tenant(conn, tenant_tables, statement: Statement):
    assert unscoped(await plan_of(conn, statement.sql), tenant_tables) == []
    for role in roles_of(statement):
        async with conn.transaction():
            await conn.execute(f"set local role {role}")
            await plan_of(conn, statement.sql)


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("select id from documents where id = $1", ["documents"]),
        ("select d.id from documents d join contents c on c.id = d.content_id where d.tenant_id = $1", ["contents"]),
        ("select id from documents where tenant_id = $1 or id = $2", ["documents"]),
        ("select id, $1::uuid as tenant_id from chunks", ["chunks"]),
        ("update tasks set stage = 'x' where id = $1", ["tasks"]),
        ("delete from messages where content = 'tenant_id = $1'", ["messages"]),
        ("insert into collections (tenant_id, id, name) select $1, id, name from collections", ["collections"]),
        (
            "insert into collections (tenant_id, id, name) values (gen_random_uuid(), $1, $2)",
            ["insert into collections"],
        ),
        ("select chunk_id from vectors_1 where chunk_id = $1", ["vectors_1"]),
        ("select email from users where email = $1", ["users"]),
        ("select name from tenants where status = $1", ["tenants"]),
    ],
)
async def test_a_statement_without_its_tenant_is_refused(conn, tenant_tables, sql: str, tables: list[str]):
    found = unscoped(await plan_of(conn, sql), tenant_tables)
    assert sorted({re.sub(r"_1_\d+$", "_1", table) for table in found}) == tables


async def test_a_right_that_is_missing_is_seen(conn):
    async with conn.transaction():
        await conn.execute(f"set local role {migrate.RELAY}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await plan_of(conn, "select id from documents where tenant_id = $1")


async def test_functions_that_statements_call_are_versioned(conn):
    """Old and new processes run together, so a function is never replaced in place."""
    own = await conn.fetch(
        "select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace and not exists"
        " (select 1 from pg_depend d where d.objid = p.oid and d.deptype = 'e') and p.prorettype <> 'trigger'::regtype"
    )
    names = {row["proname"] for row in own} - {"plan_of"}
    called = {name for item in ALL for name in names if re.search(rf"\b{name}\(", item.sql)}
    assert len(called) > 10
    assert {name for name in called if not re.search(r"_v\d+(_\d+)?$", name)} == set()
