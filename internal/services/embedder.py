"""Embeds queries and passages, and counts tokens as the embedding model does."""

from collections import OrderedDict
from collections.abc import Sequence
from uuid import UUID

import numpy as np
import numpy.typing as npt

from internal.entities.search import Space
from internal.providers.embeddings import Embedded, EmbeddingProvider, Lane
from pkg.ctxutil import Context

Vectors = npt.NDArray[np.float32]

REMEMBERED_QUERIES = 2048
"""3 MB at 384 dimensions."""


class Embedder:
    """The configured embedding model, with the last queries' vectors remembered."""

    def __init__(self, provider: EmbeddingProvider, *, remembered: int = REMEMBERED_QUERIES) -> None:
        self._provider = provider
        self._remembered = remembered
        # By tenant too: the time an answer takes must not tell what others ask.
        self._queries: OrderedDict[tuple[UUID, str], Vectors] = OrderedDict()

    @property
    def space(self) -> Space:
        """What the vectors mean, and the table that they belong to."""
        return self._provider.space

    async def embed_batch(self, ctx: Context, texts: Sequence[str]) -> Embedded:
        """Vectors of passages that are to be stored, and the tokens that they took."""
        return await self._provider.embed(texts, kind="passage", lane="ingest", deadline=ctx.deadline)

    async def embed_passages(self, ctx: Context, texts: Sequence[str], *, lane: Lane) -> Vectors:
        """Unit vectors of shape (len(texts), dim). `lane` is interactive where a person waits for them."""
        return (await self._provider.embed(texts, kind="passage", lane=lane, deadline=ctx.deadline)).vectors

    async def embed_query(self, ctx: Context, text: str) -> Vectors:
        """A read-only unit vector of shape (dim,)."""
        key = (ctx.tenant_id, text)
        known = self._queries.get(key)
        if known is not None:
            self._queries.move_to_end(key)
            return known
        found = await self._provider.embed([text], kind="query", lane="interactive", deadline=ctx.deadline)
        vector = found.vectors[0]
        vector.setflags(write=False)
        self._queries[key] = vector
        if len(self._queries) > self._remembered:
            self._queries.popitem(last=False)
        return vector

    async def count_tokens(self, ctx: Context, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return await self._provider.count_tokens(texts)
