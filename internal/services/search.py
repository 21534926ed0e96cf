"""Finding passages: by meaning, by words, or by both."""

import math
import time

import msgspec

from internal.entities.search import SearchHit, SearchMode, SearchRequest, SearchResult
from internal.repositories.store import Store
from internal.services.embedder import Embedder
from internal.services.terms import TermAnalyser
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

MOST_HITS = 100


class SearchService:
    """Searches what the context's user may see."""

    def __init__(self, store: Store, embedder: Embedder, analyser: TermAnalyser) -> None:
        self._store = store
        self._embedder = embedder
        self._analyser = analyser
        self._log = logger.get("search")

    async def search(self, ctx: Context, request: SearchRequest) -> SearchResult:
        """The best `k` passages, fewer only where fewer match. Raises REQUEST_INVALID, MODEL_UNAVAILABLE."""
        if not 1 <= request.k <= MOST_HITS:
            raise AppError(Code.REQUEST_INVALID, f"k must be between 1 and {MOST_HITS}.")
        started = time.perf_counter()
        terms = self._analyser.query(ctx.tenant_id, request.query) if request.mode is not SearchMode.VECTOR else None
        embedding = None
        if request.mode is not SearchMode.KEYWORD and request.query.strip():
            embedding = await self._embedder.embed_query(ctx, request.query)
        found = await self._store.search(
            ctx, self._embedder.space, embedding=embedding, terms=terms, filters=request.filters, k=request.k
        )
        took = (time.perf_counter() - started) * 1000
        self._log.debug("searched", mode=request.mode.value, hits=len(found.hits), took_ms=round(took, 1))
        items = [_readable(hit) for hit in found.hits]
        return SearchResult(items=items, took_ms=round(took, 3), coverage=found.coverage)


def _readable(hit: SearchHit) -> SearchHit:
    """A fused score says how far a passage is from the candidates' mean: 0 for a single one, negative for half of them.

    The logistic function of it sorts alike and lies between 0 and 1, as readers of a score expect.
    """
    if hit.similarity is None or hit.keyword is None:
        return hit
    return msgspec.structs.replace(hit, score=1 / (1 + math.exp(-hit.score)))
