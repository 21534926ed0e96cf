"""Who is asking, may they, and how often: one guard in front of every handler."""

from enum import Enum
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from internal.entities.identity import Visitor
from internal.handlers.sockets import offered_token
from internal.services.authentication import Authenticator
from internal.services.rate_limits import RateLimiter
from pkg import ctxutil
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

SCHEME = b"bearer "


class Open(Enum):
    """Access to handlers that ask for no member's credential."""

    ANYONE = "anyone"
    PLATFORM = "platform"


Access = Role | Open
"""Every handler names in `opt["access"]` the weakest role that may call it; a handler without one is refused."""


def access(needed: Access) -> dict[str, Any]:
    """The `opt` of a handler. Viewers read, search and chat; members write; admins manage."""
    return {"access": needed}


class Admission:
    """The guard: authenticates, checks the role, and takes a token from the caller's rate limit."""

    def __init__(self, authenticator: Authenticator, limiter: RateLimiter) -> None:
        self._authenticator = authenticator
        self._limiter = limiter

    async def __call__(self, connection: "ASGIConnection[Any, Any, Any, Any]", handler: BaseRouteHandler) -> None:
        """Raises AUTH_MISSING_TOKEN, AUTH_INVALID_TOKEN, AUTH_FORBIDDEN, RATE_LIMITED."""
        scope = connection.scope
        if scope.get("method") == "OPTIONS":
            return
        needed = handler.opt["access"]
        if isinstance(needed, Open):
            return
        credential = bearer(scope)
        principal = self._authenticator.remembered(credential) or await self._authenticator.authenticate(credential)
        ctx = Context(
            tenant_id=principal.tenant_id,
            user_id=principal.user_id,
            role=principal.role,
            request_id=scope["state"]["request_id"],
            trace_id=scope["state"]["trace_id"],
        )
        scope["auth"] = ctx
        ctxutil.bind(ctx)
        await self._limiter.take(principal.subject)
        if not principal.role.at_least(needed):
            raise AppError(Code.AUTH_FORBIDDEN, f"This needs the role {needed.value}; yours is {principal.role.value}.")


def bearer(scope: Scope) -> str:
    """The credential of `Authorization: Bearer …`, or a WebSocket's subprotocol. Raises AUTH_MISSING_TOKEN."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            if value[: len(SCHEME)].lower() == SCHEME:
                return value[len(SCHEME) :].strip().decode("latin-1")
            break
    if scope["type"] == "websocket" and (token := offered_token(scope)):
        return token
    raise AppError(
        Code.AUTH_MISSING_TOKEN,
        "Send Authorization: Bearer with an API key (dh_…) or an access token from /api/v1/auth/token.",
    )


def context_of(scope: Scope) -> Context:
    """Who asks, as the guard left it."""
    return scope["auth"]


def provide_context(scope: Scope) -> Context:
    """The dependency `ctx`."""
    return context_of(scope)


def visitor_of(scope: Scope) -> Visitor:
    """Who asks, before it is known who that is."""
    client = scope.get("client")
    state = scope["state"]
    return Visitor(request_id=state["request_id"], trace_id=state["trace_id"], address=client[0] if client else "")
