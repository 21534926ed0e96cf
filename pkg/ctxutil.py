"""Who is asking, carried explicitly as the first argument `ctx` of every service method.

Context variables hold the same ids for log lines and spans only; no decision reads them.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from uuid import UUID

import msgspec


class Role(StrEnum):
    """What a member of a tenant may do, weakest last."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"

    def at_least(self, other: "Role") -> bool:
        """True when this role may do everything that `other` may."""
        order = list(Role)
        return order.index(self) <= order.index(other)


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Tenant, user, role and trace of one request or job. `deadline` is a `time.monotonic()` value in seconds."""

    tenant_id: UUID
    user_id: UUID
    role: Role
    request_id: str
    trace_id: str
    deadline: float | None = None

    def remaining(self, default: float) -> float:
        """Seconds left until the deadline, at least 0; `default` when there is none."""
        return default if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_current: ContextVar[Context | None] = ContextVar("dreamhub_context", default=None)
_request_id: ContextVar[str | None] = ContextVar("dreamhub_request_id", default=None)


@contextmanager
def bound(ctx: Context) -> Generator[Context]:
    """Binds `ctx` to log lines and spans of this task for the duration of the block."""
    token = _current.set(ctx)
    try:
        yield ctx
    finally:
        _current.reset(token)


def bind_request_id(request_id: str | None) -> None:
    """Gives log lines a request id before it is known who is asking."""
    _request_id.set(request_id)


def bind(ctx: Context | None) -> None:
    """Binds `ctx` to log lines for the rest of this asyncio task (a request's task ends with the request)."""
    _current.set(ctx)


def tenant_id() -> UUID | None:
    """The bound tenant, for logs and spans only."""
    ctx = _current.get()
    return ctx.tenant_id if ctx else None


def user_id() -> UUID | None:
    """The bound user, for logs and spans only."""
    ctx = _current.get()
    return ctx.user_id if ctx else None


def request_id() -> str | None:
    """The bound request's id, for logs and error answers."""
    ctx = _current.get()
    return ctx.request_id if ctx else _request_id.get()


def trace_id() -> str | None:
    """The bound trace id (32 hexadecimal digits), for logs and spans only."""
    ctx = _current.get()
    return ctx.trace_id if ctx else None
