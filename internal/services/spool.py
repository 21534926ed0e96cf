"""Receiving an upload into a temporary file while counting and hashing it."""

import asyncio
import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from io import RawIOBase
from pathlib import Path

import msgspec

from pkg.apperr import AppError, Code

FLUSH_BYTES = 1024 * 1024
HEAD_BYTES = 8192


class Spooled(msgspec.Struct, frozen=True):
    """A received file: where it lies, its size in bytes, its SHA-256, and its first bytes."""

    path: Path
    size: int
    sha256: bytes
    head: bytes


def spooled_file(path: Path) -> Spooled:
    """A file that lies there already. Blocks while it is hashed."""
    digest, size, head = hashlib.sha256(), 0, b""
    with path.open("rb") as file:
        while block := file.read(FLUSH_BYTES):
            head = head or block[:HEAD_BYTES]
            size += len(block)
            digest.update(block)
    return Spooled(path, size, digest.digest(), head)


@asynccontextmanager
async def spooled(chunks: AsyncIterator[bytes], *, folder: Path, limit: int) -> AsyncGenerator[Spooled]:
    """Receives at most `limit` bytes; the file is gone after the block.

    Raises FILE_TOO_LARGE as soon as the limit is passed, without reading on, and FILE_EMPTY.
    """
    handle, name = tempfile.mkstemp(prefix="upload-", dir=folder)
    path = Path(name)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            sink = _Sink(file)
            async for block in _blocks(chunks, limit):
                # Hashing and writing a megabyte takes milliseconds: off the event loop.
                await asyncio.to_thread(sink.write, block)
        if sink.size == 0:
            raise AppError(Code.FILE_EMPTY, "The file is empty; choose one that has content.")
        yield Spooled(path, sink.size, sink.digest.digest(), sink.head)
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


class _Sink:
    """Writes blocks and keeps count, digest and head."""

    def __init__(self, file: RawIOBase) -> None:
        self._file = file
        self.size = 0
        self.digest = hashlib.sha256()
        self.head = b""

    def write(self, block: bytes) -> None:
        self.head = self.head or block[:HEAD_BYTES]
        self.size += len(block)
        self.digest.update(block)
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]


async def _blocks(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """Gathers network chunks into blocks of about a megabyte; raises FILE_TOO_LARGE past `limit` bytes."""
    size, waiting = 0, bytearray()
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        waiting += chunk
        if len(waiting) >= FLUSH_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


def too_large(limit: int) -> AppError:
    """The answer for a file over `limit` bytes."""
    return AppError(
        Code.FILE_TOO_LARGE,
        f"The file is larger than the limit of {limit // (1024 * 1024)} MB; split it, or ask for a higher limit.",
    )


@asynccontextmanager
async def room_left() -> AsyncGenerator[None]:
    """A full disk is the operator's matter and passes: 503, not 500."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AppError(Code.BLOB_UNAVAILABLE, "The server's disk is full; try again later.", retry_after=60) from error
