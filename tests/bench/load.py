"""A load generator in a process of its own: `python -m tests.bench.load URL KEY CLIENTS SECONDS BODIES`.

Each client keeps one connection and sends the next request as soon as the last one is answered. BODIES is a file with
a JSON list of request bodies, sent in turn. Prints one JSON object. Raw sockets: a client library would cost as much
as the server.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import msgspec
import uvloop

HEAD_END = b"\r\n\r\n"
PATIENCE = 30.0


class Load(msgspec.Struct, frozen=True):
    """How long it was measured, requests a second, and milliseconds of one."""

    seconds: float
    rps: float
    p50_ms: float
    p95_ms: float


def load_of(seconds: float, taken: list[float]) -> Load:
    """Of all requests' durations, in seconds."""
    cuts = statistics.quantiles(taken, n=20, method="inclusive")
    return Load(seconds, len(taken) / seconds, statistics.median(taken) * 1000, cuts[18] * 1000)


class Client(asyncio.Protocol):
    """One connection that is never idle until `until`."""

    def __init__(self, requests: list[bytes], first: int, until: float, done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._next = first
        self._until = until
        self._done = done
        self._answer = bytearray()
        self._began = 0.0
        self._transport: asyncio.WriteTransport | None = None
        self.taken: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none of asyncio's classes
        self._send()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head = self._answer.find(HEAD_END)
        if head < 0 or len(self._answer) < head + len(HEAD_END) + _length(bytes(self._answer[:head])):
            return
        if not self._answer.startswith(b"HTTP/1.1 200"):
            self._fail(bytes(self._answer[-500:]).decode(errors="replace"))
            return
        now = time.perf_counter()
        self.taken.append(now - self._began)
        self._answer.clear()
        if now < self._until:
            self._send()
        else:
            self._close()
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._fail(f"the server closed the connection: {exc}")

    def _send(self) -> None:
        assert self._transport is not None
        self._began = time.perf_counter()
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1

    def _fail(self, why: str) -> None:
        self._done.set_exception(RuntimeError(why))
        self._close()

    def _close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def _length(head: bytes) -> int:
    """Both servers send content-length; chunked answers aren't read here."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise RuntimeError(f"an answer without content-length: {head.decode(errors='replace')}")


def request(url: str, key: str, body: msgspec.Raw) -> bytes:
    """The bytes of one POST."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(bytes(body))}\r\n\r\n"
    )
    return head.encode() + bytes(body)


async def run(url: str, requests: list[bytes], clients: int, seconds: float) -> Load:
    """Every client sends until the time is over."""
    loop, parts = asyncio.get_running_loop(), urlsplit(url)
    began = time.perf_counter()
    running: list[Client] = []
    ends: list[asyncio.Future[None]] = []
    for number in range(clients):
        done: asyncio.Future[None] = loop.create_future()
        client = Client(requests, number * len(requests) // clients, began + seconds, done)
        await loop.create_connection(lambda client=client: client, parts.hostname or "", parts.port or 80)
        running.append(client)
        ends.append(done)
    await asyncio.wait_for(asyncio.gather(*ends), seconds + PATIENCE)
    return load_of(time.perf_counter() - began, [taken for client in running for taken in client.taken])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("key")
    parser.add_argument("clients", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("bodies", type=Path)
    flags = parser.parse_args()
    bodies = msgspec.json.decode(flags.bodies.read_bytes(), type=list[msgspec.Raw])
    requests = [request(flags.url, flags.key, body) for body in bodies]
    found = uvloop.run(run(flags.url, requests, flags.clients, flags.seconds))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
