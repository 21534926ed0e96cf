"""Virus scan of uploads by clamd. What couldn't be scanned is never accepted."""

import asyncio
import socket
import struct
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import clamd

from pkg.apperr import AppError, Code, SettingsError
from pkg.config import Scan

BLOCK_BYTES = 64 * 1024
PORT = 3310


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

    Wants `AlertExceedsMax yes` in clamd.conf: without it clamd says OK to what it didn't look into.
    """

    def __init__(self, settings: Scan, *, concurrency: int = 4) -> None:
        self._address = settings.clamd
        self._timeout = settings.timeout_seconds
        self._slots = asyncio.Semaphore(concurrency)

    async def scan(self, path: Path) -> None:
        """Streams the file to clamd and reads its verdict."""
        async with self._slots:
            try:
                answer = await asyncio.wait_for(asyncio.to_thread(self._instream, path), self._timeout + 5)
            except (OSError, TimeoutError) as error:
                raise _unavailable() from error
        _judge(answer)

    async def check(self) -> None:
        """Pings the daemon."""
        try:
            await asyncio.wait_for(asyncio.to_thread(lambda: self._client().ping()), self._timeout)
        except (clamd.ClamdError, OSError, TimeoutError) as error:
            raise _unavailable() from error

    def _instream(self, path: Path) -> str:
        """clamd's INSTREAM: blocks with a four-byte length before each, an empty one at the end.

        The package's own instream may send a block in part, and loses the answer when clamd hangs up early.
        """
        with self._connect() as connection, path.open("rb") as file:
            try:
                connection.sendall(b"zINSTREAM\0")
                while block := file.read(BLOCK_BYTES):
                    connection.sendall(struct.pack("!I", len(block)) + block)
                connection.sendall(struct.pack("!I", 0))
            except (BrokenPipeError, ConnectionResetError) as error:
                # It has heard enough (its size limit, usually) and has said so before it hung up.
                answer = _receive(connection)
                if not answer:
                    raise error from None
                return answer
            return _receive(connection)

    def _connect(self) -> socket.socket:
        if self._address.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout)
            connection.connect(self._address.removeprefix("unix:"))
            return connection
        url = urlsplit(self._address)
        return socket.create_connection((url.hostname, url.port or PORT), self._timeout)

    def _client(self) -> clamd.ClamdNetworkSocket:
        if self._address.startswith("unix:"):
            return clamd.ClamdUnixSocket(self._address.removeprefix("unix:"), timeout=self._timeout)
        url = urlsplit(self._address)
        return clamd.ClamdNetworkSocket(url.hostname or "", url.port or PORT, timeout=self._timeout)


def _receive(connection: socket.socket) -> str:
    answer = b""
    while not answer.endswith(b"\0") and (part := connection.recv(4096)):
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
    if settings.clamd.startswith("tcp://") and not urlsplit(settings.clamd).hostname:
        raise SettingsError("SCAN__CLAMD: want tcp://host:port")
    return Clamd(settings)


def _unavailable() -> AppError:
    return AppError(
        Code.SCAN_UNAVAILABLE,
        "The virus scanner can't be asked right now, so nothing is accepted; try again.",
        retry_after=10,
    )
