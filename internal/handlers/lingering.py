"""Refusing a body without losing the refusal: a connection that is closed on unread bytes is reset, answer and all."""

import asyncio
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send

TOO_LARGE = 413
DRAINED_BYTES = 256 * 1024 * 1024
DRAINED_SECONDS = 20.0
"""Most HTTP clients send all of a body before they look at the answer, so what is somewhat too large is read away."""


class LingeringClose:
    """ASGI: after a 413 reads on for a while, throwing away what the client was still sending, before it hangs up."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything but the end of a 413, which waits for the client."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        refused = False

        async def sent(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] == TOO_LARGE
            elif refused and message["type"] == "http.response.body" and not message["more_body"]:
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, body.receive, sent)


class _Body:
    """What the client sends, and whether it has come to an end."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def receive(self) -> Any:
        message: Any = await self._receive()
        self._ended = message["type"] != "http.request" or not message["more_body"]
        return message

    async def drain(self) -> None:
        """Reads to the end, but no more than 256 MB and no longer than 20 s."""
        left = DRAINED_BYTES
        try:
            async with asyncio.timeout(DRAINED_SECONDS):
                while not self._ended and left > 0:
                    message = await self.receive()
                    left -= len(message.get("body", b""))
        except TimeoutError:
            return  # a client that sends so slowly is not waited for
