"""Finds, in a cited passage, the exact words that back a statement."""

import re
from collections.abc import Sequence

import msgspec
import numpy as np

from internal.entities.conversations import Citation
from internal.services.citations import Cited
from internal.services.evidence import Sentences, content_terms
from internal.services.extractive import Embeds
from internal.services.places import place
from internal.services.terms import TermAnalyser
from pkg import logger
from pkg.apperr import TRANSIENT, AppError
from pkg.ctxutil import Context

LONGEST_QUOTE = 600
LONG_CLAIM = 300  # characters of words from which the end of a sentence is as good as all of it
WORD = re.compile(r"\w+")
SURE = 0.15  # share of common terms from which words alone decide; below it, as across languages, meaning does


class Span(msgspec.Struct, frozen=True):
    """A sentence and where it stands in its passage."""

    start: int
    end: int
    text: str


class Quoter:
    """Makes citations of marks. Each quote is cut out of the passage, never rewritten."""

    def __init__(self, embedder: Embeds, split: Sentences) -> None:
        self._embedder = embedder
        self._split = split
        self._analyser = TermAnalyser()
        self._log = logger.get("quotes")

    async def cite(self, ctx: Context, cited: Sequence[Cited]) -> list[Citation]:
        """One citation for each mark's passage, in order."""
        return [await self._citation(ctx, item) for item in cited]

    async def _citation(self, ctx: Context, item: Cited) -> Citation:
        passage = item.passage
        start, end = await self._quote(ctx, passage.text, item.claims)
        piece = passage.piece(start, end)
        end = min(end, piece.end)
        return Citation(
            index=item.index,
            chunk_id=piece.chunk_id,
            document_id=passage.document_id,
            filename=passage.filename,
            quote=passage.text[start:end],
            location=place(piece.parts, piece.location, start - piece.start, end - piece.start),
        )

    async def _quote(self, ctx: Context, text: str, claims: Sequence[str]) -> tuple[int, int]:
        """Where the sentence behind each claim stands; several are quoted together with what stands between them."""
        spans = locate(text, self._split(text))
        if not spans:
            bare = text.strip()[:LONGEST_QUOTE].rstrip()
            return text.index(bare), text.index(bare) + len(bare)
        best = [await self._best(ctx, spans, claim) for claim in claims] or [spans[0]]
        start, end = min(span.start for span in best), max(span.end for span in best)
        if end - start > LONGEST_QUOTE:
            start, end = best[0].start, min(best[0].end, best[0].start + LONGEST_QUOTE)
        return start, end

    async def _best(self, ctx: Context, spans: Sequence[Span], claim: str) -> Span:
        said = worded(claim)
        for span in spans:
            text = worded(span.text)
            if text == said or (len(said) > LONG_CLAIM and text.endswith(said)):
                return span
        wanted = content_terms(self._analyser, claim)
        scores = [overlap(wanted, content_terms(self._analyser, span.text)) for span in spans]
        if max(scores) < SURE and len(spans) > 1:
            scores = await self._meanings(ctx, spans, claim) or scores
        return spans[int(np.argmax(scores))]

    async def _meanings(self, ctx: Context, spans: Sequence[Span], claim: str) -> list[float]:
        """Cosines of claim and sentences; none while the embedder is away, since a quote is only less apt then."""
        try:
            query = await self._embedder.embed_query(ctx, claim)
            vectors = await self._embedder.embed_passages(ctx, [span.text for span in spans], lane="interactive")
        except AppError as error:
            if error.code not in TRANSIENT:
                raise
            self._log.warning("quotes chosen by words alone", code=error.code)
            return []
        return [float(cosine) for cosine in vectors @ query]


def locate(text: str, sentences: Sequence[str]) -> list[Span]:
    """Where each sentence stands; one that was altered when it was cut out is passed over."""
    spans: list[Span] = []
    at = 0
    for sentence in sentences:
        bare = sentence.strip()
        start = text.find(bare, at) if bare else -1
        if start >= 0:
            at = start + len(bare)
            spans.append(Span(start, at, bare))
    return spans


def worded(text: str) -> str:
    """The words and numbers alone, in order: what is left when blanks, brackets and quotation marks are changed."""
    return " ".join(WORD.findall(text))


def overlap(left: frozenset[str], right: frozenset[str]) -> float:
    """F1 of two sets of terms."""
    common = len(left & right)
    return 2 * common / (len(left) + len(right)) if common else 0.0
