"""A version of the processing that is tried: it reads a share of the same files once more, and is compared."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np

from internal.entities.documents import Chunk, Content, Generation
from internal.entities.processing import Comparison
from internal.entities.tasks import Lease
from internal.entities.usage import Purpose
from internal.providers.embedding_wire import Vectors
from internal.repositories.store import Store, Tx
from internal.services.chunking_sentences import sentences
from internal.services.embedder import Embedder
from internal.services.ingest import IngestService
from internal.services.processing import processing_of
from pkg import logger
from pkg.apperr import PERMANENT, AppError, Code
from pkg.ctxutil import Context

COMPARED = 2000
"""Passages of a reading that are compared; those of a very long file behind them are only counted."""

WHOLE = ("ready", "kept")
"""States of a reading that is complete, and that no search sees."""

SKIPPED = {"skipped": "the file is gone, or the version isn't tried any more"}


class Reading(NamedTuple):
    """Passages of one generation, in order, with their vectors as rows; `size` and `tokens` are of all of them."""

    chunks: Sequence[Chunk]
    vectors: Vectors
    size: int
    tokens: int


class ShadowService:
    """Reads by the candidate, under a generation that no search sees."""

    def __init__(self, store: Store, ingest: IngestService, embedder: Embedder) -> None:
        self._store = store
        self._ingest = ingest
        self._embedder = embedder
        self._log = logger.get("shadow")

    async def shadow_content(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `shadow_content`. What the candidate can't read is a finding, not a failure of the task."""
        if lease.task.content_id is None:
            raise AppError(Code.INTERNAL, "The task names no content.")
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            version = str((await tx.tasks.payload(lease.task.id))["version"])
            content = await tx.contents.find(lease.task.content_id)
            if content is None or content.generation_id is None or not await _is_tried(tx, version):
                return SKIPPED
            processing = processing_of(version)
            generation = await tx.generations.ensure(content.id, version, self._embedder.space.id)
            if generation.status not in (*WHOLE, "building"):
                return SKIPPED  # of an earlier trial, and on its way out
        began = time.monotonic()
        try:
            if generation.status == "building":
                built = await self._ingest.read(ctx, lease, content, generation, processing, Purpose.REPROCESSING)
                async with self._store.tenant(ctx) as tx:
                    await tx.tasks.fence(lease)
                    await tx.generations.finish(generation.id, built.chunks)
        except AppError as error:
            if error.code not in PERMANENT:
                raise
            found = Comparison(seconds=time.monotonic() - began, error_code=error.code)
        else:
            seconds = time.monotonic() - began
            before, after = await self._reading(ctx, content.generation_id), await self._reading(ctx, generation.id)
            found = await asyncio.to_thread(compare, before, after, seconds)
        return await self._record(ctx, lease, content, generation, found)

    async def _reading(self, ctx: Context, generation_id: UUID) -> Reading:
        async with self._store.tenant(ctx) as tx:
            chunks = await tx.chunks.list(generation_id, limit=COMPARED, after=-1)
            known = await tx.vectors.of_chunks(self._embedder.space, [chunk.id for chunk in chunks])
            size, tokens = await tx.chunks.size(generation_id)
        chunks = [chunk for chunk in chunks if chunk.id in known]
        vectors = np.stack([known[chunk.id] for chunk in chunks]) if chunks else np.empty((0, 0), np.float32)
        return Reading(chunks, vectors, size, tokens)

    async def _record(
        self, ctx: Context, lease: Lease, content: Content, generation: Generation, found: Comparison
    ) -> dict[str, Any]:
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            held = await tx.contents.hold(content.id)
            status = await tx.generations.status(generation.id)
            if held is None or held.generation_id is None or held.generation_id != content.generation_id:
                return SKIPPED
            against = await tx.generations.version(held.generation_id)
            if against is None or not await _is_tried(tx, generation.version):
                return SKIPPED
            if found.error_code is not None:
                await tx.generations.retire(generation.id)
            elif status not in WHOLE:
                return SKIPPED
            await tx.processing.record(content.id, generation.version, against, found)
        self._log.info("a reading was compared", content=str(content.id), version=generation.version)
        return {"version": generation.version, "error_code": found.error_code}


async def _is_tried(tx: Tx, version: str) -> bool:
    return (await tx.processing.state()).candidate == version


def compare(before: Reading, after: Reading, seconds: float) -> Comparison:
    """Figures of two readings of the same file. Shares of nothing are 1: nothing was lost, and nothing is other."""
    old, new = _sentences(before.chunks), _sentences(after.chunks)
    texts = {chunk.text for chunk in after.chunks}
    same = sum(chunk.text in texts for chunk in before.chunks)
    nearest = _nearest(before.vectors, after.vectors)
    return Comparison(
        seconds=seconds,
        chunks_before=before.size,
        chunks_after=after.size,
        tokens_before=before.tokens,
        tokens_after=after.tokens,
        text_kept=len(old & new) / len(old) if old else 1.0,
        text_added=len(new - old) / len(new) if new else 0.0,
        chunks_same=same / len(before.chunks) if before.chunks else 1.0,
        vectors_mean=float(nearest.mean()) if nearest.size else None,
        vectors_least=float(nearest.min()) if nearest.size else None,
    )


def _sentences(chunks: Sequence[Chunk]) -> set[str]:
    """Without blanks: how lines are joined is no difference of text."""
    return {"".join(part.split()) for chunk in chunks for part in sentences(chunk.text)} - {""}


def _nearest(before: Vectors, after: Vectors) -> Vectors:
    """For each row of `before` (n × dim) the cosine to the nearest row of `after` (m × dim); empty where one is."""
    if not before.size or not after.size:
        return np.empty(0, np.float32)
    found: Vectors = (_unit(before) @ _unit(after).T).max(axis=1).clip(-1.0, 1.0)
    return found


def _unit(vectors: Vectors) -> Vectors:
    found: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return found
