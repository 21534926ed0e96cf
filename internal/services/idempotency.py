"""Idempotency keys: the same POST, sent twice, is done once."""

import asyncio
import time

import msgspec

from internal.repositories.store import Store
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

MAX_KEY = 255
WAIT_SECONDS = 10.0
POLL_SECONDS = 0.1


class Replay(msgspec.Struct, frozen=True):
    """The answer that was given before."""

    status: int
    media_type: str
    body: bytes


def check_key(key: str) -> str:
    """The key. Raises REQUEST_INVALID."""
    if not 1 <= len(key) <= MAX_KEY or not key.isprintable():
        raise AppError(Code.REQUEST_INVALID, f"Idempotency-Key has 1 to {MAX_KEY} printable characters.")
    return key


class IdempotencyService:
    """A key belongs to one user and one request for 24 hours. What failed is forgotten and may be tried again."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(self, ctx: Context, key: str, request_hash: bytes) -> Replay | None:
        """None: go ahead, then call `finish` or `abandon`. A request that is still at work is waited for.

        Raises IDEMPOTENCY_CONFLICT when the key was used for another request, REQUEST_CONFLICT when the first one
        takes longer than 10 s.
        """
        until = time.monotonic() + WAIT_SECONDS
        while True:
            async with self._store.tenant(ctx) as tx:
                if await tx.idempotency.take(key, request_hash):
                    return None
                found = await tx.idempotency.find(key)
            if found is not None:
                if found.request_hash != request_hash:
                    raise AppError(
                        Code.IDEMPOTENCY_CONFLICT, "This Idempotency-Key was used for another request; use a new one."
                    )
                if found.status is not None and found.body is not None:
                    media_type, _, body = found.body.partition(b"\n")
                    return Replay(found.status, media_type.decode(), body)
            if time.monotonic() > until:
                raise AppError(
                    Code.REQUEST_CONFLICT,
                    "The first request with this Idempotency-Key is still at work.",
                    retry_after=5,
                )
            await asyncio.sleep(POLL_SECONDS)

    async def finish(self, ctx: Context, key: str, answer: Replay) -> None:
        """Keeps the answer for 24 hours."""
        async with self._store.tenant(ctx) as tx:
            await tx.idempotency.answer(key, answer.status, answer.media_type.encode() + b"\n" + answer.body)

    async def abandon(self, ctx: Context, key: str) -> None:
        """The request failed, or its answer can't be kept: the key is free again."""
        async with self._store.tenant(ctx) as tx:
            await tx.idempotency.remove(key)
