"""A change of the embedding model: documents are read again, the old vectors go, and nothing is lost on the way."""

import asyncpg
import pytest

from internal.entities.search import Space
from internal.entities.tasks import INGEST_VERSION
from internal.repositories import migrate
from tests.seeds import Seeded, seed
from tests.servers import Database

OTHER = Space("another-model", "1", 48)
THIRD = Space("a-third-model", "1", 32)


@pytest.fixture
async def conn(database: Database):
    found = await asyncpg.connect(database.superuser)
    yield found
    await found.close()


async def queued(conn: asyncpg.Connection, tenant: Seeded) -> list[tuple[str, str, str, int]]:
    rows = await conn.fetch(
        "select document_id::text, user_id::text, queue, version from tasks where tenant_id = $1"
        " and kind = 'ingest_content' and content_id is not null and status = 'queued' order by 1",
        tenant.tenant,
    )
    return [tuple(row) for row in rows]


async def test_contents_of_another_model_are_queued_once(database, conn):
    tenant = await seed(conn)
    await migrate.migrate(database.owner, OTHER)
    expected = sorted(
        (str(document), str(tenant.owner), "batch", INGEST_VERSION) for document in (tenant.shared, tenant.private)
    )
    assert await queued(conn, tenant) == expected
    await migrate.migrate(database.owner, OTHER)
    assert await queued(conn, tenant) == expected


async def test_waiting_tasks_follow_to_the_next_model(database, conn):
    """Else they would wait for workers of a model that was given up."""
    tenant = await seed(conn)
    await migrate.migrate(database.owner, OTHER)
    await migrate.migrate(database.owner, THIRD)
    assert len(await queued(conn, tenant)) == 2
    number = await conn.fetchval("select id from embedding_spaces where model = $1", THIRD.model)
    spaces = await conn.fetch(
        "select payload->>'space_id' as space from tasks where tenant_id = $1 and payload <> '{}'", tenant.tenant
    )
    assert [row["space"] for row in spaces] == [str(number)] * 2


async def test_contents_of_the_same_model_are_left_alone(database, conn):
    tenant = await seed(conn)
    await migrate.migrate(database.owner, Space("multilingual-e5-small", "2", 384))
    assert await queued(conn, tenant) == []
