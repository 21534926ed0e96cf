"""Requests on one document at the same moment, held up by a lock until both have read what they decide on."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.integration.api import Running, served_on
from tests.ledger import eventually
from tests.servers import Database, Servers


@pytest.fixture
async def api(servers: Servers, module_database: Database, tmp_path: Path) -> AsyncGenerator[Running]:
    async with served_on(servers, module_database, tmp_path) as running:
        yield running


class Crossing:
    """Starts requests in an order and lets them go on together."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def held(self, statement: str, *values: object) -> AsyncGenerator[asyncpg.Connection]:
        """The lock that a statement takes, held until the end."""
        conn = await asyncpg.connect(self._database.superuser)
        try:
            async with conn.transaction():
                await conn.execute(statement, *values)
                yield conn
        finally:
            await conn.close()

    async def queued(self, waiting: int, request: Coroutine[Any, Any, httpx.Response]) -> asyncio.Task[httpx.Response]:
        """The request, once it is the last of so many that wait for a lock."""
        task = asyncio.create_task(request)
        conn = await asyncpg.connect(self._database.superuser)

        async def waits() -> bool:
            count = await conn.fetchval(
                "select count(*) from pg_stat_activity where datname = $1 and wait_event_type = 'Lock'",
                self._database.name,
            )
            return count >= waiting

        try:
            await eventually(waits)
        finally:
            await conn.close()
        return task


async def added(client: httpx.AsyncClient, text: bytes) -> str:
    answer = await client.post("/api/v1/documents", files={"file": ("a.txt", text)})
    assert answer.status_code == 202, answer.text
    return answer.json()["document_id"]


async def test_two_changes_of_one_document_both_stay(api: Running, module_database: Database) -> None:
    tenant = await api.new_tenant("race-patch")
    crossing = Crossing(module_database)
    async with api.client(tenant["api_key"]) as client:
        path = f"/api/v1/documents/{await added(client, b'a sentence of two changes')}"
        assert (await client.patch(path, json={"tags": ["first"]})).status_code == 200
        lock = "select 1 from tenant_statistics where tenant_id = $1 for update"
        async with crossing.held(lock, tenant["id"]):
            one = await crossing.queued(1, client.patch(path, json={"tags": ["second"]}))
            two = await crossing.queued(2, client.patch(path, json={"filename": "renamed.txt"}))
        assert {(await one).status_code, (await two).status_code} == {200}
        document = (await client.get(path)).json()
    assert (document["tags"], document["filename"]) == (["second"], "renamed.txt")


async def test_a_version_that_comes_while_its_document_is_deleted_is_removed_too(
    api: Running, module_database: Database
) -> None:
    tenant = await api.new_tenant("race-delete")
    crossing = Crossing(module_database)
    async with api.client(tenant["api_key"]) as client:
        document = await added(client, b"a sentence that is deleted")
        path = f"/api/v1/documents/{document}"
        files = {"file": ("b.txt", b"a sentence that comes too late")}
        async with crossing.held("select 1 from documents where id = $1 for update", document):
            put = await crossing.queued(1, client.put(f"{path}/content", files=files))
            delete = await crossing.queued(2, client.delete(path))
        assert (await put).status_code == 202, (await put).text
        assert (await delete).status_code == 202, (await delete).text
    conn = await asyncpg.connect(module_database.superuser)
    contents = {row["id"] for row in await conn.fetch("select id from contents where tenant_id = $1", tenant["id"])}
    tasks = await conn.fetch("select kind, status, content_id from tasks where tenant_id = $1", tenant["id"])
    await conn.close()
    assert len(contents) == 2
    assert {row["content_id"] for row in tasks if row["kind"] == "purge_content"} == contents
    assert {row["status"] for row in tasks if row["kind"] == "ingest_content"} == {"cancelled"}


async def test_a_document_is_deleted_in_the_moment_of_its_publication(api: Running, module_database: Database) -> None:
    """A worker's transaction holds its task and goes on to the tenant's statistics."""
    tenant = await api.new_tenant("race-publication")
    crossing = Crossing(module_database)
    async with api.client(tenant["api_key"]) as client:
        document = await added(client, b"a sentence that is published and deleted")
        async with crossing.held("select 1 from tasks where document_id = $1 for share", document) as conn:
            delete = await crossing.queued(1, client.delete(f"/api/v1/documents/{document}"))
            await conn.execute(
                "insert into tenant_statistics as s (tenant_id) values ($1)"
                " on conflict (tenant_id) do update set data_version = s.data_version",
                tenant["id"],
            )
        assert (await delete).status_code == 202, (await delete).text


async def test_an_upload_whose_time_runs_out_while_its_last_bytes_are_checked_is_answered_and_kept(
    api: Running, module_database: Database
) -> None:
    tenant = await api.new_tenant("race-expiry")
    crossing = Crossing(module_database)
    data = b"a sentence that comes in two pieces"
    async with api.client(tenant["api_key"]) as client:
        document = await added(client, b"a sentence that is replaced in pieces")
        fields = {"filename": "b.txt", "document_id": document}
        told = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields.items())
        begun = await client.post(
            "/api/v1/uploads",
            headers={"Tus-Resumable": "1.0.0", "Upload-Length": str(len(data)), "Upload-Metadata": told},
        )
        assert begun.status_code == 201, begun.text
        path = begun.headers["location"]
        piece = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": "0",
            "Content-Type": "application/offset+octet-stream",
        }
        async with crossing.held("select 1 from documents where id = $1 for update", document) as conn:
            patch = await crossing.queued(1, client.patch(path, content=data, headers=piece))
            await conn.execute("update uploads set expires_at = now() where tenant_id = $1", tenant["id"])
        assert (await patch).status_code == 204, (await patch).text
        head = await client.head(path, headers={"Tus-Resumable": "1.0.0"})
        assert (head.status_code, head.headers["dreamhub-document-id"]) == (200, document)
    conn = await asyncpg.connect(module_database.superuser)
    kept = await conn.fetchval("select expires_at - now() from uploads where tenant_id = $1", tenant["id"])
    await conn.close()
    assert timedelta(hours=23) < kept <= timedelta(hours=24)
