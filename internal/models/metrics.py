"""Measurements of the model process for Prometheus, in a registry of their own."""

import os
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters and histograms of one process. Gauges are read when they are asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.embedding_seconds = Histogram(
            "dreamhub_models_embedding_seconds",
            "Time from a request's admission to its vectors",
            ["lane"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.texts = Counter("dreamhub_models_texts", "Texts embedded", ["lane"], registry=self._registry)
        self.tokens = Counter("dreamhub_models_tokens", "Tokens embedded", ["lane"], registry=self._registry)
        self.ocr_seconds = Histogram(
            "dreamhub_models_ocr_seconds", "Time of one picture", buckets=SECONDS, registry=self._registry
        )
        self.refused = Counter(
            "dreamhub_models_refused", "Requests refused because a queue is full", ["queue"], registry=self._registry
        )
        self._depth = Gauge(
            "dreamhub_models_queue_depth", "Texts or pictures that wait or run", ["queue"], registry=self._registry
        )
        self._loaded = Gauge("dreamhub_models_loaded", "1 while in memory", ["model"], registry=self._registry)
        rss = Gauge("dreamhub_models_rss_bytes", "Resident memory of the process", registry=self._registry)
        rss.set_function(rss_bytes)

    def watch_depth(self, queue: str, read: Callable[[], float]) -> None:
        """Shows what `read` returns as the depth of `queue`."""
        self._depth.labels(queue).set_function(read)

    def watch_loaded(self, model: str, read: Callable[[], float]) -> None:
        """Shows what `read` returns, 0 or 1, for `model`."""
        self._loaded.labels(model).set_function(read)

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)


def rss_bytes() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
