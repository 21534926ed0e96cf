"""The API's address, held by `up` itself for as long as it runs.

While no server runs, connections wait in the kernel's queue instead of being refused. When none comes up for a while,
they are answered here, so that a client knows when to come again.
"""

import asyncio
import errno
import math
import random
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import msgspec

from dreamhub.embedded import PORTS
from dreamhub.errors import StartError
from pkg.apperr import Code

BACKLOG = 2048
PATIENCE = 1.0  # seconds; in a shorter pause everybody waits
PORT_TRIES = 200
ANSWERED_AT_A_TIME = 200
CALLER_SECONDS = 2.0
READ_BYTES = 64 * 1024
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Listener:
    """Listening sockets on every address that a host name has here, all of one port."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = tuple(sockets)
        self._callers = 0
        self.port: int = sockets[0].getsockname()[1]
        self.descriptors = tuple(held.fileno() for held in sockets)

    @classmethod
    def open(cls, host: str, port: int) -> "Listener":
        """Port 0 picks a free one. Raises StartError that says what is wrong in one line."""
        for _ in range(PORT_TRIES):
            chosen = port or random.choice(PORTS)  # noqa: S311 - not a secret
            try:
                return cls(_listen(host, chosen))
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno in ABSENT:
                    raise StartError(
                        f"SERVER__HOST: {host} is no address of this machine ({error.strerror}); set one that it has"
                    ) from None
                if port or error.errno != errno.EADDRINUSE:
                    problem = "is in use" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
                    raise StartError(
                        f"port {chosen} on {host} {problem}; choose another with --port N (0 picks a free one)"
                    ) from None
        raise StartError(f"no free port between {PORTS.start} and {PORTS.stop} on {host}")

    def close(self) -> None:
        """From now on a server's own copies decide whether anybody can connect."""
        for held in self._sockets:
            held.close()

    @asynccontextmanager
    async def meanwhile(self, seconds: float) -> AsyncGenerator[None]:
        """Around a pause of `seconds` before the next start of the server: in a long one, callers are answered 503."""
        if seconds < PATIENCE:
            yield
            return
        until = time.monotonic() + seconds

        async def excuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._excuse(reader, writer, until - time.monotonic())

        servers = [await asyncio.start_server(excuse, sock=held.dup(), backlog=BACKLOG) for held in self._sockets]
        try:
            yield
        finally:
            for server in servers:
                server.close()

    async def _excuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
        """Says to one caller that nobody is there for `seconds`. Whoever comes in a crowd is hung up on."""
        self._callers += 1
        try:
            if self._callers <= ANSWERED_AT_A_TIME:
                async with asyncio.timeout(CALLER_SECONDS):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(_unavailable(seconds))
                    writer.write_eof()
                    # Closing on bytes that were not read would reset the connection before the answer is read.
                    while await reader.read(READ_BYTES):
                        pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            self._callers -= 1
            with suppress(OSError):
                writer.close()


def _listen(host: str, port: int) -> list[socket.socket]:
    """One socket an address. One that this machine doesn't have, such as ::1 without IPv6, is left out if others do."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, address) for family, _, _, _, address in found)
    opened: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in addresses:
            try:
                opened.append(_bound(family, address, alone=len(addresses) == 1))
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
        if absent is not None and not opened:
            raise absent
    except OSError:
        for held in opened:
            held.close()
        raise
    return opened


def _bound(family: int, address: tuple[object, ...], *, alone: bool) -> socket.socket:
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT may be listened on
        if family == socket.AF_INET6:  # `::` alone takes IPv4 too; beside a socket for IPv4 it must not
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
        held.bind(address)
        held.listen(BACKLOG)
    except OSError:
        held.close()
        raise
    return held


def _unavailable(seconds: float) -> bytes:
    """A whole answer, as the API itself would give it."""
    status, code = HTTPStatus.SERVICE_UNAVAILABLE, Code.SERVER_UNAVAILABLE
    problem = {
        "type": f"/docs#{code}",
        "title": status.phrase,
        "status": status.value,
        "detail": "The API server is being started again; try again shortly.",
        "code": code.value,
        "request_id": "",
    }
    body = msgspec.json.encode(problem)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Retry-After: {max(1, math.ceil(seconds))}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
