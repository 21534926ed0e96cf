"""Readers of events for the tests: a WebSocket, a stream of server-sent events, and one that never reads."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close

from internal.entities.events import PublishedEvent
from internal.entities.ids import new_id
from tests.ledger import Ledger

SOON = 15.0
WEBSOCKET, STREAM = "/api/v1/events", "/api/v1/events/stream"


class Events:
    """What one reader is told, without the progress of tasks unless it is asked for."""

    def __init__(self, messages: AsyncIterator[dict[str, Any]], first: dict[str, Any]) -> None:
        self._messages = messages
        self.first = first

    async def next(self, *, progress: bool = False) -> dict[str, Any]:
        async with asyncio.timeout(SOON):
            while True:
                found = await anext(self._messages)
                if progress or found["type"] != "task.progress":
                    return found

    async def take(self, count: int) -> list[dict[str, Any]]:
        return [await self.next() for _ in range(count)]

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Everything up to the first message of a type."""
        found = [await self.next(progress=True)]
        while found[-1]["type"] != kind:
            found.append(await self.next(progress=True))
        return found


@asynccontextmanager
async def socket_of(url: str, key: str, last_event_id: int | None = None) -> AsyncGenerator[ClientConnection]:
    """A WebSocket as a browser opens it."""
    query = "" if last_event_id is None else f"?last_event_id={last_event_id}"
    address = url.replace("http", "ws", 1) + WEBSOCKET + query
    # Without a bound on its queue: a client that has stopped reading doesn't see the answer to its goodbye.
    async with connect(address, subprotocols=["bearer", key], proxy=None, max_queue=None) as found:
        yield found


@asynccontextmanager
async def following(url: str, key: str, last_event_id: int | None = None) -> AsyncGenerator[Events]:
    async with socket_of(url, key, last_event_id) as found:

        async def messages() -> AsyncIterator[dict[str, Any]]:
            async for text in found:
                yield json.loads(text)
            raise EOFError

        read = messages()
        yield Events(read, await anext(read))


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, last_event_id: int | None = None) -> AsyncGenerator[Events]:
    """The same messages as server-sent events; `event: …` blocks come as `{"type": "event: …"}`."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    async with client.stream("GET", STREAM, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def messages() -> AsyncIterator[dict[str, Any]]:
            block: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if line and name:
                    block[name] = value
                elif not line and "data" in block:
                    data = json.loads(block["data"])
                    assert block.get("id") == (str(data["id"]) if "id" in data else None)
                    yield {"type": f"event: {block['event']}", "data": data} if "event" in block else data
                    block = {}

        read = messages()
        yield Events(read, await anext(read))


async def closed(found: ClientConnection, seconds: float = SOON) -> Close:
    """How the server closed it."""
    with pytest.raises(ConnectionClosed) as end:
        async with asyncio.timeout(seconds):
            while True:
                await found.recv()
    assert end.value.rcvd is not None, "cut without a word"
    return end.value.rcvd


async def silent(url: str, key: str, *, path: str = WEBSOCKET) -> socket.socket:
    """A connection that is opened and never read."""
    address = urlsplit(url)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, (address.hostname, address.port))
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{upgrade * (path == WEBSOCKET)}\r\n"
    await asyncio.get_running_loop().sock_sendall(made, request.encode())
    return made


async def flood(ledger: Ledger, tenant: str, count: int, *, length: int = 4000) -> None:
    """Alerts for everyone of a tenant, numbered and handed on as the relay does it, but in one statement."""
    last = await ledger.inspector.fetchval(
        "with place as (insert into outbox_positions as p (tenant_id, position) values ($1, $2)"
        " on conflict (tenant_id) do update set position = p.position + $2 returning position),"
        " alert as (insert into outbox (tenant_id, id, kind, payload, position, published_at)"
        " select $1, gen_random_uuid(), 'alert.raised', jsonb_build_object('name', 'test.flood', 'severity', 'info',"
        " 'detail', repeat('x', $3), 'visibility', 'tenant'), place.position - $2 + n, clock_timestamp()"
        " from place, generate_series(1, $2) n) select position from place",
        UUID(tenant),
        count,
        length,
    )
    await ledger.queue.broadcast(
        [PublishedEvent(tenant_id=UUID(tenant), id=new_id(), kind="alert.raised", position=last)]
    )
