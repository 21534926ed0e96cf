"""A request's bytes, cut into parts as they come."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from pkg.apperr import AppError, Code

ALGORITHMS = ("sha256", "sha1")


class Checksum(msgspec.Struct, frozen=True):
    """What the bytes of one request hash to, by one of ALGORITHMS."""

    algorithm: str
    digest: bytes


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of one request. `chunks` raises AppError where they break off; `size` is what was declared."""

    chunks: AsyncIterator[bytes]
    size: int | None = None
    checksum: Checksum | None = None


class Pieces:
    """Use: while there is `more`, read a `part` to its end. `error` says why the bytes broke off, if they did."""

    def __init__(self, body: Body, *, limit: int) -> None:
        self._chunks = body.chunks
        self._left = limit
        self._next = b""
        self._wanted = body.checksum
        self._digest = hashlib.new(body.checksum.algorithm, usedforsecurity=False) if body.checksum else None
        self.error: AppError | None = None

    async def more(self) -> bool:
        """Whether another byte came. Raises REQUEST_TOO_LARGE for more than the upload lacks."""
        while not self._next:
            try:
                self._next = await anext(self._chunks)
            except StopAsyncIteration:
                return False
            except AppError as error:
                self.error = error
                return False
            self._left -= len(self._next)
            if self._left < 0:
                raise too_long()
            if self._digest is not None:
                self._digest.update(self._next)
        return True

    async def part(self, size: int) -> AsyncGenerator[bytes]:
        """Up to `size` bytes."""
        while size and await self.more():
            taken, self._next = self._next[:size], self._next[size:]
            size -= len(taken)
            yield taken

    def check(self) -> None:
        """Call at the end. Raises what broke off the bytes, UPLOAD_CHECKSUM_MISMATCH."""
        if self.error is not None:
            raise self.error
        if self._wanted is not None and self._digest is not None and self._digest.digest() != self._wanted.digest:
            raise AppError(
                Code.UPLOAD_CHECKSUM_MISMATCH, "The bytes don't have the checksum of Upload-Checksum; send them again."
            )


def too_long() -> AppError:
    """The answer for bytes beyond what the upload announced."""
    return AppError(Code.REQUEST_TOO_LARGE, "These are more bytes than Upload-Length announced.")
