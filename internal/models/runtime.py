"""The models of this process behind their queues: what the HTTP layer calls."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from internal.models import embedding, ocr
from internal.models.admission import Admission, Bound
from internal.models.batching import Batcher, Lane, lanes
from internal.models.embedding import Embedder, Kind, Vectors, Window, Work, give_back_memory, trim_heap
from internal.models.lifecycle import OnDemand
from internal.models.metrics import Metrics
from pkg.config import Settings, home_of

TOKENIZE, OCR = "tokenize", "ocr"
BOUNDS = {
    Lane.INTERACTIVE.value: Bound(512, 1.0),
    # Two of the largest requests; on two cores 25 s of work at 100 tokens a text.
    Lane.INGEST.value: Bound(4096, 5.0),
    TOKENIZE: Bound(64, 1.0),
    # Each holds its picture of up to 100 MB in memory.
    OCR: Bound(8, 5.0),
}
OCR_IDLE_SECONDS = 600.0
"""Pages come from uploads, where nobody waits for the half second that loading takes; searches come at any time."""
SLICE = 128
"""Texts that are tokenized in one go, so that callers take turns."""
INLINE_CHARACTERS = 8192
"""Text that is tokenized in less time than a change of threads under load takes."""


class Embedded(NamedTuple):
    """Vectors of shape (texts, 384), tokens that were embedded, and the indices of texts that were cut.

    `codes` has those of each text's tokens, or nothing where they weren't wanted.
    """

    vectors: Vectors
    tokens: int
    truncated: list[int]
    codes: list[bytes]


class LoadedEmbedder(NamedTuple):
    """What exists while the embedding model is in memory."""

    embedder: Embedder
    batcher: Batcher

    def close(self) -> None:
        """Ends the threads and frees the weights."""
        self.batcher.close()
        self.embedder.close()


class Runtime:
    """Embedding, token counts and OCR; each model is loaded at its first use and released when idle."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._threads = settings.models.threads or len(os.sched_getaffinity(0))
        self._admission = Admission(BOUNDS, on_refusal=lambda queue: metrics.refused.labels(queue).inc())
        self._text_thread = ThreadPoolExecutor(1, thread_name_prefix="text")
        # The engine is made in this thread too, because its threads inherit the priority.
        self._ocr_thread = ThreadPoolExecutor(1, thread_name_prefix="ocr", initializer=ocr.lower_priority)
        idle = settings.models.idle_seconds
        self._embedding = OnDemand("embedding", self._load_embedder, LoadedEmbedder.close, idle_seconds=idle)
        self._ocr = OnDemand(
            "ocr",
            self._load_reader,
            _release_reader,
            idle_seconds=min(idle, OCR_IDLE_SECONDS),
            executor=self._ocr_thread,
        )
        self._preloading = settings.models.preload
        for queue in BOUNDS:
            metrics.watch_depth(queue, lambda queue=queue: self.depths[queue])
        metrics.watch_loaded("embedding", lambda: self._embedding.loaded)
        metrics.watch_loaded("ocr", lambda: self._ocr.loaded)

    @property
    def depths(self) -> dict[str, int]:
        """Work that waits or runs, by queue."""
        return self._admission.depths

    @property
    def loaded(self) -> dict[str, bool]:
        """Which models are in memory."""
        return {"embedding": self._embedding.loaded, "ocr": self._ocr.loaded}

    @property
    def ready(self) -> bool:
        """False until the embedding model that is to be loaded at the start is there; later loads are waited for."""
        return not self._preloading

    async def preload(self) -> None:
        """Loads the embedding model before anyone asks. Raises `model.unavailable`."""
        async with self._embedding.use():
            pass

    async def embed(self, lane: Lane, kind: Kind, texts: Sequence[str], *, searched: bool) -> Embedded:
        """Vectors of `texts` in order; `searched` ones are neutral, and come with codes.

        Raises `queue.full` or `model.unavailable`. Cancelling drops what waits.
        """
        with self._admission.admit(lane.value, len(texts)):
            started = perf_counter()
            async with self._embedding.use() as model:
                windows = await self._windows(model.embedder, texts, kind)
                rows = await model.batcher.embed(
                    lane, [Work(window.ids, kind if searched else None) for window in windows]
                )
            tokens = sum(len(window.ids) for window in windows)
            self._metrics.embedding_seconds.labels(lane.value).observe(perf_counter() - started)
            self._metrics.texts.labels(lane.value).inc(len(texts))
            self._metrics.tokens.labels(lane.value).inc(tokens)
            return Embedded(
                np.stack([row.vector for row in rows]),
                tokens,
                [index for index, window in enumerate(windows) if window.truncated],
                [row.codes for row in rows] if searched else [],
            )

    async def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without prefix and special tokens."""
        loop = asyncio.get_running_loop()
        counts: list[int] = []
        with self._admission.admit(TOKENIZE, 1):
            async with self._embedding.use() as model:
                for start in range(0, len(texts), SLICE):
                    part = texts[start : start + SLICE]
                    counts += await loop.run_in_executor(self._text_thread, model.embedder.counts, part)
        return counts

    def place_for_picture(self) -> AbstractContextManager[None]:
        """A place in the OCR queue, to be taken before the picture is received. Raises `queue.full`."""
        return self._admission.admit(OCR)

    async def read(self, data: bytes) -> ocr.Page:
        """The text of one picture, in a place of the queue. Raises `file.unreadable` or `file.too_complex`."""
        async with self._ocr.use() as reader:
            return await asyncio.get_running_loop().run_in_executor(self._ocr_thread, self._read, reader, data)

    async def release_idle(self) -> None:
        """Lets go of the models that nobody used for `models.idle_seconds`, or OCR_IDLE_SECONDS where that is less."""
        for model in (self._embedding, self._ocr):
            await model.release_if_idle()

    async def close(self) -> None:
        """Frees everything. No call may be in flight."""
        await self._embedding.release()
        await self._ocr.release()
        self._text_thread.shutdown(wait=False)
        self._ocr_thread.shutdown(wait=False)

    async def _windows(self, embedder: Embedder, texts: Sequence[str], kind: Kind) -> list[Window]:
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return embedder.windows(texts, kind)
        loop = asyncio.get_running_loop()
        windows: list[Window] = []
        for start in range(0, len(texts), SLICE):
            part = texts[start : start + SLICE]
            windows += await loop.run_in_executor(self._text_thread, embedder.windows, part, kind)
        return windows

    def _read(self, reader: ocr.Reader, data: bytes) -> ocr.Page:
        with self._metrics.ocr_seconds.time():
            page = ocr.read(reader, data, megapixels=self._settings.limits.image_megapixels)
        # The buffers of one page are up to 300 MB, and pages are rarely alike enough to use them again.
        trim_heap()
        return page

    def _load_embedder(self) -> LoadedEmbedder:
        shapes = lanes(self._threads)
        replicas = sum(shape.threads for shape in shapes.values())
        embedder = embedding.load(self._cache_dir(), replicas=replicas)
        self._preloading = False
        return LoadedEmbedder(embedder, Batcher(embedder.forward, shapes))

    def _load_reader(self) -> ocr.Reader:
        return ocr.Reader(threads=self._threads)

    def _cache_dir(self) -> Path:
        return Path(self._settings.models.cache_dir or home_of(self._settings) / "models").resolve()


def _release_reader(reader: ocr.Reader) -> None:
    reader.close()
    give_back_memory()
