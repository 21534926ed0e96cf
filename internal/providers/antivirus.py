"""Virus scan of uploads by clamd. What couldn't be scanned is never accepted."""

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pkg.apperr import AppError, Code
from pkg.sections import Scan

BLOCK_BYTES = 256 * 1024
ANSWER_BYTES = 4096
PORT = 3310
CONCURRENCY = 4
"""Scans that a server has running at a time; clamd's own threads are about as many as a machine has cores."""


class Antivirus(Protocol):
    """Says whether a file may come in."""

    async def scan(self, path: Path) -> None:
        """Raises FILE_INFECTED, FILE_SCAN_LIMIT, or SCAN_UNAVAILABLE (down, slow, or unable to tell)."""
        ...

    async def check(self) -> None:
        """Raises SCAN_UNAVAILABLE when the scanner doesn't answer."""
        ...


class NoScan:
    """The scanner that `SCAN__CLAMD=off` chooses; settings refuse it in production."""

    async def scan(self, path: Path) -> None:
        """Accepts everything."""

    async def check(self) -> None:
        """Always ready."""


class Clamd:
    """clamd over its socket: each scan streams the file, so that the daemon needs no access to our folders.

    Wants `AlertExceedsMax yes` in clamd.conf: without it clamd says OK to what it didn't look into. A few scans run at
    a time; waiting for a turn counts as waiting for clamd, so that a crowd before a slow daemon is sent away in time.
    """

    def __init__(self, settings: Scan, *, concurrency: int = CONCURRENCY) -> None:
        self._address = settings.clamd
        self._timeout = settings.timeout_seconds
        self._slots = asyncio.Semaphore(concurrency)

    async def scan(self, path: Path) -> None:
        """Streams the file to clamd and reads its verdict."""
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                answer = await self._instream(path)
        except (OSError, TimeoutError) as error:
            raise _unavailable() from error
        _judge(answer)

    async def check(self) -> None:
        """Pings the daemon."""
        try:
            async with asyncio.timeout(self._timeout):
                with await self._connected() as connection:
                    await asyncio.get_running_loop().sock_sendall(connection, b"zPING\0")
                    answer = await _receive(connection)
        except (OSError, TimeoutError) as error:
            raise _unavailable() from error
        if answer != "PONG":
            raise _unavailable()

    async def _instream(self, path: Path) -> str:
        """clamd's INSTREAM: blocks with a four-byte length before each, an empty one at the end."""
        loop = asyncio.get_running_loop()
        with await self._connected() as connection, path.open("rb") as file:
            try:
                await loop.sock_sendall(connection, b"zINSTREAM\0")
                while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                    await loop.sock_sendall(connection, struct.pack("!I", len(block)) + block)
                await loop.sock_sendall(connection, struct.pack("!I", 0))
            except (BrokenPipeError, ConnectionResetError) as error:
                # It has heard enough (its size limit, usually) and has said so before it hung up.
                answer = await _receive(connection)
                if not answer:
                    raise error from None
                return answer
            return await _receive(connection)

    async def _connected(self) -> socket.socket:
        """Raises OSError where nobody listens."""
        if self._address.startswith("unix:"):
            return await _connection(socket.AF_UNIX, self._address.removeprefix("unix:"))
        url = urlsplit(self._address)
        found = await asyncio.get_running_loop().getaddrinfo(
            url.hostname or "", url.port or PORT, type=socket.SOCK_STREAM
        )
        refusal = OSError("no address")
        for family, _, _, _, address in found:
            try:
                return await _connection(family, address)
            except OSError as error:
                refusal = error
        raise refusal


async def _connection(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:  # cancelled, too
        connection.close()
        raise
    return connection


async def _receive(connection: socket.socket) -> str:
    answer, loop = b"", asyncio.get_running_loop()
    while not answer.endswith(b"\0") and (part := await loop.sock_recv(connection, ANSWER_BYTES)):
        answer += part
    return answer.rstrip(b"\0").decode("utf-8", "replace").strip()


def _judge(answer: str) -> None:
    """Raises for everything but a plain OK: an answer that isn't understood is no permission."""
    if answer == "stream: OK":
        return
    if answer.startswith("INSTREAM size limit exceeded"):
        raise AppError(
            Code.FILE_SCAN_LIMIT,
            "The file is larger than the virus scanner accepts; split it, or have StreamMaxLength raised.",
        )
    if not answer.endswith(" FOUND"):
        raise _unavailable()
    name = answer.removeprefix("stream: ").removesuffix(" FOUND")
    if name.startswith("Heuristics.Limits.Exceeded"):
        raise AppError(
            Code.FILE_SCAN_LIMIT,
            "The file is nested too deeply or expands too far to be scanned; unpack it and upload the parts.",
        )
    raise AppError(Code.FILE_INFECTED, f"The virus scanner found {name} in this file; it was not stored.")


def open_antivirus(settings: Scan) -> Antivirus:
    """The scanner that `SCAN__CLAMD` names."""
    if settings.clamd == "off":
        return NoScan()
    return Clamd(settings)


def _unavailable() -> AppError:
    return AppError(
        Code.SCAN_UNAVAILABLE,
        "The virus scanner can't be asked right now, so nothing is accepted; try again.",
        retry_after=10,
    )
