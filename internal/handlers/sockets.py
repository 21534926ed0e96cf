"""WebSockets: errors as close codes, and a token for browsers, which can't send headers there."""

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import WebSocketException
from litestar.handlers import BaseRouteHandler
from litestar.types import Message, Scope, Send

from internal.handlers.problems import STATUS
from pkg.apperr import AppError, Code

SUBPROTOCOL = "bearer"
"""A browser offers `bearer` and its token as subprotocols; the first one is accepted, so the token isn't sent back."""
CLOSE_CODES: Mapping[Code, int] = {
    Code.SERVER_STOPPING: 1012,  # service restart
    Code.DATABASE_UNAVAILABLE: 1013,  # try again later
    Code.REDIS_UNAVAILABLE: 1013,
    Code.INTERNAL: 1011,
}
"""Every other error closes with 4000 and its HTTP status."""
OWN_CODES = frozenset(CLOSE_CODES.values()) | frozenset(range(4400, 4500))
REASON_BYTES = 123

Guard = Callable[["ASGIConnection[Any, Any, Any, Any]", BaseRouteHandler], Awaitable[None] | None]


def refusal(error: AppError) -> WebSocketException:
    """An error as the end of a WebSocket: a code, and as reason the stable code and what to do."""
    reason = f"{error.code.value}: {error.detail}".encode()[:REASON_BYTES].decode(errors="ignore")
    return WebSocketException(detail=reason, code=CLOSE_CODES.get(error.code, 4000 + STATUS[error.code]))


def refusing(guard: Guard) -> Guard:
    """The guard, with errors that a WebSocket can be closed with."""

    async def guarded(connection: "ASGIConnection[Any, Any, Any, Any]", handler: BaseRouteHandler) -> None:
        try:
            asked = guard(connection, handler)
            if isawaitable(asked):
                await asked
        except AppError as error:
            if connection.scope["type"] == "websocket":
                raise refusal(error) from error
            raise

    return guarded


def offered_token(scope: Scope) -> str | None:
    """The token behind `Sec-WebSocket-Protocol: bearer, <token>`."""
    offered: list[str] = list(scope.get("subprotocols") or ())
    return offered[1] if len(offered) == 2 and offered[0] == SUBPROTOCOL else None


def accepted_subprotocol(scope: Scope) -> str | None:
    """What to answer to the offer."""
    return None if offered_token(scope) is None else SUBPROTOCOL


def accepting_refusals(scope: Scope, send: Send) -> Send:
    """Accepts a WebSocket before a refusal closes it: a browser tells its page the code of an open one only."""
    accepted = False

    async def told(message: Message) -> None:
        nonlocal accepted
        if message["type"] == "websocket.accept":
            accepted = True
        elif message["type"] == "websocket.close" and not accepted and message["code"] in OWN_CODES:
            accepted = True
            await send({"type": "websocket.accept", "subprotocol": accepted_subprotocol(scope), "headers": []})
        await send(message)

    return told
