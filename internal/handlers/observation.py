"""Around every request and WebSocket: its ids, log line, metrics, security headers. One layer, because each costs."""

import re
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from internal.entities.ids import new_id
from internal.handlers.sockets import accepting_refusals
from pkg import ctxutil, logger
from pkg.ctxutil import Context
from pkg.telemetry import new_trace_id, parse_traceparent

SOCKET = "WS"
"""Stands for the method of a WebSocket; its status is 101 until the product closes it with a code."""
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", SOCKET})
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
UNMATCHED = "unmatched"
SWITCHED = 101
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

ALWAYS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
UNLESS_SET: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


class RequestMetrics:
    """Counters by method, route pattern and status: never by path, tenant or user, which have no bound."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests_total", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "http_request_seconds", "Time until the last byte", ["method", "route"], buckets=BUCKETS, registry=registry
        )
        self._running = Gauge("http_requests_running", "Requests at work", registry=registry)
        self._bound: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def began(self) -> None:
        """A request came in."""
        self._running.inc()

    def ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._running.dec()
        key = (method, route, status)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._requests.labels(method, route, str(status)), self._seconds.labels(method, route)
            self._bound[key] = bound
        bound[0].inc()
        bound[1].observe(seconds)


class RequestLines:
    """One line a request. As JSON it goes straight to bytes, which costs a third of a logging library's way."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._encoder = msgspec.json.Encoder()
        self._log = logger.get("http")

    def write(self, fields: dict[str, Any], ctx: Context | None) -> None:
        """Writes method, route, status, milliseconds, bytes and ids; never a query, a body or a token."""
        if not self._as_json:
            self._log.info("request", **fields)
            return
        line: dict[str, Any] = {
            "event": "request",
            "level": "info",
            "logger": "http",
            "timestamp": datetime.now(UTC).isoformat(),
            **fields,
            "request_id": ctxutil.request_id(),
        }
        if ctx is not None:
            line["tenant_id"], line["user_id"] = ctx.tenant_id, ctx.user_id
        stream = sys.stderr.buffer
        stream.write(self._encoder.encode(line) + b"\n")
        stream.flush()


class Observation:
    """ASGI: wraps the whole application, so that what no route answers is seen too."""

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics, lines: RequestLines) -> None:
        self._app = app
        self._metrics = metrics
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Observes HTTP and WebSockets; other scopes pass."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            send = accepting_refusals(scope, send)
        started = time.perf_counter()
        request_id, trace_id = _ids(scope["headers"])
        # The server shares its lifespan state with every request; ids must not go there.
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "trace_id": trace_id}
        ctxutil.bind_request_id(request_id)
        status, sent, echo = 0, 0, request_id.encode()

        async def observed(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _protected(message["headers"], echo)
            elif message["type"] == "http.response.body":
                sent += len(message["body"])
            elif message["type"] == "websocket.accept":
                status = SWITCHED
                message["headers"] = [*message["headers"], (b"x-request-id", echo)]
            elif message["type"] == "websocket.send":
                sent += len(message["text"] or message["bytes"] or "")
            elif message["type"] == "websocket.close":
                status = message["code"]
            await send(message)

        self._metrics.began()
        try:
            await self._app(scope, receive, observed)
        except Exception:  # noqa: BLE001 - nothing is above this but the server, which would log it again
            # Too late for a problem: the server cuts a connection whose answer has no end, so nobody takes the part
            # for the whole.
            logger.get("http").exception("an answer broke off")
        finally:
            self._end(scope, status, sent, time.perf_counter() - started)

    def _end(self, scope: Scope, status: int, sent: int, seconds: float) -> None:
        asked = scope["method"] if scope["type"] == "http" else SOCKET
        method = asked if asked in METHODS else "OTHER"
        route = scope.get("path_template") or UNMATCHED
        self._metrics.ended(method, route, status, seconds)
        if route in QUIET:
            return
        fields = {
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "bytes": sent,
            "trace_id": scope["state"]["trace_id"],
        }
        self._lines.write(fields, scope.get("auth"))


def _ids(headers: Any) -> tuple[str, str]:
    """The caller's request and trace id where they are sane, else new ones. A secret sent as an id isn't echoed."""
    request_id = trace_id = ""
    for name, value in headers:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if SANE_ID.fullmatch(text) and logger.redact(text) == text:
                request_id = text
        elif name == b"traceparent":
            parent = parse_traceparent(value.decode("latin-1"))
            trace_id = parent.trace_id if parent else ""
    return request_id or str(new_id()), trace_id or new_trace_id()


def _protected(headers: Iterable[tuple[bytes, bytes]], request_id: bytes) -> list[tuple[bytes, bytes]]:
    own = list(headers)
    there = {name for name, _ in own}
    return [*own, *ALWAYS, *(item for item in UNLESS_SET if item[0] not in there), (b"x-request-id", request_id)]
