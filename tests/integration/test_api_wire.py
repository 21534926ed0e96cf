"""What arrives below a request: heads of any size, what isn't HTTP, and clients that say nothing or too little."""

import asyncio
import json
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import pytest

from internal.handlers import protocol
from tests.integration.api import PROBLEM, Running, served_on
from tests.integration.following import STREAM, socket_of
from tests.servers import Database, Servers

ENOUGH = 4 * 1024 * 1024


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Running]:
    async with served_on(servers, module_database, tmp_path_factory.mktemp("wire")) as running:
        yield running


async def _answer(api: Running, sent: bytes) -> bytes:
    """Everything that comes back until the server hangs up."""
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


def _problem(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    problem = json.loads(body)
    assert set(problem) == PROBLEM
    assert f"x-request-id: {problem['request_id']}".encode() in head
    assert int(head.split()[1]) == problem["status"]
    return problem


@pytest.mark.parametrize(
    "start",
    [b"GET /", b"GET /healthz HTTP/1.1\r\nX-Long: ", b"GET /healthz HTTP/1.1\r\nHost: a\r\n"],
    ids=["request line", "one header", "many headers"],
)
async def test_a_head_without_end_is_refused(api: Running, start: bytes) -> None:
    more = b"X-Many: " + b"b" * 100 + b"\r\n" if start.endswith(b"\n") else b"a" * 1000
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(start)
    answering = asyncio.create_task(reader.read())
    taken = 0
    while not answering.done() and taken < ENOUGH:
        writer.write(more)
        taken += len(more)
        await asyncio.sleep(0)
        try:
            await writer.drain()
        except ConnectionError:
            break
    assert taken < ENOUGH
    await asyncio.gather(answering, return_exceptions=True)  # cut off with bytes unread, so perhaps reset
    writer.close()


async def test_a_head_that_is_too_long_is_told_so(api: Running) -> None:
    problem = _problem(await _answer(api, b"GET /healthz HTTP/1.1\r\nX-Long: " + b"a" * protocol.HEAD_BYTES))
    assert (problem["status"], problem["code"]) == (431, "request.too_large")
    allowed = b"GET /healthz HTTP/1.1\r\nX-Long: " + b"a" * 30_000 + b"\r\nConnection: close\r\n\r\n"
    assert (await _answer(api, allowed)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"NONSENSE / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"])
async def test_what_is_not_http_is_a_problem_too(api: Running, sent: bytes) -> None:
    problem = _problem(await _answer(api, sent))
    assert (problem["status"], problem["code"]) == (400, "request.malformed")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /heal"])
async def test_a_client_that_stops_in_a_head_is_not_waited_for(
    api: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    answer = await _answer(api, sent)
    assert answer.startswith(b"HTTP/1.1 200") if b"\r\n\r\n" in sent else answer == b""


SIGN_IN = b"POST /api/v1/auth/token HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 10\r\n\r\n", b"Content-Length: 10\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"],
    ids=["nothing", "a part", "a part of a chunk"],
)
async def test_a_body_that_does_not_come_is_not_waited_for(
    api: Running, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.2)
    problem = _problem(await _answer(api, SIGN_IN + body))
    assert (problem["status"], problem["code"]) == (408, "request.too_slow")


async def test_a_body_that_comes_by_bytes_is_not_waited_for(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.4)
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(SIGN_IN + b"Content-Length: 1000\r\n\r\n")
    answering = asyncio.create_task(reader.read())
    async with asyncio.timeout(10):
        while not answering.done():
            writer.write(b" ")
            await asyncio.sleep(0.05)
    assert _problem(answering.result())["code"] == "request.too_slow"
    writer.close()


async def test_a_body_that_goes_on_may_take_longer(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(protocol, "BODY_BYTES", 10)
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(SIGN_IN + b"Connection: close\r\nContent-Length: 60\r\n\r\n")
    for _ in range(6):
        await asyncio.sleep(0.25)
        writer.write(b"x" * 10)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"request.malformed" in answer
    writer.close()


async def test_the_body_of_an_answered_request_is_not_waited_for(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.2)
    answer = await _answer(api, b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


async def test_followers_send_no_body(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.1)
    key = (await api.new_tenant("silent"))["api_key"]
    async with socket_of(api.url, key) as socket:
        await asyncio.sleep(0.4)
        await asyncio.wait_for(await socket.ping(), 10)


async def test_a_refusal_is_not_written_into_an_answer(api: Running) -> None:
    key = (await api.new_tenant("streaming"))["api_key"]
    asked = f"GET {STREAM} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(asked)
    async with asyncio.timeout(10):
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        for part in (b"GET /healthz HTTP/1.1\r\nX-Long: ", b"a" * protocol.HEAD_BYTES, b"a" * protocol.HEAD_BYTES):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)
        assert b"HTTP/1.1" not in await reader.read()
    writer.close()
