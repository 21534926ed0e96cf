"""Idempotency-Key: the same POST, sent twice, is done once."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import httpx
import pytest

from tests.integration.api import Running, is_problem, served_on
from tests.servers import Database, Servers


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Running]:
    folder = tmp_path_factory.mktemp("api")
    async with served_on(servers, module_database, folder, rate_per_minute=100_000) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(api: Running) -> dict[str, Any]:
    return await api.new_tenant("face")


@pytest.fixture
async def client(api: Running, tenant: dict[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
    async with api.client(tenant["api_key"]) as found:
        yield found


async def test_the_same_request_again_gets_the_same_answer(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "make-once"}
    first = await client.post("/api/v1/conversations", json={"title": "once"}, headers=headers)
    again = await client.post("/api/v1/conversations", json={"title": "once"}, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert first.headers["content-type"] == again.headers["content-type"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers


async def test_another_request_with_the_key_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "one-request"}
    await client.post("/api/v1/conversations", json={"title": "a"}, headers=headers)
    for path, body in (("/api/v1/conversations", {"title": "b"}), ("/api/v1/collections", {"name": "a"})):
        is_problem(await client.post(path, json=body, headers=headers), 422, "idempotency.conflict")


async def test_ten_at_once_are_one(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "ten-at-once"}
    answers = await asyncio.gather(
        *(client.post("/api/v1/conversations", json={"title": "ten"}, headers=headers) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_what_failed_may_be_tried_again(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "try-again"}
    is_problem(await client.post("/api/v1/search", json={"query": "x"}, headers=headers), 503)
    is_problem(await client.post("/api/v1/search", json={"query": "x"}, headers=headers), 503)
    made = await client.post("/api/v1/collections", json={"name": "try again"}, headers=headers)
    assert made.status_code == 201


async def test_keys_belong_to_one_user(api: Running, client: httpx.AsyncClient) -> None:
    other = await api.new_tenant("other-keys")
    headers = {"Idempotency-Key": "mine"}
    mine = await client.post("/api/v1/conversations", json={}, headers=headers)
    async with api.client(other["api_key"]) as stranger:
        theirs = await stranger.post("/api/v1/conversations", json={}, headers=headers)
    assert theirs.status_code == 201
    assert theirs.json()["id"] != mine.json()["id"]


async def test_uploads(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "upload-once"}
    files = {"file": ("a.txt", b"uploaded once")}
    first = await client.post("/api/v1/documents", files=files, headers=headers)
    again = await client.post("/api/v1/documents", files=files, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.content == again.content
    assert again.headers["idempotency-replayed"] == "true"


async def test_another_upload_of_the_same_length_is_not_taken_for_the_first(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "upload-another"}
    first = await client.post("/api/v1/documents", files={"file": ("b.txt", b"first bytes")}, headers=headers)
    assert first.status_code == 202
    for name, data in (("b.txt", b"other bytes"), ("c.txt", b"first bytes")):
        answer = await client.post("/api/v1/documents", files={"file": (name, data)}, headers=headers)
        is_problem(answer, 422, "idempotency.conflict")
    other = await client.post("/api/v1/documents", files={"file": ("b.txt", b"other bytes")})
    assert (other.status_code, other.json()["duplicate"]) == (202, False)


async def test_ten_uploads_at_once_are_one(client: httpx.AsyncClient) -> None:
    headers, files = {"Idempotency-Key": "ten-uploads"}, {"file": ("ten.txt", b"ten at once")}
    answers = await asyncio.gather(*(client.post("/api/v1/documents", files=files, headers=headers) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1


async def test_secrets_are_not_kept(client: httpx.AsyncClient, module_database: Database) -> None:
    made = await client.post(
        "/api/v1/api-keys", json={"name": "k", "role": "viewer"}, headers={"Idempotency-Key": "secret"}
    )
    conn = await asyncpg.connect(module_database.superuser)
    try:
        bodies = await conn.fetch("select body from idempotency_keys where body is not null")
    finally:
        await conn.close()
    assert bodies
    assert all(made.json()["key"].encode() not in row["body"] for row in bodies)


@pytest.mark.parametrize("key", ["", "x" * 300, "a\tb"])
async def test_strange_keys(client: httpx.AsyncClient, key: str) -> None:
    headers = {"Idempotency-Key": key}
    answer = await client.post("/api/v1/conversations", json={}, headers=headers)
    is_problem(answer, 400, "request.invalid")
    # Before the form is read, or its empty file would be the error.
    answer = await client.post("/api/v1/documents", files={"file": ("empty.txt", b"")}, headers=headers)
    is_problem(answer, 400, "request.invalid")
