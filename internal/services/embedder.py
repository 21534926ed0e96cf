"""Embeds queries and passages, and counts tokens as the embedding model does."""

from collections import OrderedDict
from collections.abc import Sequence
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt

from internal.entities.search import Space
from internal.providers.embeddings import Embedded, EmbeddingProvider, Lane
from pkg.ctxutil import Context

Vectors = npt.NDArray[np.float32]

REMEMBERED_QUERIES = 1024
"""2 MB at 384 dimensions; with the tokens of usual questions 25 MB, of long ones twice that."""


class EmbeddedQuery(msgspec.Struct, frozen=True):
    """A read-only unit vector of shape (dim,), and its tokens, (tokens, dim), where the model codes them."""

    vector: Vectors
    tokens: Vectors | None


class Embedder:
    """The configured embedding model, with the last queries' vectors remembered."""

    def __init__(self, provider: EmbeddingProvider, *, remembered: int = REMEMBERED_QUERIES) -> None:
        self._provider = provider
        self._remembered = remembered
        # By tenant too: the time an answer takes must not tell what others ask.
        self._queries: OrderedDict[tuple[UUID, str], EmbeddedQuery] = OrderedDict()

    @property
    def space(self) -> Space:
        """What the vectors mean, and the table that they belong to."""
        return self._provider.space

    async def embed_batch(self, ctx: Context, texts: Sequence[str]) -> Embedded:
        """Vectors of passages that are to be stored, with the codes of their tokens where the model has them."""
        return await self._provider.embed(texts, kind="passage", lane="ingest", deadline=ctx.deadline, codes=True)

    async def embed_passages(self, ctx: Context, texts: Sequence[str], *, lane: Lane) -> Vectors:
        """Unit vectors of shape (len(texts), dim). `lane` is interactive where a person waits for them."""
        return (await self._provider.embed(texts, kind="passage", lane=lane, deadline=ctx.deadline)).vectors

    @property
    def coded(self) -> bool:
        """Whether passages come with codes of their tokens."""
        return self._provider.coded

    async def embed_query(self, ctx: Context, text: str) -> Vectors:
        """A read-only unit vector of shape (dim,)."""
        return (await self.embed_search(ctx, text)).vector

    async def embed_search(self, ctx: Context, text: str) -> EmbeddedQuery:
        """As `embed_query`, with the query's tokens where passages have codes of theirs."""
        key = (ctx.tenant_id, text)
        known = self._queries.get(key)
        if known is not None:
            self._queries.move_to_end(key)
            return known
        found = await self._provider.embed(
            [text], kind="query", lane="interactive", deadline=ctx.deadline, codes=self.coded
        )
        vector, tokens = found.vectors[0], None
        if found.codes:
            tokens = np.frombuffer(found.codes[0], "<f2").reshape(-1, self.space.dim).astype(np.float32)
            tokens.setflags(write=False)
        vector.setflags(write=False)
        query = EmbeddedQuery(vector, tokens)
        self._queries[key] = query
        if len(self._queries) > self._remembered:
            self._queries.popitem(last=False)
        return query

    async def count_tokens(self, ctx: Context, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return await self._provider.count_tokens(texts)
