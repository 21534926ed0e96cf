"""Connections of a real server that is told to stop: what is on its way is answered, and told that it is the last."""

import asyncio
import signal
from pathlib import Path

from tests.integration.server_process import ServerProcess, server_process
from tests.servers import Database, Servers

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Connection:
    """One connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, server: ServerProcess) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2])))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> bool:
        """Reads one whole answer of 200; True where it is the last."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200 ")
        await self._reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        return b"connection: close\r\n" in head

    async def ended(self) -> bool:
        """Closed properly, with nothing more to read."""
        return await self._reader.read() == b""


async def test_each_connection_gets_the_answers_it_is_due(servers: Servers, database: Database, tmp_path: Path) -> None:
    async with asyncio.timeout(90), server_process(database, servers.redis_url, tmp_path) as server:
        busy, halfway, silent = [await Connection.open(server) for _ in range(3)]
        halfway.send(REQUEST[:20])
        ending = asyncio.create_task(server.end(signal.SIGTERM))
        last, answered = False, 0
        while not last:
            busy.send(REQUEST)
            last = await busy.answer()
            answered += 1
        halfway.send(REQUEST[20:])
        assert await halfway.answer()
        assert answered > 1
        assert [await found.ended() for found in (busy, halfway, silent)] == [True] * 3
        assert await ending == 0
