"""`cache` of a search and GET /api/v1/cache/stats, on the served API. No model is there, so words are searched."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from pkg.ctxutil import Context, Role
from tests.integration.api import Running, served_on
from tests.library import Library
from tests.servers import Database, Servers

BODY = {"query": "anything", "mode": "keyword"}


@pytest.fixture
async def api(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Running]:
    async with served_on(servers, database, tmp_path) as running:
        yield running


async def stats(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/api/v1/cache/stats")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_search_says_whether_it_was_remembered_and_the_tenant_is_told_how_often(api: Running) -> None:
    one, other = await api.new_tenant("remembering"), await api.new_tenant("forgetful")
    async with api.client(await api.new_key(one["api_key"], "viewer")) as client:
        assert (await stats(client))["hit_rate"] == 0
        answers = [(await client.post("/api/v1/search", json=BODY)).json() for _ in range(4)]
        assert [answer["cache"] for answer in answers] == ["miss", "hit", "hit", "hit"]
        assert all(answer["took_ms"] > 0 for answer in answers)
        found = await stats(client)
    assert found["kinds"]["search"] == {
        "hits": 3, "misses": 1, "hit_rate": 0.75, "memory": 3, "redis": 0, "shared": 0,
    }  # fmt: skip
    assert (found["hits"], found["misses"], found["hit_rate"], found["redis"]) == (3, 1, 0.75, True)
    assert found["memory"]["bytes"] > 0 < found["memory"]["entries"]
    async with api.client(other["api_key"]) as client:
        assert (await stats(client))["hits"] == 0
    async with api.client() as client:
        assert (await client.get("/api/v1/cache/stats")).status_code == 401
        metrics = (await client.get("/metrics")).text
    assert 'cache_requests_total{kind="search",level="memory"} 3.0' in metrics


async def test_passages_of_a_document_are_remembered_and_gone_with_it(api: Running, database: Database) -> None:
    tenant = await api.new_tenant("reading")
    async with api.client(tenant["api_key"]) as client:
        library = await Library.open(database)
        ctx = Context(
            tenant_id=UUID(tenant["id"]),
            user_id=UUID(tenant["owner"]["id"]),
            role=Role.OWNER,
            request_id="r",
            trace_id="t",
        )
        entry = await library.add(ctx, ["first passage", "second passage", "third passage"])
        await library.close()
        path = f"/api/v1/documents/{entry.document}"
        pages = [(await client.get(f"{path}/chunks?limit=2")).json() for _ in range(3)]
        assert [item["text"] for item in pages[0]["items"]] == ["first passage", "second passage"]
        assert pages[1] == pages[2] == pages[0]
        assert (await stats(client))["kinds"]["chunks"]["hits"] == 2
        more = await client.get(f"{path}/chunks", params={"limit": 2, "cursor": pages[0]["next_cursor"]})
        assert [item["text"] for item in more.json()["items"]] == ["third passage"]
        assert (await client.delete(path)).status_code == 202
        assert (await client.get(f"{path}/chunks?limit=2")).status_code == 404


async def test_renaming_a_collection_is_seen_at_once(api: Running) -> None:
    tenant = await api.new_tenant("shelving")
    async with api.client(tenant["api_key"]) as client:
        upload = {"files": {"file": ("a.txt", b"a document")}, "data": {"collection": "Old"}}
        assert (await client.post("/api/v1/documents", **upload)).status_code == 202
        (shelf,) = (await client.get("/api/v1/collections")).json()["items"]
        body = {**BODY, "filters": {"collections": ["Old"]}}
        for expected in ("miss", "hit"):
            assert (await client.post("/api/v1/search", json=body)).json()["cache"] == expected
        path = f"/api/v1/collections/{shelf['id']}"
        assert (await client.patch(path, json={"name": "New"})).status_code == 200
        assert (await client.post("/api/v1/search", json=body)).json()["cache"] == "miss"
        assert (await client.post("/api/v1/search", json=body)).json()["cache"] == "hit"
        assert (await client.delete(path)).status_code == 204
        assert (await client.post("/api/v1/search", json=body)).json()["cache"] == "miss"
