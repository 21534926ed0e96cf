"""Batches over HTTP: many files in one form, orders in JSON, and who sees what of them."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from tests.integration.api import Running, add_member, is_problem, served_on, sign_in
from tests.servers import Database, Servers

FILES, MB = 8, 1024 * 1024


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Running]:
    limits = {"max_file_mb": 1, "batch_mb": 4, "batch_files": FILES, "batches": 40, "rate_per_minute": 100_000}
    async with served_on(servers, module_database, tmp_path_factory.mktemp("api"), **limits) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(api: Running) -> dict[str, Any]:
    return await api.new_tenant("batches")


@pytest.fixture
async def client(api: Running, tenant: dict[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
    async with api.client(tenant["api_key"]) as found:
        yield found


async def send(client: httpx.AsyncClient, files: dict[str, bytes], key: str = "", **fields: Any) -> httpx.Response:
    parts = [("file", (name, data)) for name, data in files.items()]
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post("/api/v1/batches", files=parts, data=fields, headers=headers)


async def test_many_files_are_one_batch(client: httpx.AsyncClient) -> None:
    files = {f"note {number}.txt": f"the first note number {number}".encode() for number in range(3)}
    answer = await send(client, files, tags="a, b", collection="Inbox", visibility="private")
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert (batch["kind"], batch["status"], batch["total"], batch["waiting"]) == ("upload", "queued", 3, 3)
    assert [item["filename"] for item in batch["items"]] == list(files)
    assert [item["ordinal"] for item in batch["items"]] == [0, 1, 2]
    for item in batch["items"]:
        document = (await client.get(f"/api/v1/documents/{item['document_id']}")).json()
        assert (document["tags"], document["collection"], document["visibility"]) == (["a", "b"], "Inbox", "private")
        task = (await client.get(f"/api/v1/tasks/{item['task_id']}")).json()
        assert (task["queue"], task["document_id"]) == ("batch", item["document_id"])
    assert (await client.get(f"/api/v1/batches/{batch['id']}")).json() == {
        name: value for name, value in batch.items() if name != "items"
    }


async def test_one_bad_file_refuses_no_other(client: httpx.AsyncClient) -> None:
    files = {
        "good.txt": b"a good note",
        "program.exe": b"MZ\x00\x01" + b"\x00" * 100,
        "empty.txt": b"",
        "large.txt": b"too large " * (MB // 8),
        "..": b"a note without a name",
        "again.txt": b"a good note",
        "last.txt": b"another good note",
    }
    batch = (await send(client, files)).json()
    codes = [item["error"] and item["error"]["code"] for item in batch["items"]]
    assert codes == [
        None,
        "file.type_not_allowed",
        "file.empty",
        "file.too_large",
        "file.name_invalid",
        None,
        None,
    ]
    assert [item["status"] for item in batch["items"]] == ["waiting", *["refused"] * 4, "waiting", "waiting"]
    first, again = batch["items"][0], batch["items"][5]
    assert (again["duplicate"], again["document_id"], again["task_id"]) == (
        True,
        first["document_id"],
        first["task_id"],
    )
    assert (batch["total"], batch["waiting"], batch["refused"], batch["status"]) == (7, 3, 4, "running")
    page = (await client.get(f"/api/v1/batches/{batch['id']}/items?status=refused&limit=3")).json()
    assert [item["ordinal"] for item in page["items"]] == [1, 2, 3]
    rest = await client.get(f"/api/v1/batches/{batch['id']}/items?status=refused&cursor={page['next_cursor']}")
    assert [item["filename"] for item in rest.json()["items"]] == [".."]


async def test_fields_may_come_last(client: httpx.AsyncClient) -> None:
    parts = [("file", ("late a.txt", b"late a")), ("file", ("late b.txt", b"late b")), ("priority", (None, "high"))]
    batch = (await client.post("/api/v1/batches", files=parts)).json()
    tasks = [(await client.get(f"/api/v1/tasks/{item['task_id']}")).json() for item in batch["items"]]
    assert [task["queue"] for task in tasks] == ["high_priority"] * 2


async def test_what_a_request_may_not_be(client: httpx.AsyncClient) -> None:
    before = (await client.get("/api/v1/documents?name=unwanted")).json()
    too_many = {f"unwanted {number}.txt": b"%d unwanted" % number for number in range(FILES + 1)}
    is_problem(await send(client, too_many), 413, "request.too_large")
    is_problem(await send(client, {f"unwanted {n}": b"%d" % n * MB for n in range(5)}), 413, "request.too_large")
    is_problem(await send(client, {"unwanted.txt": b"unwanted"}, priority="soon"), 400, "request.invalid")
    is_problem(await send(client, {"unwanted.txt": b"unwanted"}, colour="red"), 400, "request.invalid")
    is_problem(await client.post("/api/v1/batches", data={"tags": "a"}, files={}), 415)
    both = [("file", ("unwanted.txt", b"unwanted")), ("archive", ("a.zip", b"PK\x05\x06" + b"\0" * 18))]
    is_problem(await client.post("/api/v1/batches", files=both), 400, "request.invalid")
    is_problem(
        await client.post("/api/v1/batches", files={"archive": ("a.txt", b"unwanted")}), 415, "file.type_not_allowed"
    )
    is_problem(await client.post("/api/v1/batches", files={"archive": ("a.zip", b"")}), 422, "file.empty")
    for body in ({}, {"action": "shred"}, {"action": "delete"}, {"action": "retry", "document_ids": []}, [], "x"):
        is_problem(await client.post("/api/v1/batches", json=body), 400, "request.invalid")
    large = b'{"action": "retry", "filter": {"kind": "' + b"x" * MB + b'"}}'
    headers = {"Content-Type": "application/json", "Idempotency-Key": "large"}
    is_problem(await client.post("/api/v1/batches", content=large, headers=headers), 413, "request.too_large")
    assert (await client.get("/api/v1/documents?name=unwanted")).json() == before


async def test_the_same_request_twice_is_one_batch(client: httpx.AsyncClient) -> None:
    files = {"once a.txt": b"once a", "once b.txt": b"once b"}
    first = await send(client, files, key="one-batch")
    again = await send(client, files, key="one-batch")
    assert first.status_code == again.status_code == 202
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    is_problem(await send(client, {**files, "once c.txt": b"c"}, key="one-batch"), 422, "idempotency.conflict")
    answers = await asyncio.gather(
        *(
            client.post("/api/v1/batches", json={"action": "retry"}, headers={"Idempotency-Key": "ten-orders"})
            for _ in range(10)
        )
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_batch_is_its_users_own(api: Running, tenant: dict[str, Any], client: httpx.AsyncClient) -> None:
    batch = (await send(client, {"own.txt": b"my own batch"})).json()
    await add_member(api, tenant["api_key"], "admin@batches.example", "admin")
    admin = (await sign_in(api, "admin@batches.example")).json()["access_token"]
    stranger = (await api.new_tenant("strangers"))["api_key"]
    for credential in (admin, stranger):
        async with api.client(credential) as other:
            assert batch["id"] not in (await other.get("/api/v1/batches")).text
            for verb, path in (("GET", ""), ("GET", "/items"), ("POST", "/cancel"), ("POST", "/retry")):
                for found in (batch["id"], batch["id"][:-4] + "0000", "nonsense"):
                    answer = await other.request(verb, f"/api/v1/batches/{found}{path}")
                    is_problem(answer, 404, "batch.not_found")
    viewer = await api.new_key(tenant["api_key"], "viewer")
    async with api.client(viewer) as other:
        is_problem(await send(other, {"viewed.txt": b"viewed"}), 403)


async def test_batches_are_listed_newest_first(client: httpx.AsyncClient) -> None:
    made = [(await send(client, {"listed.txt": b"listed %d" % number})).json()["id"] for number in range(3)]
    page = (await client.get("/api/v1/batches?limit=2")).json()
    assert [item["id"] for item in page["items"]] == made[:0:-1]
    rest = (await client.get(f"/api/v1/batches?limit=1&cursor={page['next_cursor']}")).json()
    assert [item["id"] for item in rest["items"]] == made[:1]
    is_problem(await client.get("/api/v1/batches?cursor=nonsense"), 400, "request.invalid")


async def test_a_cancelled_batch_waits_for_nothing(client: httpx.AsyncClient) -> None:
    earlier = (await send(client, {"earlier.txt": b"there before the batch"})).json()["items"][0]
    files = {"same.txt": b"there before the batch", "new a.txt": b"new a", "new b.txt": b"new b"}
    batch = (await send(client, files)).json()
    cancelled = (await client.post(f"/api/v1/batches/{batch['id']}/cancel")).json()
    assert (cancelled["cancelled"], cancelled["waiting"]) == (2, 1)
    assert (await client.get(f"/api/v1/tasks/{earlier['task_id']}")).json()["status"] == "queued"
    await client.post(f"/api/v1/tasks/{earlier['task_id']}/cancel")
    over = (await client.get(f"/api/v1/batches/{batch['id']}")).json()
    assert (over["status"], over["progress"], over["cancelled"]) == ("cancelled", 1.0, 3)
    assert over["finished_at"] is not None
    assert (await client.post(f"/api/v1/batches/{batch['id']}/cancel")).json() == over


async def test_a_tenant_has_so_many_batches_at_a_time(
    servers: Servers, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with served_on(servers, database, tmp_path_factory.mktemp("few"), batches=2, queue_depth=6) as few:
        tenant = await few.new_tenant("few")
        async with few.client(tenant["api_key"]) as client:
            assert (await send(client, {"a.txt": b"few a", "b.txt": b"few b"})).status_code == 202
            orders = [client.post("/api/v1/batches", json={"action": "retry"}) for _ in range(10)]
            answers = await asyncio.gather(*orders)
            assert sorted(answer.status_code for answer in answers) == [202, *[429] * 9]
            refused = next(answer for answer in answers if answer.status_code == 429)
            is_problem(refused, 429, "batch.too_many")
            assert int(refused.headers["retry-after"]) > 0
