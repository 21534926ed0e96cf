"""Whose a collection is: the tenant's, or of those who see a document in it."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.api import Running, add_member, is_problem, served_on, sign_in
from tests.servers import Database, Servers


@pytest.fixture
async def api(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Running]:
    async with served_on(servers, database, tmp_path) as running:
        yield running


@pytest.fixture
async def owner(api: Running) -> AsyncGenerator[httpx.AsyncClient]:
    tenant = await api.new_tenant("shelves")
    await add_member(api, tenant["api_key"], "second@shelves.example", "admin")
    async with api.client(tenant["api_key"]) as client:
        yield client


@pytest.fixture
async def colleague(api: Running, owner: httpx.AsyncClient) -> AsyncGenerator[httpx.AsyncClient]:
    token = (await sign_in(api, "second@shelves.example")).json()["access_token"]
    async with api.client(token) as client:
        yield client


async def upload(client: httpx.AsyncClient, text: str, **fields: str) -> str:
    answer = await client.post("/api/v1/documents", files={"file": ("a.txt", text.encode())}, data=fields)
    assert answer.status_code == 202, answer.text
    return answer.json()["document_id"]


async def shown(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/api/v1/collections")
    return {item["name"]: item for item in answer.json()["items"]}


async def test_a_private_document_does_not_tell_the_name_of_its_collection(
    owner: httpx.AsyncClient, colleague: httpx.AsyncClient
) -> None:
    document = await upload(owner, "a plan of dismissals", visibility="private", collection="Dismissals")
    hidden = (await shown(owner))["Dismissals"]
    assert hidden["document_count"] == 1
    assert "Dismissals" not in await shown(colleague)
    path = f"/api/v1/collections/{hidden['id']}"
    is_problem(await colleague.patch(path, json={"name": "Mine now"}), 404, "collection.not_found")
    is_problem(await colleague.delete(path), 404, "collection.not_found")
    is_problem(await owner.post("/api/v1/collections", json={"name": "Dismissals"}), 409, "collection.exists")

    # Who shows the document shows where it stands.
    await owner.patch(f"/api/v1/documents/{document}", json={"visibility": "tenant"})
    assert (await shown(colleague))["Dismissals"] == hidden


async def test_a_collection_moved_into_by_a_private_document_is_as_private(
    owner: httpx.AsyncClient, colleague: httpx.AsyncClient
) -> None:
    document = await upload(owner, "a letter of thanks", visibility="private")
    await owner.patch(f"/api/v1/documents/{document}", json={"collection": "Thanks"})
    assert "Thanks" in await shown(owner)
    assert "Thanks" not in await shown(colleague)


async def test_who_makes_a_collection_by_a_hidden_name_gets_it(
    owner: httpx.AsyncClient, colleague: httpx.AsyncClient
) -> None:
    await upload(owner, "a list of wages", visibility="private", collection="Wages")
    made = await colleague.post("/api/v1/collections", json={"name": "Wages"})
    assert made.status_code == 201, made.text
    assert made.json()["document_count"] == 0
    assert (await shown(owner))["Wages"]["document_count"] == 1
    is_problem(await colleague.post("/api/v1/collections", json={"name": "Wages"}), 409, "collection.exists")


async def test_a_collection_for_all_stays_when_it_is_empty(
    owner: httpx.AsyncClient, colleague: httpx.AsyncClient
) -> None:
    await owner.post("/api/v1/collections", json={"name": "On purpose"})
    document = await upload(owner, "a notice to all", collection="Notices")
    assert (await owner.delete(f"/api/v1/documents/{document}")).status_code == 202
    found = await shown(colleague)
    assert found["On purpose"]["document_count"] == found["Notices"]["document_count"] == 0


async def test_who_fills_a_hidden_collection_for_all_finds_it_as_if_it_were_new(
    owner: httpx.AsyncClient, colleague: httpx.AsyncClient
) -> None:
    """It stays when it is empty again; else its going would tell that somebody else had it before."""
    await upload(owner, "a list of debts", visibility="private", collection="Debts")
    before = (await shown(owner))["Debts"]["created_at"]
    document = await upload(colleague, "a notice of debts", collection="Debts")
    assert (await colleague.delete(f"/api/v1/documents/{document}")).status_code == 202
    found = (await shown(colleague))["Debts"]
    assert (found["document_count"], found["created_at"] > before) == (0, True)
