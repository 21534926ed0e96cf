"""Structured logs: one JSON object a line in production, readable lines in development.

Every line carries the bound tenant, user, request and trace ids. Secrets are blotted out by name and by shape.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import msgspec
import structlog

from pkg import ctxutil

SECRET_NAME = re.compile(r"(password|passwd|secret|token|api_?key|authorization|cookie|dsn|credential)", re.IGNORECASE)
SECRET_SHAPE = re.compile(
    r"dh_[A-Za-z0-9_-]{16,}|sk-[A-Za-z0-9_-]{8,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|(?<=://)[^\s:/@]*:[^\s@]+(?=@)"
)
BLOT = "[redacted]"
NOISY = tuple("httpx httpx2 httpcore httpcore2 openai arq asyncio uvicorn.access uvicorn.error websockets".split())
"""Libraries that say too much, uvicorn among them: a line for each WebSocket, with whatever stood in its query."""


def configure(*, log_format: str, level: str, process: str) -> None:
    """Sends this process's logs, the libraries' included, to standard error. Call once, at start."""
    shared: list[Any] = [
        _add_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact,
    ]
    renderer: Any
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_dumps)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def get(name: str) -> Any:
    """A logger; events are short lower-case phrases, values go in keyword arguments."""
    return structlog.get_logger().bind(logger=name)


def redact(text: str) -> str:
    """`text` with everything that looks like a key, a token or a password in a URL blotted out."""
    return SECRET_SHAPE.sub(BLOT, text)


def _add_ids(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.update({k: v for k, v in structlog.contextvars.get_contextvars().items() if k not in event})
    for key, value in (
        ("tenant_id", ctxutil.tenant_id()),
        ("user_id", ctxutil.user_id()),
        ("request_id", ctxutil.request_id()),
        ("trace_id", ctxutil.trace_id()),
    ):
        if value is not None and key not in event:
            event[key] = str(value)
    return event


def _redact(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if SECRET_NAME.search(key) and not isinstance(value, int | float | bool):
            event[key] = BLOT
        elif isinstance(value, str):
            event[key] = redact(value)
    return event


def _dumps(value: Any, **_: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
