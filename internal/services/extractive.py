"""Answers without a chat model: the sentences of the documents that answer best, quoted and cited."""

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import groupby
from typing import Protocol
from uuid import UUID

import msgspec
import numpy as np

from internal.entities.conversations import NOT_IN_DOCUMENTS, Passage, Prompt, Usage
from internal.entities.parsed import Location
from internal.providers.turns import Lane
from internal.services.evidence import (
    BACKGROUND,
    Candidate,
    Sentences,
    Vectors,
    candidates,
    content_terms,
    coverage,
    language,
    relevances,
    subject,
    weigh,
)
from internal.services.places import in_rows
from internal.services.prompts import leans, names_pictures
from internal.services.terms import TermAnalyser
from pkg.ctxutil import Context

MODEL = "dreamhub-extractive-1"
LABEL = {"en": "From your documents:", "zh": "根据您的文档："}
TOLD = {"en": "You told me earlier:", "zh": "您之前说过："}
WRITTEN = {"en": "In the picture:", "zh": "图片中："}
SEEN = {"en": "The picture shows:", "zh": "图片显示："}
OF_WRITING = re.compile(r"\b(?:says?|reads?|written|text)\b|写着|写了|写的|文字|读出|上面", re.IGNORECASE)
AT_LARGE = re.compile(
    r"^what(?:'s|\s+is|\s+are)\s+(?:(?:this|that|it|these|those|here)\s*\??$|(?:in|on)\s+(?:this|the|it)\b)"
    r"|^what\b.*\b(?:says?|reads?|shows?)\b|\babout\s*\??$|^(?:describe|summari[sz]e)\b"
    r"|^[这那它]是什么|[讲说写]了?(?:些|的是)?什么|有什么内容|主要内容|概括|总结|描述",
    re.IGNORECASE,
)
"""Questions of which the whole of a picture is the answer."""
OF_ONESELF = re.compile(r"\b(?:my|our|i|me)\b|我", re.IGNORECASE)
MOST_SENTENCES = 4
MOST_CHARACTERS = 900
NEAR_BEST = 0.8  # a further sentence is worth reading when it scores at least this share of the best one's
APT = 0.33  # centred cosine from which a sentence has to do with a question that is only part of one
MET = 0.385  # likeness of tokens from which a passage answers what is said in a conversation
ALIKE = 0.94  # cosine above which two sentences say the same
COVERAGE_WEIGHT = 0.3
RANK_WEIGHT = 0.03
QUESTION_PENALTY = 0.1
SHORT_PENALTY = 0.1
SHORTEST = 12
MARKER = re.compile(r"[\[【［]\s*(\^?\d[\d\s,，、;；\-–]*)[\]】］]")


class Embeds(Protocol):
    """What the extractive mode needs of the embedder: unit vectors, of shape (dim,) and (texts, dim)."""

    async def embed_query(self, ctx: Context, text: str) -> Vectors:
        """One vector."""
        ...

    async def embed_passages(self, ctx: Context, texts: Sequence[str], *, lane: Lane) -> Vectors:
        """A row for each text."""
        ...


class Likens(Protocol):
    """What the extractive mode needs of the search."""

    async def likeness(self, ctx: Context, query: str, chunk_ids: Sequence[UUID]) -> dict[UUID, float]:
        """How far the query's tokens are met by those of passages, from -1 to 1; of those that have some."""
        ...


class ExtractiveModel:
    """A chat model that can only quote. It costs nothing and invents nothing."""

    name = MODEL
    reads_on = False
    """A quote is a sentence, and how sure it is was measured among the sentences of retrieved chunks alone."""

    def __init__(self, embedder: Embeds, split: Sentences, search: Likens | None = None) -> None:
        """Without `search` an answer in the middle of a conversation is judged as one to its first question."""
        self._embedder = embedder
        self._split = split
        self._search = search
        self._analyser = TermAnalyser()
        self._neutral: dict[str, Vectors] = {}

    async def stream(self, ctx: Context, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        """Label, then a line for each sentence with its mark; what the user told before has none, and comes first where
        they ask of themselves; or NOT_IN_DOCUMENTS. Raises what the embedder raises."""
        tongue = language(prompt.question)
        told = await self._told(ctx, prompt) if OF_ONESELF.search(prompt.question) else []
        label, lines = (TOLD, told) if told else await self._lines(ctx, prompt)
        yield f"{label[tongue]}\n\n" if lines else NOT_IN_DOCUMENTS
        for place, line in enumerate(lines):
            yield f"\n{line}" if place else line
        yield Usage()

    def estimate(self, prompt: Prompt, said: str) -> Usage:
        """Nothing: no tokens are bought."""
        return Usage()

    async def _lines(self, ctx: Context, prompt: Prompt) -> tuple[Mapping[str, str], list[str]]:
        """What answers, under its label: what pictures of the question show, or what documents say of it or of them.

        Whoever asks about a picture gets at least what is written on it.
        """
        pictured = [
            msgspec.structs.replace(passage, text=in_rows(passage)) for passage in prompt.passages if passage.attached
        ]
        if not pictured and not prompt.seen:
            return LABEL, _cited(await self._chosen(ctx, prompt))
        question = subject(prompt.question)
        found = candidates(self._analyser, self._split, question, pictured)
        measured = await self._weighed(ctx, question, found)
        near = measured and (measured.plausible if prompt.shown else measured.confident)
        apt = _cited(measured.chosen(found)) if measured and near else []
        if prompt.seen and prompt.shown:
            return SEEN, [_shown(prompt.seen), *apt]
        everything, whole = self._beginning(pictured) if prompt.shown else ([], False)
        if everything and AT_LARGE.search(prompt.question.strip()):
            return WRITTEN, everything
        if everything and (names_pictures(prompt.question) or OF_WRITING.search(prompt.question)):
            return WRITTEN, everything if whole else apt or everything
        if apt:
            return WRITTEN, apt
        others = tuple(passage for passage in prompt.passages if not passage.attached)
        # What is written there completes a question that can't be understood alone, and would outweigh any other.
        completed = [f"{prompt.question} {prompt.clue}"] if prompt.clue and leans(prompt.question) else []
        for asked in (prompt.question, *completed):
            searched = msgspec.structs.replace(prompt, passages=others, question=asked, searched=asked)
            if chosen := await self._chosen(ctx, searched):
                return LABEL, _cited(chosen)
        return WRITTEN, everything

    def _beginning(self, passages: Sequence[Passage]) -> tuple[list[str], bool]:
        """Lines of the first sentences, headings among them, as many as an answer holds; and whether that is all.

        Each passage has its mark at its end: they are read as one.
        """
        told = [
            Candidate(text, passage, place, 0.0)
            for passage in passages
            for place, text in enumerate(map(str.strip, self._split(passage.text)))
            if text
        ]
        lengths = np.cumsum([len(item.text) for item in told])
        fitting = max(1, int(np.searchsorted(lengths, MOST_CHARACTERS, side="right")))
        lines = [
            "\n".join(_shown(item.text) for item in mine) + f" [{number}]"
            for number, mine in groupby(told[:fitting], key=lambda item: item.passage.number)
        ]
        return lines, fitting >= len(told)

    async def _told(self, ctx: Context, prompt: Prompt) -> list[str]:
        """What the user told that answers, as surely as a passage would have to."""
        wanted = content_terms(self._analyser, prompt.question)
        found = [
            Candidate(
                item.text,
                _stand_in(number, item.text),
                number,
                coverage(wanted, content_terms(self._analyser, item.text)),
            )
            for number, item in enumerate((item for item in prompt.remembered if item.told), 1)
        ]
        measured = await self._weighed(ctx, prompt.question, found)
        return [_shown(item.text) for item in measured.chosen(found)] if measured and measured.plausible else []

    async def _chosen(self, ctx: Context, prompt: Prompt) -> list[Candidate]:
        """The sentences to quote; none when the evidence is too thin."""
        alike = await self._likeness(ctx, prompt)
        if alike is not None and alike < MET:
            return []
        return await self._answers(ctx, prompt, sure=alike is not None) or await self._answers_to_both(
            ctx, prompt, sure=alike is not None
        )

    async def _likeness(self, ctx: Context, prompt: Prompt) -> float | None:
        """Of a question in a conversation to the best passage; None where sentences tell more, or tokens nothing.

        What is said in a conversation is seldom a question in words of its own. There tokens part best what is answered
        from what isn't: on mtrag .90 of the latter are refused so, and .10 of the former.
        """
        if self._search is None or not prompt.follows or not prompt.passages:
            return None
        first = prompt.passages[0]
        if language(prompt.searched) != language(first.text):
            return None
        return (await self._search.likeness(ctx, prompt.searched, [first.chunk_id])).get(first.chunk_id)

    async def _answers(self, ctx: Context, prompt: Prompt, *, sure: bool) -> list[Candidate]:
        """What answers the question as it stands. `sure`: something does."""
        if sure and prompt.searched != prompt.question:
            return []
        question = subject(prompt.question)
        found = candidates(self._analyser, self._split, question, prompt.passages)
        measured = await self._weighed(ctx, question, found, prompt.extent, prompt.coverage)
        return measured.chosen(found) if measured and (sure or measured.confident) else []

    async def _answers_to_both(self, ctx: Context, prompt: Prompt, *, sure: bool) -> list[Candidate]:
        """What answers a question that is understood only with the one before it; nothing for others.

        The earlier question must not be answered once more: only sentences count that have to do with this one, by a
        common word or by meaning.
        """
        if prompt.searched == prompt.question:
            return []
        found = candidates(self._analyser, self._split, prompt.searched, prompt.passages)
        if not found:
            return []
        wanted = content_terms(self._analyser, prompt.question)
        relevance = (await self._measure(ctx, prompt.question, found)).relevance
        apt = [
            item
            for item, cosine in zip(found, relevance, strict=True)
            if cosine >= APT or wanted & content_terms(self._analyser, item.text)
        ]
        measured = await self._weighed(ctx, prompt.searched, apt)
        return measured.chosen(apt) if measured and (sure or measured.plausible) else []

    async def _weighed(
        self, ctx: Context, question: str, found: list[Candidate], extent: int = 0, covered: float = 0.0
    ) -> "_Weighed | None":
        """What speaks for the sentences, of passages that are the best of `extent`; None where there is none."""
        if not found:
            return None
        measured = await self._measure(ctx, question, found)
        evidence = weigh(self._analyser, question, found, measured.relevance, measured.background)
        return _Weighed(measured, evidence.confidence(extent, covered) > 0, evidence.plausibility() > 0)

    async def _measure(self, ctx: Context, question: str, found: list[Candidate]) -> "_Measured":
        """How near the sentences, at least one, are to the question."""
        asked_in, written_in = language(question), [language(item.text) for item in found]
        for tongue in {asked_in, *written_in} - self._neutral.keys():
            self._neutral[tongue] = await self._embedder.embed_passages(ctx, BACKGROUND[tongue], lane="interactive")
        query = await self._embedder.embed_query(ctx, question)
        vectors = await self._embedder.embed_passages(ctx, [item.text for item in found], lane="interactive")
        relevance = relevances(query, asked_in, vectors, written_in, self._neutral)
        tongue = written_in[int(np.argmax(relevance))]
        neutral = self._neutral[tongue]
        background = relevances(query, asked_in, neutral, [tongue] * len(neutral), self._neutral)
        return _Measured(vectors, relevance, background)


def _stand_in(number: int, text: str) -> Passage:
    """A passage of no document, to be judged as one."""
    nowhere = UUID(int=0)
    return Passage(
        number=number, chunk_id=nowhere, document_id=nowhere, filename="", text=text, score=0.0, location=Location()
    )


class _Measured(msgspec.Struct, frozen=True):
    """Unit vectors of sentences, their centred cosines to a question, and those of neutral sentences."""

    vectors: Vectors
    relevance: Vectors
    background: Vectors


class _Weighed(msgspec.Struct, frozen=True):
    """Sentences that were measured, and whether they answer a question that stands alone, or one that needn't."""

    measured: _Measured
    confident: bool
    plausible: bool

    def chosen(self, found: Sequence[Candidate]) -> list[Candidate]:
        """The sentences to quote, in the order to read them."""
        return select(found, self.measured.vectors, self.measured.relevance)


def _cited(chosen: Sequence[Candidate]) -> list[str]:
    """A line for each, with its mark."""
    return [f"{_shown(item.text)} [{item.passage.number}]" for item in chosen]


def select(found: Sequence[Candidate], vectors: Vectors, relevance: Vectors) -> list[Candidate]:
    """Up to four sentences by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998), best passage first.

    `vectors` are unit vectors of `found`, `relevance` their centred cosines to the question.
    """
    scores = np.array([score(item, float(cosine)) for item, cosine in zip(found, relevance, strict=True)])
    chosen: list[int] = []
    length = 0
    for index in map(int, np.argsort(-scores, kind="stable")):
        if chosen and scores[index] < NEAR_BEST * scores[chosen[0]]:
            break
        if len(chosen) == MOST_SENTENCES:
            break
        if any(float(vectors[index] @ vectors[other]) > ALIKE for other in chosen):
            continue
        if chosen and length + len(found[index].text) > MOST_CHARACTERS:
            continue
        chosen.append(index)
        length += len(found[index].text)
    return _in_reading_order([found[index] for index in chosen])


def score(item: Candidate, relevance: float) -> float:
    """How well a sentence serves as an answer; in centred cosines."""
    value = relevance + COVERAGE_WEIGHT * item.coverage - RANK_WEIGHT * (item.passage.number - 1)
    if item.text.endswith(("?", "？")):
        value -= QUESTION_PENALTY  # a question in the documents resembles the question and answers nothing
    if len(item.text) < SHORTEST:
        value -= SHORT_PENALTY  # headings and table cells
    return value


def _in_reading_order(chosen: list[Candidate]) -> list[Candidate]:
    """Sentences of one passage stand together, as in the text; the passage of the best sentence comes first."""
    order: dict[int, int] = {}
    for item in chosen:
        order.setdefault(item.passage.number, len(order))
    return sorted(chosen, key=lambda item: (order[item.passage.number], item.place))


def _shown(text: str) -> str:
    """One line, and without numbers in brackets of its own, which would pass for marks of ours."""
    return MARKER.sub(r"(\1)", re.sub(r"\s+", " ", text))
