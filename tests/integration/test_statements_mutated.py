"""Mutation: every statement loses its own filter, and row-level security alone still shows and touches nothing foreign.

Each comparison with a parameter (tenant, user, id, visibility) becomes true. What a statement then answers to a tenant
must not change when a second tenant gets its data; without row-level security it would, which the control shows.
For inserts see test_isolation.py (WITH CHECK), for the search function test_search_isolation.py.
"""

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from internal.repositories import migrate
from tests.seeds import Seeded, seed
from tests.servers import Database
from tests.statements import Statement, statements

COMPARISON = re.compile(r"(?:\b\w+\.)?\b\w+(?:::\w+)? (?:=|<>|<|>|<=|>=|is distinct from) (?:any\(\$(\d+)\)|\$(\d+))")
LIMIT = re.compile(r"\blimit \$(\d+)")
ASSIGNMENT = re.compile(r"\b(\w+) = \$(\d+)")
MANY = 1000
NEW_VALUES: dict[str, Any] = {
    "body": b"",
    "chunk_count": 1,
    "document_ids": [],
    "filename": "x",
    "holder": UUID(int=1),
    "importance": 0.5,
    "lines": "[]",
    "metadata": "{}",
    "name": "x",
    "progress": 0.5,
    "received": 1,
    "stage": "x",
    "status": 200,
    "space": "x",
    "tags": [],
    "terms": [],
    "vector": b"",
    "title": "x",
    "visibility": "tenant",
    # where a parameter is a part of what is assigned, by its type
    "float8": 1.0,
    "int4": 1,
    "int8": 1,
    "interval": timedelta(days=1),
    "text": "x",
}
# Statements that find nothing in the seeds whoever asks: they are about leased, dead, old, or condemned rows, or look
# for what is given to them.
FIND_NOTHING = {
    "BatchWorkRepository.archives",
    "BatchWorkRepository.remove_ended",
    "ChunkRepository.around",
    "ContentRepository.remove",
    "DocumentRepository.named",
    "GenerationRepository.finish",
    "GenerationRepository.remove",
    "IdempotencyRepository.take",
    "ObjectRepository.mark_found",
    "ProcessingRepository.expire",
    "ProcessingRepository.has_expired",
    "ProcessingRepository.is_behind",
    "ProcessingRepository.retired",
    "ProcessingRepository.switch",
    "ProcessingRepository.switchable",
    "TaskRepository.fence",
    "TaskRepository.heartbeat",
    "TaskRepository.progress",
    "UploadRepository.commit_parts",
    "UploadRepository.end_expired",
    "UploadRepository.remove",
    "VersionRepository.switch",
    "VersionRepository.trim",
}
# A statement that says the same of two tenants' rows as of one's: whether there is any, or, through a function that
# itself looks at its caller's alone, what is there.
SAY_THE_SAME = {
    "BatchRepository.get",
    "BatchRepository.items",
    "BatchRepository.list",
    "BatchRepository.unfinished",
    "ContentRepository.condemn",
    "VersionRepository.is_overtaken",
}
# Columns that tell the time of the reading.
CLOCKS = {"read_at"}
# One that looks at any one row, which may be this tenant's or the other's.
LOOK_AT_ONE = {"VectorRepository.analyze"}


class Mutant(msgspec.Struct, frozen=True):
    """A statement without its filter; `arguments` fill what is left."""

    statement: Statement
    role: str
    sql: str
    arguments: list[Any]

    @property
    def where(self) -> str:
        return f"{self.statement.where}:{self.statement.line} as {self.role}"


@pytest.fixture(scope="module")
async def conn(module_database: Database):
    found = await asyncpg.connect(module_database.superuser)
    yield found
    await found.close()


async def mutants(conn: asyncpg.Connection, *, writes: bool) -> list[Mutant]:
    """Every select, or every update and delete, for each role that may run it."""
    found: list[Mutant] = []
    for statement in statements():
        if statement.verb not in ({"update", "delete"} if writes else {"select"}) or "$1" not in statement.sql:
            continue
        types = [item.name for item in (await conn.prepare(statement.sql)).get_parameters()]
        sql = without_filter(statement.sql, types)
        if sql == statement.sql:
            continue  # the call of a function
        values = new_values(statement.sql, types)
        limits = {int(number) for number in LIMIT.findall(sql)}
        arguments = [MANY if number in limits else values.get(number) for number in range(1, len(types) + 1)]
        for role in (migrate.APP, migrate.WORKER):
            if await may_run(conn, role, sql, arguments):
                found.append(Mutant(statement, role, sql, arguments))
    return found


def without_filter(sql: str, types: list[str]) -> str:
    """Makes every comparison with a parameter true; the parameter stays, so that the numbers of the others do."""

    def truth(match: re.Match[str]) -> str:
        number = int(match[1] or match[2])
        return f"((${number}::{types[number - 1]} is null) is not null)"

    if " set " not in sql:
        return COMPARISON.sub(truth, sql)
    head, where, tail = sql.partition(" where ")
    return head + where + COMPARISON.sub(truth, tail)


def new_values(sql: str, types: list[str]) -> dict[int, Any]:
    """Parameters of an update's SET, with values that the columns take."""
    assigned = sql.partition(" set ")[2].partition(" where ")[0]
    numbers = map(int, re.findall(r"\$(\d+)", assigned))
    columns = {int(number): column for column, number in ASSIGNMENT.findall(assigned)}
    return {number: NEW_VALUES.get(columns.get(number, types[number - 1])) for number in numbers}


async def may_run(conn: asyncpg.Connection, role: str, sql: str, arguments: list[Any]) -> bool:
    try:
        async with undone(conn, role=role):
            await conn.fetch(sql, *arguments)
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


@asynccontextmanager
async def undone(
    conn: asyncpg.Connection, *, role: str | None = None, who: Seeded | None = None, member: bool = False
) -> AsyncGenerator[None]:
    """A transaction as a role, for a tenant's owner or member, that leaves nothing behind."""
    transaction = conn.transaction()
    await transaction.start()
    try:
        if who is not None:
            await conn.execute(
                "select set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true)",
                str(who.tenant),
                str(who.member if member else who.owner),
            )
        if role is not None:
            await conn.execute(f"set local role {role}")
        yield
    finally:
        await transaction.rollback()


async def answer(
    conn: asyncpg.Connection, mutant: Mutant, *, role: str | None, who: Seeded, member: bool = False
) -> Any:
    async with undone(conn, role=role, who=who, member=member):
        rows = await conn.fetch(mutant.sql, *mutant.arguments)
    return sorted(repr({name: value for name, value in row.items() if name not in CLOCKS}) for row in rows)


async def rows_of(conn: asyncpg.Connection, tenant: Seeded) -> dict[str, list[str]]:
    """Everything that a tenant has."""
    tables = await conn.fetch(
        "select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition"
    )
    return {
        name: [
            row[0]
            for row in await conn.fetch(f"select t::text from {name} t where tenant_id = $1 order by 1", tenant.tenant)
        ]
        for (name,) in tables
    }


@pytest.mark.parametrize(
    ("sql", "types", "expected"),
    [
        (
            "select 1 from documents d where d.tenant_id = $1 and d.id = any($2)",
            ["uuid", "uuid[]"],
            "select 1 from documents d where (($1::uuid is null) is not null) and (($2::uuid[] is null) is not null)",
        ),
        (
            "update documents set name = $2 where tenant_id = $1 returning id",
            ["uuid", "text"],
            "update documents set name = $2 where (($1::uuid is null) is not null) returning id",
        ),
    ],
)
def test_a_filter_is_taken_out(sql: str, types: list[str], expected: str):
    assert without_filter(sql, types) == expected


async def test_no_comparison_with_a_tenant_survives(conn):
    for mutant in [*await mutants(conn, writes=False), *await mutants(conn, writes=True)]:
        assert not re.search(r"tenant_id = \$", mutant.sql), mutant.where
        assert not re.search(r"(owner_id|user_id) = \$", mutant.sql.partition(" set ")[2] or mutant.sql), mutant.where


async def test_a_select_without_its_filter_shows_nothing_foreign(conn):
    reader = await seed(conn)
    found = await mutants(conn, writes=False)
    assert len({item.statement.where for item in found}) > 30
    before = [await answer(conn, item, role=item.role, who=reader) for item in found]
    unbound = [await answer(conn, item, role=None, who=reader) for item in found]
    foreign = await seed(conn)
    for item, known in zip(found, before, strict=True):
        seen = await answer(conn, item, role=item.role, who=reader)
        assert foreign.canary not in repr(seen), item.where
        assert seen == known, item.where
    after = [await answer(conn, item, role=None, who=reader) for item in found]
    indifferent = {item.statement.owner for item, one, two in zip(found, unbound, after, strict=True) if one == two}
    assert indifferent - LOOK_AT_ONE == (FIND_NOTHING | SAY_THE_SAME) & {item.statement.owner for item in found}


async def test_a_select_without_its_filter_shows_nothing_private(conn):
    tenant = await seed(conn)
    hidden = (f"{tenant.canary} private", str(tenant.private))
    seen_by_owner = 0
    for item in await mutants(conn, writes=False):
        if item.role == migrate.APP:
            theirs = await answer(conn, item, role=item.role, who=tenant)
            seen_by_owner += any(text in repr(theirs) for text in hidden)
            others = await answer(conn, item, role=item.role, who=tenant, member=True)
            assert not any(text in repr(others) for text in hidden), item.where
    assert seen_by_owner > 5


async def test_a_write_without_its_filter_touches_nothing_foreign(conn):
    writer, foreign = await seed(conn), await seed(conn)
    whole = await rows_of(conn, foreign)
    assert all(whole.values())
    harmless: set[str] = set()
    found = await mutants(conn, writes=True)
    assert len({item.statement.where for item in found}) > 15
    for item in found:
        async with undone(conn, role=item.role, who=writer):
            await conn.fetch(item.sql, *item.arguments)
            await conn.execute("reset role")
            assert await rows_of(conn, foreign) == whole, item.where
        async with undone(conn, who=writer):
            await conn.fetch(item.sql, *item.arguments)
            if await rows_of(conn, foreign) == whole:
                harmless.add(item.statement.owner)
    assert harmless == FIND_NOTHING & {item.statement.owner for item in found}
