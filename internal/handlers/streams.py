"""Server-sent events: deltas, heartbeats, and an end of the source whenever the reader goes away."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import anyio
import msgspec
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.types import Message, Receive, Scope, Send

HEARTBEAT_SECONDS = 15.0
STALLED_SECONDS = 30.0
"""A reader that takes nothing for so long is left; what waits for it would be kept for nobody."""
HEARTBEAT = b": still here\n\n"


class ClosingStream(Stream):
    """A stream whose source is closed as soon as the answer ends: sent, broken off, or left by its reader."""

    def __init__(self, source: AsyncGenerator[bytes], **options: Any) -> None:
        super().__init__(source, **options)
        self._source = source

    def to_asgi_response(self, *args: Any, **options: Any) -> ASGIResponse:
        """The ASGI application that sends the stream, then closes its source."""
        response, source = super().to_asgi_response(*args, **options), self._source

        async def sent(scope: Scope, receive: Receive, send: Send) -> None:
            async def sent_in_time(message: Message) -> None:
                async with asyncio.timeout(STALLED_SECONDS):
                    await send(message)

            try:
                await response(scope, receive, sent_in_time)
            finally:
                with anyio.CancelScope(shield=True):
                    await source.aclose()

        return cast("ASGIResponse", sent)


def event(name: str, data: object) -> bytes:
    """One server-sent event with JSON on a single line."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


async def with_heartbeats(source: AsyncGenerator[bytes], seconds: float = HEARTBEAT_SECONDS) -> AsyncGenerator[bytes]:
    """The source's events, and a comment whenever it has been silent for so long: proxies cut silent connections."""
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            waiting = waiting or asyncio.create_task(_next(source))
            await asyncio.wait({waiting}, timeout=seconds)
            if not waiting.done():
                yield HEARTBEAT
                continue
            done, waiting = waiting, None
            try:
                yield done.result()
            except StopAsyncIteration:
                return
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        await source.aclose()


async def _next(source: AsyncGenerator[bytes]) -> bytes:
    return await anext(source)


def event_stream(source: AsyncGenerator[bytes]) -> ClosingStream:
    """The answer of `text/event-stream`, told to proxies not to be gathered up."""
    return ClosingStream(
        with_heartbeats(source),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        status_code=200,
    )
