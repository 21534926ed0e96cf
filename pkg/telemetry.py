"""Trace ids and the Prometheus registry. Nothing here is global: each process holds its own."""

import re
import secrets

import msgspec
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class TraceParent(msgspec.Struct, frozen=True):
    """The caller's place in a trace: 32 and 16 hexadecimal digits, and whether the caller records it."""

    trace_id: str
    span_id: str
    sampled: bool


def parse_traceparent(header: str) -> TraceParent | None:
    """Reads a W3C `traceparent`; None for anything malformed, which W3C says to ignore."""
    found = TRACEPARENT.fullmatch(header)
    if found is None:
        return None
    version, trace_id, span_id, flags = found.groups()
    if version == "ff" or not int(trace_id, 16) or not int(span_id, 16) or (version == "00" and len(header) != 55):
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & 1))


def new_trace_id() -> str:
    """32 hexadecimal digits, random and not all zero."""
    return f"{secrets.randbits(128) or 1:032x}"


def registry() -> CollectorRegistry:
    """A registry of this process alone, with its memory, CPU, files and garbage collection."""
    made = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made
