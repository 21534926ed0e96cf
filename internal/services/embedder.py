"""Embeds queries and passages, and counts tokens as the embedding model does."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from internal.entities.search import Space
from internal.providers.embedding_wire import Embedded
from internal.providers.embeddings import EmbeddingProvider
from internal.providers.turns import Lane
from internal.services.caching import CacheKind, TwoLevelCache
from pkg.ctxutil import Context

Vectors = npt.NDArray[np.float32]


class EmbeddedQuery(msgspec.Struct, frozen=True):
    """A read-only unit vector of shape (dim,), and its tokens, (tokens, dim), where the model codes them."""

    vector: Vectors
    tokens: Vectors | None


class Embedder:
    """The configured embedding model. Queries are remembered by tenant: the time that an answer takes must not tell
    what others ask."""

    def __init__(self, provider: EmbeddingProvider, cache: TwoLevelCache | None = None) -> None:
        self._provider = provider
        self._cache = cache or TwoLevelCache(None)

    @property
    def space(self) -> Space:
        """What the vectors mean, and the table that they belong to."""
        return self._provider.space

    async def embed_batch(self, ctx: Context, texts: Sequence[str], *, partly: bool = False) -> Embedded:
        """Vectors of passages that are to be stored, with the codes of their tokens where the model has them.

        With `partly` of the first of them only, at least one, where the model goes away midway: what was paid for can
        be kept.
        """
        return await self._provider.embed(
            texts, kind="passage", lane="ingest", deadline=ctx.deadline, searched=True, partly=partly
        )

    async def embed_passages(self, ctx: Context, texts: Sequence[str], *, lane: Lane) -> Vectors:
        """Unit vectors of shape (len(texts), dim). `lane` is interactive where a person waits for them."""
        return (await self._provider.embed(texts, kind="passage", lane=lane, deadline=ctx.deadline)).vectors

    @property
    def coded(self) -> bool:
        """Whether passages come with codes of their tokens."""
        return self._provider.coded

    async def embed_query(self, ctx: Context, text: str) -> Vectors:
        """A read-only unit vector of shape (dim,), to be compared with those of `embed_passages`."""
        return (await self._query(ctx, text, searched=False)).vector

    async def embed_search(self, ctx: Context, text: str) -> EmbeddedQuery:
        """What is compared with stored passages: a vector, and the query's tokens where they have codes of theirs."""
        return await self._query(ctx, text, searched=self.coded)

    async def _query(self, ctx: Context, text: str, *, searched: bool) -> EmbeddedQuery:
        async def compute() -> bytes:
            found = await self._provider.embed(
                [text], kind="query", lane="interactive", deadline=ctx.deadline, searched=searched
            )
            return found.vectors[0].astype("<f4").tobytes() + b"".join(found.codes)

        dim = self.space.dim
        named = (self.space.model, self.space.version, str(dim), str(searched), text)
        data = (await self._cache.through(ctx, CacheKind.EMBEDDING, named, compute)).data
        vector = np.frombuffer(data, "<f4", dim)
        if not searched:
            return EmbeddedQuery(vector, None)
        return EmbeddedQuery(vector, np.frombuffer(data, "<f2", offset=4 * dim).reshape(-1, dim).astype(np.float32))

    async def count_tokens(self, ctx: Context, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return await self._provider.count_tokens(texts)
