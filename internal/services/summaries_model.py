"""What is worth remembering of a conversation, found by a chat model: a strategy beside the rules."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from internal.entities.conversations import Usage
from internal.entities.memory import MEMORY_LIMIT, Digest, Exchange, Finding, MemoryKind, SummaryLine
from internal.providers.llm import Writer
from internal.providers.llm_wire import estimate_tokens
from internal.services.evidence import content_terms
from internal.services.orders import order, read
from internal.services.summaries import (
    ANSWER_LENGTH,
    QUESTION_LENGTH,
    SUBJECT_LENGTH,
    RuleSummarizer,
    line,
    whole,
    within,
)
from internal.services.terms import TermAnalyser, fold
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

SECONDS = 60.0
CALL_TOKENS = 6000
"""Of exchanges that one call digests."""
LONGEST_QUESTION, LONGEST_ANSWER = 2000, 1000
MOST_FACTS = 5
"""Of one exchange; more are no longer what matters."""

RULES = """\
You keep the memory of a conversation between a user and an assistant. You get the summary so far and new exchanges, \
each with a number. Reply with a JSON object:
{"lines": [{"exchange": 1, "text": "what was asked and found out, in one short sentence, in the user's language"}],
"facts": [{"exchange": 1, "kind": "fact or preference", "text": "what the USER said about themselves, their work or \
how they want to be answered, in one sentence in the user's own words", "subject": "two or three words that would be \
the same if the user said something newer on the matter", "importance": 0.0 to 1.0}]}
One line for each exchange. Facts are only what the user said; nothing that the assistant or a document said, nothing \
that will not matter tomorrow. Often there is none."""


class _Line(msgspec.Struct, frozen=True):
    exchange: int
    text: str


class _Fact(msgspec.Struct, frozen=True):
    exchange: int
    kind: Literal["fact", "preference"]
    text: str
    importance: float = 0.5
    subject: str = ""


class _Found(msgspec.Struct, frozen=True):
    lines: list[_Line] = []
    facts: list[_Fact] = []


class ModelSummarizer:
    """Lines and facts in a model's words; what it doesn't say in a form that can be read, the rules say."""

    def __init__(self, model: Writer) -> None:
        self._model = model
        self._rules = RuleSummarizer()
        self._analyser = TermAnalyser()
        self._log = logger.get("memory")

    async def digest(self, ctx: Context, lines: Sequence[SummaryLine], exchanges: Sequence[Exchange]) -> Digest:
        """Raises MODEL_UNAVAILABLE: the task waits for the model."""
        summary, findings, usage = tuple(lines), list[Finding](), Usage()
        for some in _batches(exchanges):
            found, used = await self._ask(ctx, summary, some)
            if found is None:
                digest = await self._rules.digest(ctx, summary, some)
                summary, findings = digest.lines, [*findings, *digest.findings]
            else:
                new = list(self._findings(found, some))
                summary = tuple(within([*summary, *_lines(found, some, new)]))
                findings += new
            usage += used
        return Digest(lines=summary, findings=tuple(findings), usage=usage, model=self._model.name)

    async def _ask(
        self, ctx: Context, summary: Sequence[SummaryLine], exchanges: Sequence[Exchange]
    ) -> tuple[_Found | None, Usage]:
        """What the model found; None where it refuses or can't be read."""
        data = [("summary", "\n".join(item.text for item in summary) or "(none)")]
        data += [
            (
                f"exchange {number}",
                f"user: {item.question[:LONGEST_QUESTION]}\nassistant: {item.answer[:LONGEST_ANSWER]}",
            )
            for number, item in enumerate(exchanges, 1)
        ]
        try:
            answer, usage = await self._model.complete(ctx, order(RULES, data), seconds=SECONDS)
        except AppError as error:
            if error.code is Code.MODEL_UNAVAILABLE:
                raise
            self._log.warning("digested by rules", model=self._model.name, code=error.code.value)
            return None, Usage()
        found = read(answer, _Found)
        if found is None:
            self._log.warning("digested by rules", model=self._model.name, code="unreadable")
        return found, usage

    def _findings(self, found: _Found, exchanges: Sequence[Exchange]) -> Iterator[Finding]:
        """Facts that the user's own message bears out, and each exchange as a whole."""
        for number, exchange in enumerate(exchanges, 1):
            facts = [fact for fact in found.facts if fact.exchange == number and self._said(fact.text, exchange)]
            for fact in [] if exchange.again else facts[:MOST_FACTS]:
                yield Finding(
                    kind=MemoryKind(fact.kind),
                    text=_bare(fact.text, MEMORY_LIMIT),
                    importance=min(1.0, max(0.0, fact.importance)),
                    subject=_bare(fold(fact.subject), SUBJECT_LENGTH) or None,
                    source_id=exchange.id,
                    answer_id=exchange.answer_id,
                    created_at=exchange.created_at,
                )
            yield whole(exchange)

    def _said(self, text: str, exchange: Exchange) -> bool:
        """Whether it can be what the user said: a word of theirs, and no number that isn't. A document that tells a
        model to remember something tells it in vain."""
        stated, asked = content_terms(self._analyser, text), content_terms(self._analyser, exchange.question)
        return bool(stated & asked) and all(term in asked for term in stated if any(map(str.isdigit, term)))


def _lines(found: _Found, exchanges: Sequence[Exchange], findings: Sequence[Finding]) -> Iterator[SummaryLine]:
    """One for each exchange; the rules' where the model has none."""
    told = {item.exchange: _bare(item.text, QUESTION_LENGTH + ANSWER_LENGTH) for item in found.lines}
    for number, exchange in enumerate(exchanges, 1):
        yield SummaryLine(
            text=told.get(number) or line(exchange),
            source_id=exchange.id,
            answer_id=exchange.answer_id,
            importance=max(item.importance for item in findings if item.source_id == exchange.id),
            document_ids=exchange.document_ids,
        )


def _batches(exchanges: Sequence[Exchange]) -> Iterator[list[Exchange]]:
    """In their order, as many as one call takes."""
    batch: list[Exchange] = []
    left = CALL_TOKENS
    for exchange in exchanges:
        cost = estimate_tokens(exchange.question[:LONGEST_QUESTION] + exchange.answer[:LONGEST_ANSWER])
        if batch and cost > left:
            yield batch
            batch, left = [], CALL_TOKENS
        batch.append(exchange)
        left -= cost
    if batch:
        yield batch


def _bare(text: str, length: int) -> str:
    """One line that the database takes."""
    return " ".join(text.replace("\0", " ").encode(errors="ignore").decode().split())[:length]
