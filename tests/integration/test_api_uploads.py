"""Resumable uploads: tus's own client against the real server, interruptions, and what must not be believed."""

import asyncio
import base64
import hashlib
import io
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed

from internal.handlers import protocol
from internal.services import uploads as service
from tests.integration.api import Running, is_problem, served_on
from tests.servers import Database, Servers

MB = 1024 * 1024
LIMIT_MB = 24
UPLOADS = "/api/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
PIECE = TUS | {"Content-Type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Running]:
    folder = tmp_path_factory.mktemp("tus")
    limits = {"rate_per_minute": 100_000, "max_file_mb": LIMIT_MB, "uploads": 4, "uploads_mb": 60}
    async with served_on(servers, module_database, folder, **limits) as running:
        yield running


@pytest.fixture
async def tenant(api: Running, request: pytest.FixtureRequest) -> dict[str, Any]:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    return await api.new_tenant(f"t{name}")


@pytest.fixture
async def client(api: Running, tenant: dict[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
    async with api.client(tenant["api_key"]) as found:
        yield found


def metadata(**fields: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields.items())


def text(size: int) -> bytes:
    """Letters that no other call gives."""
    return base64.b64encode(os.urandom(size))[:size]


async def begin(client: httpx.AsyncClient, length: int, **fields: str) -> str:
    fields = {"filename": "note.txt"} | fields
    answer = await client.post(
        UPLOADS, headers=TUS | {"Upload-Length": str(length), "Upload-Metadata": metadata(**fields)}
    )
    assert (answer.status_code, answer.content) == (201, b"")
    return answer.headers["location"]


async def send(client: httpx.AsyncClient, path: str, offset: int, data: Any, **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.patch(path, content=data, headers=PIECE | {"Upload-Offset": str(offset)} | headers)


async def offset_of(client: httpx.AsyncClient, path: str) -> int:
    answer = await client.head(path, headers=TUS)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


def stored(api: Running) -> list[Path]:
    return [path for path in (Path(api.services.settings.home) / "blobs").rglob("*") if path.is_file()]


def parts_of(api: Running, tenant: dict[str, Any]) -> list[Path]:
    return [path for path in stored(api) if path.parent.name == "uploads" and tenant["id"] in path.parts]


async def test_the_protocols_own_client_is_interrupted_and_goes_on(api, tenant, client):
    data = text(12 * MB + 77)
    tus = TusClient(f"{api.url}{UPLOADS}", headers={"Authorization": f"Bearer {tenant['api_key']}"})
    fields = {
        "filename": "报告.txt",
        "tags": "a, b",
        "collection": "Inbox",
        "visibility": "private",
        "priority": "high",
    }
    first = tus.uploader(file_stream=io.BytesIO(data), chunk_size=3 * MB, metadata=fields, upload_checksum=True)
    await asyncio.to_thread(first.upload, stop_at=6 * MB)
    again = await asyncio.to_thread(  # asks by HEAD where to go on
        tus.uploader, file_stream=io.BytesIO(data), url=first.url, metadata=fields
    )
    assert again.offset == 6 * MB
    await asyncio.to_thread(again.upload)
    made = again.request.response_headers
    document = (await client.get(f"/api/v1/documents/{made['dreamhub-document-id']}")).json()
    assert (document["filename"], document["tags"], document["collection"]) == ("报告.txt", ["a", "b"], "Inbox")
    assert (document["visibility"], document["size"]) == ("private", len(data))
    assert document["sha256"] == hashlib.sha256(data).hexdigest()
    assert (await client.get(f"/api/v1/documents/{document['id']}/content")).content == data
    task = (await client.get(f"/api/v1/tasks/{made['dreamhub-task-id']}")).json()
    assert (task["queue"], task["document_id"]) == ("high_priority", document["id"])
    later = await client.head(again.url, headers=TUS)
    assert later.headers["dreamhub-document-id"] == document["id"]
    assert later.headers["upload-offset"] == later.headers["upload-length"] == str(len(data))
    assert parts_of(api, tenant) == []


async def test_the_client_is_told_of_a_refusal(api, tenant):
    tus = TusClient(f"{api.url}{UPLOADS}", headers={"Authorization": f"Bearer {tenant['api_key']}"})
    program = io.BytesIO(b"MZ\x90\x00" + b"\x00" * 3000)
    uploader = tus.uploader(file_stream=program, chunk_size=1000, metadata={"filename": "report.pdf"})
    with pytest.raises(TusUploadFailed) as raised:
        await asyncio.to_thread(uploader.upload)
    assert raised.value.status_code == 415
    assert b"file.type_not_allowed" in raised.value.response_content
    with pytest.raises(TusCommunicationError) as raised:
        await asyncio.to_thread(uploader.get_offset)
    assert raised.value.status_code == 415
    assert parts_of(api, tenant) == []


async def test_what_the_server_knows(api):
    async with api.client() as anyone:
        answer = await anyone.options(UPLOADS)
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
    assert set(answer.headers["tus-extension"].split(",")) >= {"creation", "termination", "expiration", "checksum"}
    assert answer.headers["tus-max-size"] == str(LIMIT_MB * MB)
    assert answer.headers["tus-checksum-algorithm"] == "sha256,sha1"


async def test_the_first_bytes_may_come_with_the_announcement(client):
    data = text(1000)
    headers = PIECE | {"Upload-Length": "1000", "Upload-Metadata": metadata(filename="first.txt")}
    part = await client.post(UPLOADS, headers=headers, content=data[:400])
    assert (part.status_code, part.headers["upload-offset"]) == (201, "400")
    assert "upload-expires" in part.headers
    rest = await send(client, part.headers["location"], 400, data[400:])
    assert (rest.status_code, rest.headers["upload-offset"]) == (204, "1000")
    whole = await client.post(UPLOADS, headers=headers, content=data)
    assert (whole.status_code, whole.headers["upload-offset"]) == (201, "1000")
    assert whole.headers["dreamhub-document-id"] == rest.headers["dreamhub-document-id"]


async def test_an_announcement_whose_bytes_are_refused_leaves_nothing(api, client, tenant):
    headers = PIECE | {"Upload-Length": "1000", "Upload-Metadata": metadata(filename="first.txt")}
    wrong = headers | {"Upload-Checksum": f"sha1 {base64.b64encode(hashlib.sha1(b'').digest()).decode()}"}
    for _ in range(6):  # more than may be open at a time
        is_problem(await client.post(UPLOADS, headers=wrong, content=text(400)), 460, "upload.checksum_mismatch")
    program = b"MZ" + bytes(998)
    is_problem(await client.post(UPLOADS, headers=headers, content=program), 415, "file.type_not_allowed")
    assert parts_of(api, tenant) == []
    assert (await client.post(UPLOADS, headers=headers, content=text(400))).status_code == 201


@pytest.mark.parametrize("hangs_up", [True, False])
async def test_a_client_that_vanishes_leaves_what_it_sent(api, client, tenant, monkeypatch, hangs_up: bool):
    monkeypatch.setattr(protocol, "BODY_SECONDS", 30.0 if hangs_up else 0.5)
    data = text(7 * MB)
    path = await begin(client, len(data))
    head = (
        f"PATCH {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant['api_key']}\r\nTus-Resumable: 1.0.0\r\n"
        f"Content-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    url = httpx.URL(api.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(head.encode() + data[: 6 * MB])
    await writer.drain()
    await until_offset(client, path, service.PART_BYTES)
    if hangs_up:
        writer.close()
    await until_offset(client, path, 6 * MB)
    writer.close()
    last = await until_free(client, path, 6 * MB, data[6 * MB :])
    content = await client.get(f"/api/v1/documents/{last.headers['dreamhub-document-id']}/content")
    assert content.content == data


async def until_offset(client: httpx.AsyncClient, path: str, offset: int) -> None:
    async with asyncio.timeout(20):
        while await offset_of(client, path) != offset:
            await asyncio.sleep(0.02)


async def until_free(client: httpx.AsyncClient, path: str, offset: int, data: bytes) -> httpx.Response:
    """Sends once the request before has let go."""
    async with asyncio.timeout(20):
        while (answer := await send(client, path, offset, data)).status_code == 423:
            await asyncio.sleep(0.02)
    assert answer.status_code == 204, answer.text
    return answer


async def test_two_writers_take_turns(client):
    path = await begin(client, 1000)
    go = asyncio.Event()
    began = asyncio.Event()

    async def slowly():
        yield b"a" * 100
        began.set()
        await go.wait()
        yield b"a" * 100

    slow = asyncio.create_task(send(client, path, 0, slowly()))
    await began.wait()
    async with asyncio.timeout(20):  # the first bytes may still be on their way
        while (answer := await send(client, path, 0, b"")).status_code == 204:
            await asyncio.sleep(0.02)
    is_problem(answer, 423, "upload.locked")
    assert int(answer.headers["retry-after"]) > 0
    is_problem(await client.delete(path, headers=TUS), 423, "upload.locked")
    go.set()
    assert (await slow).headers["upload-offset"] == "200"
    is_problem(await send(client, path, 100, b"b" * 100), 409, "upload.offset_mismatch")
    assert await offset_of(client, path) == 200


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
async def test_a_wrong_checksum_throws_the_bytes_away(api, client, tenant, algorithm):
    data = text(6 * MB)
    right = base64.b64encode(hashlib.new(algorithm, data).digest()).decode()
    wrong = base64.b64encode(hashlib.new(algorithm, b"").digest()).decode()
    path = await begin(client, len(data))
    answer = await send(client, path, 0, data, Upload_Checksum=f"{algorithm} {wrong}")
    is_problem(answer, 460, "upload.checksum_mismatch")
    assert await offset_of(client, path) == 0
    assert parts_of(api, tenant) == []
    done = await send(client, path, 0, data, Upload_Checksum=f"{algorithm} {right}")
    assert done.status_code == 204, done.text
    assert "dreamhub-document-id" in done.headers


async def test_the_same_bytes_again_are_the_same_document(client):
    data = text(500)
    form = (await client.post("/api/v1/documents", files={"file": ("note.txt", data)})).json()
    done = await send(client, await begin(client, 500), 0, data)
    assert done.headers["dreamhub-document-id"] == form["document_id"]
    assert done.headers["dreamhub-task-id"] == form["task_id"]


async def test_what_is_unfinished_is_bounded(client):
    for _ in range(2):
        await begin(client, 24 * MB)
    over = TUS | {"Upload-Length": str(13 * MB), "Upload-Metadata": metadata(filename="a.txt")}
    is_problem(await client.post(UPLOADS, headers=over), 429, "upload.too_many")
    third, _ = await begin(client, 10), await begin(client, 10)
    small = over | {"Upload-Length": "10"}
    answer = await client.post(UPLOADS, headers=small)
    is_problem(answer, 429, "upload.too_many")
    assert int(answer.headers["retry-after"]) > 0
    assert (await send(client, third, 0, b"some words")).status_code == 204
    assert (await client.post(UPLOADS, headers=small)).status_code == 201


async def test_an_upload_that_is_given_up_leaves_nothing(api, client, tenant):
    path = await begin(client, 1000)
    await send(client, path, 0, b"x" * 400)
    assert len(parts_of(api, tenant)) == 1
    assert (await client.delete(path, headers=TUS)).status_code == 204
    assert parts_of(api, tenant) == []
    for method in ("HEAD", "PATCH", "DELETE"):
        answer = await client.request(method, path, headers=PIECE | {"Upload-Offset": "0"})
        assert answer.status_code == 404
        assert answer.headers["tus-resumable"] == "1.0.0"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"Tus-Resumable": "0.2.2"}, 412, "upload.version"),
        ({"Upload-Length": "0"}, 422, "file.empty"),
        ({"Upload-Length": "-1"}, 400, "request.invalid"),
        ({"Upload-Length": "many"}, 400, "request.invalid"),
        ({"Upload-Length": str(LIMIT_MB * MB + 1)}, 413, "file.too_large"),
        ({"Upload-Metadata": ""}, 422, "file.name_invalid"),
        ({"Upload-Metadata": "filename $$"}, 400, "request.invalid"),
        ({"Upload-Metadata": metadata(filename="a\x00b.txt")}, 422, "file.name_invalid"),
        ({"Upload-Metadata": metadata(filename="a.txt", tags="a\x00b")}, 400, "request.invalid"),
        ({"Upload-Metadata": metadata(filename="a.txt", priority="urgent")}, 400, "request.invalid"),
        ({"Upload-Metadata": metadata(filename="a.txt", visibility="all")}, 400, "request.invalid"),
        ({"Upload-Metadata": metadata(filename="a.txt") + "," + metadata(filename="b.txt")}, 400, "request.invalid"),
        ({"Upload-Concat": "partial"}, 400, "request.invalid"),
    ],
)
async def test_announcements_that_make_no_sense(client, change: dict[str, str], status: int, code: str):
    headers = TUS | {"Upload-Length": "10", "Upload-Metadata": metadata(filename="a.txt")} | change
    is_problem(await client.post(UPLOADS, headers=headers), status, code)


@pytest.mark.parametrize(
    ("change", "data", "status", "code"),
    [
        ({"Tus-Resumable": "2.0.0"}, b"x", 412, "upload.version"),
        ({"Content-Type": "text/plain"}, b"x", 415, "request.unsupported_media_type"),
        ({"Upload-Offset": "-1"}, b"x", 400, "request.invalid"),
        ({"Upload-Offset": "5"}, b"x", 409, "upload.offset_mismatch"),
        ({"Upload-Checksum": "crc32 AAAA"}, b"x", 400, "request.invalid"),
        ({"Upload-Checksum": "sha256 AAAA"}, b"x", 400, "request.invalid"),
        ({}, b"x" * 11, 413, "request.too_large"),
    ],
)
async def test_pieces_that_make_no_sense(client, change: dict[str, str], data: bytes, status: int, code: str):
    path = await begin(client, 10)
    is_problem(await client.patch(path, content=data, headers=PIECE | {"Upload-Offset": "0"} | change), status, code)
    assert await offset_of(client, path) == 0


async def test_more_bytes_than_announced_without_a_length(client):
    path = await begin(client, 10)

    async def endless():
        for _ in range(3):
            yield b"12345678"

    is_problem(await send(client, path, 0, endless()), 413, "request.too_large")
    assert await offset_of(client, path) == 0


async def test_a_proxy_that_knows_no_patch(client):
    path = await begin(client, 10)
    headers = PIECE | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert (await client.post(path, content=b"ten bytes!", headers=headers)).status_code == 204


async def test_an_upload_is_its_users_own(api, client, tenant):
    path = await begin(client, 10)
    other = await api.new_tenant(f"other{tenant['id'][-12:]}")
    colleague = await api.client(tenant["api_key"]).__aenter__()
    made = await colleague.post(
        "/api/v1/members", json={"email": f"m@{tenant['id']}.example", "password": "correct horse", "role": "admin"}
    )
    assert made.status_code == 201
    token = await colleague.post(
        "/api/v1/auth/token",
        json={"email": f"m@{tenant['id']}.example", "password": "correct horse", "tenant_id": tenant["id"]},
    )
    await colleague.aclose()
    for credential in (other["api_key"], token.json()["access_token"]):
        async with api.client(credential) as stranger:
            for method in ("HEAD", "PATCH", "DELETE"):
                answer = await stranger.request(method, path, headers=PIECE | {"Upload-Offset": "0"})
                assert answer.status_code == 404
    viewer = await api.new_key(tenant["api_key"], "viewer")
    async with api.client(viewer) as reader:
        answer = await reader.post(UPLOADS, headers=TUS | {"Upload-Length": "10"})
        is_problem(answer, 403, "auth.forbidden")
    assert await offset_of(client, path) == 0


async def test_bytes_that_the_store_lost_end_the_upload(api, client, tenant):
    path = await begin(client, 20)
    await send(client, path, 0, b"0123456789")
    for part in parts_of(api, tenant):
        part.unlink()
    is_problem(await send(client, path, 10, b"0123456789"), 422, "file.unreadable")
    assert (await client.get("/api/v1/documents")).json()["items"] == []


async def test_another_server_goes_on_where_one_was_lost(servers, module_database, tmp_path):
    """Two servers on one database and one folder; the first one's lock runs out with it."""
    data = text(11 * MB)
    async with served_on(servers, module_database, tmp_path, max_file_mb=LIMIT_MB) as first:
        tenant = await first.new_tenant("moved")
        async with first.client(tenant["api_key"]) as client:
            path = await begin(client, len(data))
            await send(client, path, 0, data[: 6 * MB])
    conn = await asyncpg.connect(module_database.superuser)
    await conn.execute(
        "update uploads set holder = gen_random_uuid(), held_until = clock_timestamp() + interval '1 hour'"
        " where tenant_id = $1",
        tenant["id"],
    )
    async with (
        served_on(servers, module_database, tmp_path, max_file_mb=LIMIT_MB) as second,
        second.client(tenant["api_key"]) as client,
    ):
        assert await offset_of(client, path) == 6 * MB
        is_problem(await send(client, path, 6 * MB, data[6 * MB :]), 423, "upload.locked")
        await conn.execute("update uploads set held_until = clock_timestamp() where tenant_id = $1", tenant["id"])
        done = await send(client, path, 6 * MB, data[6 * MB :])
        assert done.status_code == 204, done.text
        found = await client.get(f"/api/v1/documents/{done.headers['dreamhub-document-id']}/content")
        assert found.content == data
    await conn.close()
