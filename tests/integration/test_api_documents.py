"""Documents over HTTP: uploads of every shape, their bounds, downloads, and changes."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dreamhub.embedded import free_port
from internal.services import documents as documents_service
from tests.integration.api import JWT_SECRET, PLATFORM_TOKEN, Running, is_problem, served_on
from tests.servers import Database, Servers

MB = 1024 * 1024
LIMIT_MB = 2
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Running]:
    folder = tmp_path_factory.mktemp("api")
    async with served_on(servers, module_database, folder, rate_per_minute=100_000, max_file_mb=LIMIT_MB) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(api: Running) -> dict[str, Any]:
    return await api.new_tenant("papers")


@pytest.fixture
async def client(api: Running, tenant: dict[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
    async with api.client(tenant["api_key"]) as found:
        yield found


async def upload(client: httpx.AsyncClient, data: bytes, name: str = "note.txt", **fields: Any) -> httpx.Response:
    return await client.post("/api/v1/documents", files={"file": (name, data)}, data=fields)


async def test_an_upload_is_accepted_then_known(client: httpx.AsyncClient) -> None:
    first = await upload(
        client,
        b"an ordinary note",
        "报告 1.txt",
        priority="high",
        tags="a, b",
        collection="Inbox",
        visibility="private",
    )
    assert first.status_code == 202, first.text
    made = first.json()
    assert made["duplicate"] is False
    document = (await client.get(f"/api/v1/documents/{made['document_id']}")).json()
    assert document["filename"] == "报告 1.txt"
    assert (document["tags"], document["collection"], document["visibility"]) == (["a", "b"], "Inbox", "private")
    assert (document["media_type"], document["size"], document["status"]) == ("text/plain", 16, "queued")
    task = (await client.get(f"/api/v1/tasks/{made['task_id']}")).json()
    assert (task["queue"], task["status"], task["document_id"]) == ("high_priority", "queued", made["document_id"])
    assert task["attempts"] == []
    again = await upload(client, b"an ordinary note")
    assert again.status_code == 200
    assert again.json() == made | {"duplicate": True}


async def test_fields_may_follow_the_file(client: httpx.AsyncClient) -> None:
    boundary = "xyz"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="late.txt"\r\n\r\nlate fields\r\n',
        f'--{boundary}\r\nContent-Disposition: form-data; name="visibility"\r\n\r\nprivate\r\n',
        f'--{boundary}\r\nContent-Disposition: form-data; name="priority"\r\n\r\nbatch\r\n--{boundary}--\r\n',
    ]
    answer = await client.post(
        "/api/v1/documents",
        content="".join(parts).encode(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert answer.status_code == 202, answer.text
    document = (await client.get(f"/api/v1/documents/{answer.json()['document_id']}")).json()
    assert document["visibility"] == "private"
    assert (await client.get(f"/api/v1/tasks/{answer.json()['task_id']}")).json()["queue"] == "batch"


async def test_ten_uploads_at_once_are_one_document(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(upload(client, b"the same at once", f"{n}.txt") for n in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [202]
    assert len({answer.json()["document_id"] for answer in answers}) == 1
    assert len({answer.json()["task_id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    ("data", "name", "fields", "status", "code"),
    [
        (b"", "empty.txt", {}, 422, "file.empty"),
        (b"MZ\x90\x00" + b"\x00" * 200, "tool.exe", {}, 415, "file.type_not_allowed"),
        (b"\x7fELF\x02\x01\x01" + b"\x00" * 200, "report.pdf", {}, 415, "file.type_not_allowed"),
        (b"text", "..", {}, 422, "file.name_invalid"),
        (b"text a", "a.txt", {"priority": "urgent"}, 400, "request.invalid"),
        (b"text b", "a.txt", {"visibility": "everyone"}, 400, "request.invalid"),
        (b"text c", "a.txt", {"tags": "a\x00b"}, 400, "request.invalid"),
        (b"text d", "a.txt", {"colour": "red"}, 400, "request.invalid"),
        (b"text e", "a.txt", {"collection": "x" * 300}, 400, "request.invalid"),
        (b"x" * (LIMIT_MB * MB + 1), "big.txt", {}, 413, "file.too_large"),
        (b"x" * (LIMIT_MB * MB + 1), "big.txt", {"tags": "a"}, 413, "file.too_large"),
    ],
)
async def test_bad_uploads(
    client: httpx.AsyncClient, data: bytes, name: str, fields: dict[str, str], status: int, code: str
) -> None:
    answer = await upload(client, data, name, **fields)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_file_of_exactly_the_limit_is_taken(client: httpx.AsyncClient) -> None:
    assert (await upload(client, b"y" * (LIMIT_MB * MB), tags="a")).status_code == 202


async def test_a_nul_in_a_file_name(client: httpx.AsyncClient) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\x00b.txt"\r\n\r\ntext\r\n--b--\r\n'
    answer = await client.post(
        "/api/v1/documents", content=form, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "file.name_invalid")


@pytest.mark.parametrize(
    ("disposition", "shown"),
    [
        (b"filename*=UTF-8''%E4%B8%AD.txt", "中.txt"),
        (b"filename=\"_.txt\"; filename*=UTF-8''%E4%B8%AD.txt", "中.txt"),
        ('filename="中文报告.txt"'.encode("gb18030"), "中文报告.txt"),
    ],
)
async def test_names_that_old_and_foreign_clients_send(
    client: httpx.AsyncClient, disposition: bytes, shown: str
) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; ' + disposition + b"\r\n\r\n"
    answer = await client.post(
        "/api/v1/documents",
        content=head + b"named: " + disposition.hex().encode() + b"\r\n--b--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 202, answer.text
    found = await client.get(f"/api/v1/documents/{answer.json()['document_id']}")
    assert found.json()["filename"] == shown


async def test_an_upload_that_is_no_form(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/documents", json={"file": "x"})
    assert (answer.status_code, answer.json()["code"]) == (415, "request.unsupported_media_type")
    answer = await client.post("/api/v1/documents", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert (answer.status_code, answer.json()["code"]) == (400, "request.malformed")


async def test_too_large_is_answered_before_the_body_is_sent(api: Running, tenant: dict[str, Any]) -> None:
    """A declared length alone is enough; not a byte of the file has left the client."""
    address = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(address[0], int(address[1]))
    writer.write(
        (
            f"POST /api/v1/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant['api_key']}\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {10_000 * MB}\r\n\r\n"
        ).encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head.lower()
    writer.close()


async def test_an_endless_upload_is_cut_off(api: Running, tenant: dict[str, Any]) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        while True:
            sent += 65536
            yield b"x" * 65536

    async with api.client(tenant["api_key"]) as client:
        try:
            answer = await client.post(
                "/api/v1/documents", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"}
            )
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the server hung up while we were still sending, which is its right
    assert LIMIT_MB * MB < sent < 400 * MB


async def test_a_client_that_sends_all_before_it_reads_is_told_too(client: httpx.AsyncClient) -> None:
    answer = await upload(client, b"x" * (40 * MB), tags="a")
    assert (answer.status_code, answer.json()["code"]) == (413, "file.too_large")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_client_that_hangs_up_leaves_nothing(
    api: Running, tenant: dict[str, Any], client: httpx.AsyncClient
) -> None:
    address = api.url.removeprefix("http://").split(":")
    spool = Path(api.services.settings.home) / "tmp"
    _, writer = await asyncio.open_connection(address[0], int(address[1]))
    writer.write(
        (
            f"POST /api/v1/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant['api_key']}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="tags"\r\n\r\na\r\n'
            '--b\r\nContent-Disposition: form-data; name="file"; filename="gone.txt"\r\n\r\nhalf of'
        ).encode()
    )
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.transport.abort()
    for _ in range(100):
        if not _files(spool):
            break
        await asyncio.sleep(0.02)
    assert _files(spool) == []
    names = [item["filename"] for item in (await client.get("/api/v1/documents?limit=200")).json()["items"]]
    assert "gone.txt" not in names


async def test_content_is_an_attachment_that_runs_nowhere(client: httpx.AsyncClient) -> None:
    data = b"<!doctype html><html><body><script>alert(1)</script><p>words</p></body></html>"
    made = (await upload(client, data, '页"面.html')).json()
    answer = await client.get(f"/api/v1/documents/{made['document_id']}/content")
    assert answer.content == data
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert "filename*=UTF-8''%E9%A1%B5%22%E9%9D%A2.html" in answer.headers["content-disposition"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    part = await client.get(f"/api/v1/documents/{made['document_id']}/content", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, data[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(data)}"
    beyond = await client.get(f"/api/v1/documents/{made['document_id']}/content", headers={"Range": "bytes=5000-"})
    is_problem(beyond, 416, "request.range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(data)}"
    told = await client.head(f"/api/v1/documents/{made['document_id']}/content")
    assert (told.status_code, told.content, told.headers["content-length"]) == (200, b"", str(len(data)))
    assert {**told.headers, "x-request-id": "", "date": ""} == {**answer.headers, "x-request-id": "", "date": ""}


async def test_changing_and_deleting(client: httpx.AsyncClient) -> None:
    made = (await upload(client, b"to be changed", "old.txt")).json()
    path = f"/api/v1/documents/{made['document_id']}"
    changed = await client.patch(path, json={"name": "new.txt", "tags": ["x"], "collection": "Later"})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["filename"], changed.json()["tags"], changed.json()["collection"]) == (
        "new.txt",
        ["x"],
        "Later",
    )
    same = (await client.patch(path, json={"collection": None})).json()
    assert (same["filename"], same["tags"], same["collection"]) == ("new.txt", ["x"], None)
    gone = await client.delete(path)
    assert gone.status_code == 202
    assert gone.json()["kind"] == "purge_content"
    assert (await client.get(path)).status_code == 404


async def test_private_documents_are_their_owners(
    api: Running, tenant: dict[str, Any], client: httpx.AsyncClient
) -> None:
    made = (await upload(client, b"my own business", visibility="private")).json()
    await client.post(
        "/api/v1/members", json={"email": "m@papers.example", "password": "correct horse", "role": "admin"}
    )
    async with api.client() as anonymous:
        token = await anonymous.post(
            "/api/v1/auth/token", json={"email": " M@Papers.example ", "password": "correct horse"}
        )
    async with api.client(token.json()["access_token"]) as other:
        for path in ("", "/content", "/chunks"):
            assert (await other.get(f"/api/v1/documents/{made['document_id']}{path}")).status_code == 404
        assert (await other.delete(f"/api/v1/documents/{made['document_id']}")).status_code == 404
        listed = (await other.get("/api/v1/documents?limit=200")).json()["items"]
        assert made["document_id"] not in [item["id"] for item in listed]
        own = await upload(other, b"my own business")
        assert (own.status_code, own.json()["duplicate"]) == (202, False)


async def test_lists_go_page_by_page(api: Running) -> None:
    made = await api.new_tenant("pages")
    async with api.client(made["api_key"]) as client:
        ids = [(await upload(client, f"text {number}".encode())).json()["document_id"] for number in range(5)]
        found: list[str] = []
        cursor = None
        while True:
            parameters = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/api/v1/documents", params=parameters)).json()
            found += [item["id"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    assert found == ids[::-1]


async def test_a_hundred_megabytes_do_not_pass_through_memory(
    servers: Servers, module_database: Database, tmp_path: Path
) -> None:
    """The real process: how much larger does it become while it takes in 100 MB?"""
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{CHECKOUT / 'cmd'}:{CHECKOUT}",
        "DREAMHUB_HOME": str(tmp_path),
        "SERVER__PORT": str(port),
        "DB__DSN": module_database.app,
        "REDIS__URL": servers.redis_url,
        "BLOBS__URL": (tmp_path / "blobs").as_uri(),
        "MODELS__URL": "http://127.0.0.1:9",
        "AUTH__PLATFORM_TOKEN": PLATFORM_TOKEN,
        "AUTH__JWT_SECRET": JWT_SECRET,
    }
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dreamhub", "serve", env=environment, cwd=CHECKOUT, stdout=log, stderr=log
        )
    try:
        await _listening(port)
        server = psutil.Process(process.pid)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            answer = await client.post(
                "/api/v1/tenants",
                json={"name": "large", "owner_email": "o@large.example"},
                headers={"Authorization": f"Bearer {PLATFORM_TOKEN}"},
            )
            client.headers["Authorization"] = f"Bearer {answer.json()['api_key']}"
            for number in range(3):  # what the first uploads load and keep isn't growth
                await upload(client, f"warm {number}".encode() * 500_000, tags="a")
            before = server.memory_info().rss
            highest = before
            path = tmp_path / "large.txt"
            with path.open("wb") as file:
                for number in range(100 * 16):
                    file.write(f"{number:05}".encode() * 13107)
            with path.open("rb") as file:
                sending = asyncio.create_task(
                    client.post("/api/v1/documents", files={"file": ("large.txt", file)}, data={"tags": "a"})
                )
                while not sending.done():
                    highest = max(highest, server.memory_info().rss)
                    await asyncio.sleep(0.005)
            assert (await sending).status_code == 202, (await sending).text
        assert highest - before < 20 * MB, f"{(highest - before) / MB:.1f} MB"
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _listening(port: int) -> None:
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        await asyncio.sleep(0.05)
    raise AssertionError("the server doesn't listen")


async def test_tasks_are_cancelled_and_tried_again_by_a_filter(client: httpx.AsyncClient) -> None:
    made = [(await upload(client, f"note {number}".encode(), f"{number}.txt")).json() for number in range(3)]
    one = {"document_ids": [made[0]["document_id"]]}
    answer = await client.post("/api/v1/tasks/cancel", json=one)
    assert (answer.status_code, answer.json()) == (202, {"cancelled": 1, "more": False})
    rest = await client.post("/api/v1/tasks/cancel", json={"status": "queued", "ids": [m["task_id"] for m in made]})
    assert rest.json() == {"cancelled": 2, "more": False}
    document = (await client.get(f"/api/v1/documents/{made[0]['document_id']}")).json()
    assert document["status"] == "cancelled"
    again = await client.post("/api/v1/tasks/retry", json={"status": "cancelled", **one})
    assert (again.status_code, again.json()) == (202, {"retried": 1, "more": False})


async def test_a_bulk_import_goes_to_batch_by_itself(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_service, "BULK_FILES", 1)

    async def queue_of(data: bytes, **fields: str) -> str:
        made = (await upload(client, data, **fields)).json()
        return (await client.get(f"/api/v1/tasks/{made['task_id']}")).json()["queue"]

    await queue_of(b"the first of many", priority="normal")
    assert await queue_of(b"the second of many") == "batch"
    assert await queue_of(b"the third of many", priority="normal") == "default"


async def test_the_platform_sets_a_tenants_weight(api: Running, client: httpx.AsyncClient) -> None:
    tenant = (await client.get("/api/v1/me")).json()["tenant"]
    path = f"/api/v1/tenants/{tenant['id']}"
    async with api.client(PLATFORM_TOKEN) as platform:
        answer = await platform.patch(path, json={"queue_weight": 5})
        assert (answer.status_code, answer.json()) == (200, {**tenant, "queue_weight": 5})
        for wrong in ({"queue_weight": 0}, {"queue_weight": 101}, {}):
            is_problem(await platform.patch(path, json=wrong), 400, "request.invalid")
        for unknown in ("nope", "01900000-0000-7000-8000-000000000000"):
            answer = await platform.patch(f"/api/v1/tenants/{unknown}", json={"queue_weight": 5})
            is_problem(answer, 404, "tenant.not_found")
    is_problem(await client.patch(path, json={"queue_weight": 5}), 401, "auth.invalid_token")


@pytest.mark.parametrize(
    "body", [{}, {"status": None}, {"status": "lost"}, {"ids": []}, {"ids": ["x"]}, {"document_id": []}, {"kind": ""}]
)
async def test_a_filter_that_chooses_nothing_or_anything_is_refused(client: httpx.AsyncClient, body: Any) -> None:
    for path in ("tasks/cancel", "tasks/retry"):
        is_problem(await client.post(f"/api/v1/{path}", json=body), 400, "request.invalid")


async def test_dead_letters_are_discarded_by_admins(api: Running, client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/v1/dead-letters/discard", json={})).json() == {"discarded": 0, "more": False}
    assert (await client.post("/api/v1/dead-letters/redrive")).json() == {"redriven": 0, "more": False}
    narrowed = await client.post("/api/v1/dead-letters/redrive", json={"error_code": "task.poison"})
    assert (narrowed.status_code, narrowed.json()) == (202, {"redriven": 0, "more": False})
    naive = await client.post("/api/v1/dead-letters/redrive", json={"before": "2026-01-01T00:00:00"})
    is_problem(naive, 400, "request.invalid")
    is_problem(await client.get("/api/v1/dead-letters?after=2020-01-01T00:00:00"), 400, "request.invalid")
    found = await client.get(
        "/api/v1/dead-letters?queue=batch&kind=ingest_content&error_code=x&after=2020-01-01T00:00:00Z"
        "&before=2090-01-01T00:00:00Z"
    )
    assert (found.status_code, found.json()["items"]) == (200, [])
    member = await api.new_key(client.headers["authorization"].removeprefix("Bearer "), "member")
    async with api.client(member) as other:
        is_problem(await other.post("/api/v1/dead-letters/discard", json={}), 403, "auth.forbidden")
