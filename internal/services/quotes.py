"""Finds, in a cited passage, the exact words that back a statement, and whether they do."""

import re
from collections.abc import Sequence

import msgspec
import numpy as np

from internal.entities.conversations import Citation
from internal.services.citations import AnswerText, Cited, Mark
from internal.services.evidence import (
    BACKGROUND,
    Sentences,
    Vectors,
    content_terms,
    coverage,
    language,
    relevances,
)
from internal.services.extractive import Embeds
from internal.services.places import place
from internal.services.terms import TermAnalyser
from pkg import logger
from pkg.apperr import AppError
from pkg.ctxutil import Context

LONGEST_QUOTE = 600
LONG_CLAIM = 300  # characters of words from which the end of a sentence is as good as all of it
WORD = re.compile(r"\w+")
FEW_TERMS = 3  # "Yes" and "two years" can't be judged
MOSTLY, SHARED = 0.7, 0.2
NEAR, NEAR_ACROSS, STRANGE = 0.55, 0.38, 0.2
SURE = 0.15  # share of common terms from which words alone decide; below it, as across languages, meaning does


class Span(msgspec.Struct, frozen=True):
    """A sentence and where it stands in its passage."""

    start: int
    end: int
    text: str


class Support(msgspec.Struct, frozen=True, kw_only=True):
    """What words say of a statement and its passage: how many terms it has, the share of them that the passage has,
    and whether it has a number that the passage hasn't."""

    terms: int
    shared: float
    strange_number: bool
    crosses_languages: bool

    @property
    def decided(self) -> bool:
        """Whether words are enough."""
        return self.terms < FEW_TERMS or (self.shared >= MOSTLY and not self.strange_number)

    def holds(self, cosine: float | None) -> bool:
        """Whether the passage bears the statement out; `cosine` is the centred one to its nearest sentence, if known.

        Measured on the sentences of mtrag's reference answers: with passages that they were written from .97 hold,
        with passages on other subjects .05, with others of the same collection .23. Across languages, on sentences of
        xquad and their translations: .98, and .01. By words alone: .96, .04 and .10.
        """
        if self.decided:
            return True
        if cosine is None:
            return self.crosses_languages or self.shared >= SHARED
        if self.crosses_languages:
            return cosine >= NEAR_ACROSS
        return cosine + 0.5 * self.shared - (STRANGE if self.strange_number else 0.0) >= NEAR


class Checked(msgspec.Struct, frozen=True):
    """An answer without the marks that its passages don't bear out, and the citations that are left."""

    content: str
    citations: list[Citation]
    dropped: int


class _Backed(msgspec.Struct, frozen=True):
    """The sentence of a passage that is nearest to a statement, and whether the passage bears the statement out."""

    span: Span
    supported: bool


class Quoter:
    """Makes citations of marks. Each quote is cut out of the passage, never rewritten."""

    def __init__(self, embedder: Embeds, split: Sentences, *, calibrated: bool = False) -> None:
        """`calibrated` says that the embedder is the built-in one, whose cosines the bounds were measured with."""
        self._embedder = embedder
        self._split = split
        self._calibrated = calibrated
        self._neutral: dict[str, Vectors] = {}
        self._analyser = TermAnalyser()
        self._log = logger.get("quotes")

    async def check(self, ctx: Context, answer: AnswerText) -> Checked:
        """Drops marks whose passage doesn't bear out the statement before them, and quotes the others' passages."""
        unsupported: set[Mark] = set()
        citations: list[Citation] = []
        for item in answer.cited():
            spans = locate(item.passage.text, self._split(item.passage.text))
            backed = {claim: await self._backed(ctx, item.passage.text, spans, claim) for claim in item.claims}
            unsupported |= {Mark(item.index, claim) for claim, found in backed.items() if not found.supported}
            if supported := [found.span for found in backed.values() if found.supported]:
                citations.append(_citation(item, supported))
        if unsupported:
            self._log.info("citations dropped", dropped=len(unsupported), kept=len(citations))
        return Checked(answer.without(unsupported) if unsupported else answer.text, citations, len(unsupported))

    async def _backed(self, ctx: Context, text: str, spans: Sequence[Span], claim: str) -> _Backed:
        """What backs a statement. Without sentences that can be found, the beginning of the passage."""
        if not spans:
            bare = text.strip()[:LONGEST_QUOTE].rstrip()
            start = text.index(bare)
            return _Backed(Span(start, start + len(bare), bare), supported=True)
        said = worded(claim)
        for span in spans:
            found = worded(span.text)
            if found == said or (len(said) > LONG_CLAIM and found.endswith(said)):
                return _Backed(span, supported=True)
        wanted = content_terms(self._analyser, claim)
        scores = [overlap(wanted, content_terms(self._analyser, span.text)) for span in spans]
        near = spans[int(np.argmax(scores))]
        known = content_terms(self._analyser, text)
        evidence = Support(
            terms=len(wanted),
            shared=coverage(wanted, known),
            strange_number=any(any(map(str.isdigit, term)) for term in wanted - known),
            crosses_languages=language(claim) != language(text),
        )
        if max(scores) < SURE and len(spans) > 1:
            cosines = await self._cosines(ctx, claim, spans)
            if cosines:
                near = spans[int(np.argmax(cosines))]
            return _Backed(near, supported=evidence.holds(max(cosines) if cosines and self._calibrated else None))
        if evidence.decided or not self._calibrated:
            return _Backed(near, supported=evidence.holds(None))
        cosines = await self._cosines(ctx, claim, [near])
        return _Backed(near, supported=evidence.holds(max(cosines) if cosines else None))

    async def _cosines(self, ctx: Context, claim: str, spans: Sequence[Span]) -> list[float]:
        """Centred cosines of claim and sentences (see evidence.py); none where the embedder has none to give.

        The answer is complete by now: for want of a check it must not be lost.
        """
        said_in, written_in = language(claim), [language(span.text) for span in spans]
        try:
            for tongue in {said_in, *written_in} - self._neutral.keys():
                self._neutral[tongue] = await self._embedder.embed_passages(ctx, BACKGROUND[tongue], lane="interactive")
            texts = [claim, *(span.text for span in spans)]
            vectors = await self._embedder.embed_passages(ctx, texts, lane="interactive")
        except AppError as error:
            self._log.warning("citations judged by words alone", code=error.code)
            return []
        return relevances(vectors[0], said_in, vectors[1:], written_in, self._neutral).tolist()


def _citation(item: Cited, spans: Sequence[Span]) -> Citation:
    """Several sentences are quoted together with what stands between them, as far as one chunk goes."""
    passage = item.passage
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    if end - start > LONGEST_QUOTE:
        start, end = spans[0].start, min(spans[0].end, spans[0].start + LONGEST_QUOTE)
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
