"""Finding passages: by meaning, by words, or by both."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec
import numpy as np

from internal.entities.search import SearchHit, SearchMode, SearchRequest, SearchResult, share_of_words
from internal.providers.rerank import RerankEndpoint
from internal.repositories.search import Found
from internal.repositories.store import Store
from internal.services import late_interaction
from internal.services.caching import CacheKind, Level, Passing, TwoLevelCache
from internal.services.diversity import varied
from internal.services.embedder import Embedder, Vectors
from internal.services.passages import with_neighbours
from internal.services.places import likeliest
from internal.services.terms import TermAnalyser
from internal.services.understanding import (
    Wanted,
    better,
    holding,
    in_notations,
    in_tiers,
    meant,
    told,
    understand,
)
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

MOST_HITS = 100
RERANKED = 50
"""Passages that a configured model puts in order."""
LOOKED_UP, MOST_LOOKED_UP = 50, 1000
"""Passages that are looked for by the words in quotation marks, or in the files that the query names; and how many
where those words are common, but seldom in that order."""
MOST_NAMED = 50
"""Documents that a name may fit; what fits more is no name but a word."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SearchResult).decode


class SearchService:
    """Searches what the context's user may see."""

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        analyser: TermAnalyser,
        cache: TwoLevelCache | None = None,
        reranker: RerankEndpoint | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._reranker = reranker
        self._embedder = embedder
        self._analyser = analyser
        self._log = logger.get("search")

    async def search(self, ctx: Context, request: SearchRequest) -> SearchResult:
        """The best `k` passages, fewer only where fewer match. Raises REQUEST_INVALID, MODEL_UNAVAILABLE.

        What was found before is answered again as long as the tenant's data is the same, and only then.
        """
        if not 1 <= request.k <= MOST_HITS:
            raise AppError(Code.REQUEST_INVALID, f"k must be between 1 and {MOST_HITS}.")
        if self._cache is None:
            return await self._find(ctx, request)
        started = time.perf_counter()
        # The version first, then the search: what is found may be newer than its name says, never older.
        scope = await self._store.cache_scope(ctx)
        # Who owns no document sees what everybody sees.
        reader = str(ctx.user_id) if scope.owns or request.filters.mine else ""
        by = self._reranker.name if self._reranker else ""
        question = _encode(request).decode("latin-1")
        named = (self._embedder.space.function, str(scope.data_version), reader, by, question)

        async def compute() -> bytes:
            found = await self._find(ctx, request)
            return _encode(found) if found.whole else Passing(_encode(found))

        kept = await self._cache.through(ctx, CacheKind.SEARCH, named, compute)
        took = round((time.perf_counter() - started) * 1000, 3)
        state = "miss" if kept.level is Level.MISS else "hit"
        return msgspec.structs.replace(_decode(kept.data), took_ms=took, cache=state)

    async def likeness(self, ctx: Context, query: str, chunk_ids: Sequence[UUID]) -> dict[UUID, float]:
        """How far the query's tokens are met by those of passages, from -1 to 1; of those that have some.

        Raises MODEL_UNAVAILABLE.
        """
        if not self._embedder.coded:
            return {}
        asked = await self._embedder.embed_search(ctx, query)
        if asked.tokens is None:
            return {}
        async with self._store.tenant(ctx) as tx:
            codes = await tx.token_codes.of_chunks(list(chunk_ids))
        return {chunk: late_interaction.likeness(asked.tokens, code) for chunk, code in codes.items()}

    async def _find(self, ctx: Context, request: SearchRequest) -> SearchResult:
        started = time.perf_counter()
        wanted = understand(request.query)
        notations = in_notations(request.query, wanted)
        ranked = await self._ranked(ctx, request, MOST_HITS if wanted else request.k, notations)
        if wanted:
            ranked = await self._as_asked(ctx, request, wanted, ranked)
        hits = ranked.hits
        if request.diversity and len(hits) > 1:
            hits = await self._varied(ctx, hits, request)
        hits = await self._placed(ctx, hits[: request.k], request.query)
        if request.neighbours and hits:
            hits = await self._read_on(ctx, hits, request.neighbours)
        took = (time.perf_counter() - started) * 1000
        self._log.debug("searched", mode=request.mode.value, hits=len(hits), took_ms=round(took, 1))
        return SearchResult(items=hits, whole=ranked.whole, took_ms=round(took, 3), coverage=ranked.coverage)

    async def _as_asked(self, ctx: Context, request: SearchRequest, wanted: Wanted, ranked: "_Ranked") -> "_Ranked":
        """The same, those first that hold the words in quotation marks or stand in the files that the query names.

        What isn't among the hits is looked for: by the phrases alone, and in the named files.
        """
        named = await self._named(ctx, request, wanted)
        further = [await self._holding(ctx, request, phrase) for phrase in wanted.phrases]
        whole = ranked.whole
        if named:
            filters = msgspec.structs.replace(request.filters, document_ids=list(named))
            inside = await self._ranked(ctx, msgspec.structs.replace(request, filters=filters), LOOKED_UP)
            further.append(inside.hits)
            whole = whole and inside.whole
        hits = ranked.hits
        if wanted.days:
            hits = [_raised(hit, request.mode) if told(wanted, hit.text) else hit for hit in hits]
            hits.sort(key=lambda hit: -hit.score)
        return _Ranked(in_tiers(wanted, hits, further, named), ranked.coverage, whole)

    async def _holding(self, ctx: Context, request: SearchRequest, phrase: str) -> list[SearchHit]:
        """Passages that hold a phrase, of many with all its words where few of the first do."""
        by_words = msgspec.structs.replace(request, mode=SearchMode.KEYWORD)
        found, _ = await self._lanes(ctx, by_words, LOOKED_UP, phrase)
        held = holding(phrase, found)
        if len(held) < request.k and len(found) >= LOOKED_UP:
            found, _ = await self._lanes(ctx, by_words, MOST_LOOKED_UP, phrase)
            held = await asyncio.to_thread(holding, phrase, found)
        return held

    async def _named(self, ctx: Context, request: SearchRequest, wanted: Wanted) -> frozenset[UUID]:
        """The documents whose names the query gives, within its filter; none where a name fits too many."""
        if not (wanted.files or wanted.titles):
            return frozenset()
        async with self._store.tenant(ctx) as tx:
            known = await tx.documents.named(wanted.files, wanted.titles, limit=MOST_NAMED)
        only = request.filters.document_ids
        within = {document: name for document, name in known.items() if not only or document in only}
        return meant(wanted, within) if len(known) < MOST_NAMED else frozenset()

    async def _ranked(
        self, ctx: Context, request: SearchRequest, most: int, notations: Sequence[str] = ()
    ) -> "_Ranked":
        """At least `most` passages where so many match, by the lanes, by tokens and by the model, which is asked once.

        The lane of words looks for each of the `notations`, too.
        """
        by_model = self._reranker if request.mode is not SearchMode.KEYWORD and request.query.strip() else None
        if request.diversity or by_model:
            most = max(most, RERANKED)
        hits, coverage = await self._lanes(ctx, request, most, request.query)
        if request.mode is not SearchMode.VECTOR:
            for words in notations:
                hits = better(hits, (await self._lanes(ctx, request, most, words))[0])
        ranked = await self._by_model(ctx, by_model, request.query, hits) if by_model else hits
        return _Ranked(hits if ranked is None else ranked, coverage, ranked is not None)

    async def _lanes(
        self, ctx: Context, request: SearchRequest, most: int, words: str
    ) -> tuple[list[SearchHit], float]:
        """What the lanes find, the one of words for `words`, in the order of tokens; and the coverage of the words."""
        terms = self._analyser.query(ctx.tenant_id, words) if request.mode is not SearchMode.VECTOR else None
        query = None
        if request.mode is not SearchMode.KEYWORD and request.query.strip():
            query = await self._embedder.embed_search(ctx, request.query)
        tokens = query.tokens if query and terms else None
        found = await self._store.search(
            ctx,
            self._embedder.space,
            embedding=query.vector if query else None,
            terms=terms,
            filters=request.filters,
            k=most,
            reranked=0 if tokens is None else late_interaction.RERANKED,
        )
        hits = list(map(_readable, found.hits)) if tokens is None else await self._by_tokens(ctx, tokens, found)
        return hits, found.coverage

    async def _placed(self, ctx: Context, hits: list[SearchHit], query: str) -> list[SearchHit]:
        """The same, each of several pages with the page that has most of the query's words: a passage that begins with
        the last line of one page is seldom about that line."""
        paged = [hit.chunk_id for hit in hits if hit.location.page is not None]
        if not paged:
            return hits
        async with self._store.tenant(ctx) as tx:
            known = await tx.chunks.parts(paged)
        wanted = frozenset(self._analyser.terms(query)) if known else frozenset[str]()

        def placed(hit: SearchHit) -> SearchHit:
            parts = known.get(hit.chunk_id, ())
            pages = {part.location.page for part in parts}
            if len(pages) < 2:
                return hit
            return msgspec.structs.replace(hit, location=likeliest(parts, hit.text, wanted, self._analyser))

        return [placed(hit) for hit in hits]

    async def _read_on(self, ctx: Context, hits: list[SearchHit], steps: int) -> list[SearchHit]:
        """The same with what stands around them; one that was removed just now stands alone."""
        async with self._store.tenant(ctx) as tx:
            known = await tx.chunks.around([hit.chunk_id for hit in hits], steps=steps)
        return [
            msgspec.structs.replace(
                hit, passage=with_neighbours(known[hit.chunk_id]) if hit.chunk_id in known else hit.text
            )
            for hit in hits
        ]

    async def _varied(self, ctx: Context, hits: list[SearchHit], request: SearchRequest) -> list[SearchHit]:
        """The passages to show, each for what those before it don't say. A score still says how well it answers."""
        async with self._store.tenant(ctx) as tx:
            known = await tx.vectors.of_chunks(self._embedder.space, [hit.chunk_id for hit in hits])
        hits = [hit for hit in hits if hit.chunk_id in known]  # one that was removed just now has none
        vectors = np.stack([known[hit.chunk_id] for hit in hits]) if hits else np.empty((0, 0), np.float32)
        order = varied([hit.score for hit in hits], vectors, count=request.k, diversity=request.diversity)
        return [hits[place] for place in order]

    async def _by_model(
        self, ctx: Context, reranker: RerankEndpoint, query: str, hits: list[SearchHit]
    ) -> list[SearchHit] | None:
        """The first hits in the order of the model, which has the last word; None where it doesn't answer."""
        if len(hits) < 2:
            return hits
        try:
            scores = await reranker.scores(query, [hit.text for hit in hits[:RERANKED]], deadline=ctx.deadline)
        except AppError as error:
            self._log.warning("not reranked", model=reranker.name, code=error.code.value)
            return None
        if not all(0 <= score <= 1 for score in scores.values()):  # some endpoints tell log-odds
            scores = {place: _logistic(score) for place, score in scores.items()}
        order = sorted(range(len(hits)), key=lambda place: -scores.get(place, -1.0))
        least = min(scores.values())
        return [
            msgspec.structs.replace(hits[place], score=scores.get(place, min(hits[place].score, least)))
            for place in order
        ]

    async def _by_tokens(self, ctx: Context, query: Vectors, found: Found) -> list[SearchHit]:
        """Hits in the order that their tokens give them, as far as words don't tell."""
        share = late_interaction.weight(share_of_words(found.coverage))
        codes: dict[UUID, bytes] = {}
        if share and len(found.hits) > 1:
            async with self._store.tenant(ctx) as tx:
                codes = await tx.token_codes.of_chunks([hit.chunk_id for hit in found.hits])
        if not codes:
            return list(map(_readable, found.hits))
        measured = await asyncio.to_thread(late_interaction.scores, query, list(codes.values()))
        tokens = dict(zip(codes, measured.tolist(), strict=True))
        scores = late_interaction.rerank(found.hits, [tokens.get(hit.chunk_id) for hit in found.hits], share)
        hits = [
            msgspec.structs.replace(hit, score=_logistic(score)) for hit, score in zip(found.hits, scores, strict=True)
        ]
        return sorted(hits, key=lambda hit: -hit.score)


class _Ranked(NamedTuple):
    """Passages, best first; the coverage of the query by the best of them; whether every part had its share."""

    hits: list[SearchHit]
    coverage: float
    whole: bool


def _raised(hit: SearchHit, mode: SearchMode) -> SearchHit:
    """With a score as if it lay half the way further to certainty; scores of words alone have no such bound."""
    score = 1.5 * hit.score if mode is SearchMode.KEYWORD else (1 + hit.score) / 2
    return msgspec.structs.replace(hit, score=score)


def _readable(hit: SearchHit) -> SearchHit:
    """With a score that lies between 0 and 1, as that of a single lane or as its readers expect it."""
    if hit.similarity is None or hit.keyword is None:
        return hit
    return msgspec.structs.replace(hit, score=_logistic(hit.score))


def _logistic(score: float) -> float:
    """Sorts as a fused score does, which says how far a passage is from the candidates' mean: negative for half of
    them."""
    return 1 / (1 + math.exp(-max(score, -700.0)))
