"""Followers of a server that is killed, stopped, or never read from: real processes."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import WebSocketException

from tests.integration.api import PLATFORM_TOKEN, Running, served_on
from tests.integration.following import STREAM, closed, flood, following, silent, socket_of, streaming
from tests.integration.server_process import ServerProcess, server_process
from tests.ledger import Ledger, open_ledger
from tests.servers import Database, Servers

MEGABYTE = 1024 * 1024


@pytest.fixture
async def ledger(servers: Servers, database: Database) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, servers.redis_url) as found, found.relay():
        yield found


@pytest.fixture
async def server(servers: Servers, database: Database, ledger: Ledger, tmp_path: Path) -> AsyncGenerator[ServerProcess]:
    (tmp_path / "first").mkdir()
    async with server_process(database, servers.redis_url, tmp_path / "first") as found:
        yield found


@pytest.fixture
async def second(servers: Servers, database: Database, ledger: Ledger, tmp_path: Path) -> AsyncGenerator[Running]:
    async with served_on(servers, database, tmp_path, rate_per_minute=100_000) as found:
        yield found


async def tenant(server: ServerProcess, name: str) -> dict[str, Any]:
    body = {"name": name, "owner_email": f"owner@{name}.example"}
    async with client_of(server, PLATFORM_TOKEN) as platform:
        answer = await platform.post("/api/v1/tenants", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def client_of(server: ServerProcess, key: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30, trust_env=False)


async def test_a_killed_server_costs_no_event_and_repeats_none(server: ServerProcess, second: Running) -> None:
    made = await tenant(server, "killed")
    sent: list[str] = []

    async def upload_elsewhere() -> None:
        async with second.client(made["api_key"]) as client:
            for number in range(40):
                answer = await client.post("/api/v1/documents", files={"file": ("a.txt", f"text {number}".encode())})
                sent.append(answer.json()["task_id"])

    async def kill() -> None:
        while len(sent) < 12:
            await asyncio.sleep(0.01)
        await server.end(signal.SIGKILL)
        await server.start()

    trouble = asyncio.gather(upload_elsewhere(), kill())
    seen: list[dict[str, Any]] = []
    position = 0
    async with asyncio.timeout(200):
        while len(seen) < 40:
            try:
                async with following(server.url, made["api_key"], position) as reader:
                    while len(seen) < 40:
                        seen.append(await reader.next())
                        position = seen[-1]["id"]
            except (OSError, EOFError, WebSocketException):
                await asyncio.sleep(0.1)
    await trouble
    assert [item["id"] for item in seen] == list(range(1, 41))
    assert [item["data"]["task_id"] for item in seen] == sent


async def test_a_server_that_stops_says_so_and_waits_for_nobody(server: ServerProcess, ledger: Ledger) -> None:
    made = await tenant(server, "stopped")
    async with AsyncExitStack() as stack:
        deaf = await silent(server.url, made["api_key"])
        stack.callback(deaf.close)
        socket = await stack.enter_async_context(socket_of(server.url, made["api_key"]))
        client = await stack.enter_async_context(client_of(server, made["api_key"]))
        stream = await stack.enter_async_context(streaming(client))
        await flood(ledger, made["id"], 900)
        assert len(await stream.take(900)) == 900
        ending = asyncio.create_task(server.end(signal.SIGTERM))
        end = await closed(socket)
        assert end.code == 1012
        bye = await stream.next()
        assert bye["type"] == "event: bye"
        assert bye["data"]["retry_ms"] > 0
        async with asyncio.timeout(30):
            assert await ending == 0


@pytest.mark.long
async def test_five_hundred_readers_that_do_not_read_cost_bounded_memory(server: ServerProcess, ledger: Ledger) -> None:
    made = await tenant(server, "deaf")
    async with AsyncExitStack() as stack:
        for number in range(500):
            path = STREAM if number % 2 else "/api/v1/events"
            stack.callback((await silent(server.url, made["api_key"], path=path)).close)
        async with following(server.url, made["api_key"]) as reader:
            before = server.rss
            largest = 0
            for _ in range(20):
                await flood(ledger, made["id"], 500)
                await reader.take(500)
                largest = max(largest, server.rss)
    print(f"{before / MEGABYTE:.0f} MB with 500 readers, at most {largest / MEGABYTE:.0f} MB while they don't read")
    assert largest - before < 150 * MEGABYTE
