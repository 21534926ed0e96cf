"""What is worth remembering of a conversation, found by rules: the strategy that needs no model, in both languages."""

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from internal.entities.memory import MEMORY_LIMIT, Digest, Exchange, Finding, MemoryKind, SummaryLine
from internal.providers.llm_wire import estimate_tokens
from internal.services.chunking_sentences import sentences
from internal.services.prompts import MARKS
from internal.services.terms import fold
from pkg.ctxutil import Context

SUMMARY_TOKENS = 600
NEWEST = 10
"""Lines of a summary that stay whatever they say."""
QUESTION_LENGTH, ANSWER_LENGTH = 160, 240
SUBJECT_LENGTH = 200
SAID = 0.3
"""Importance of an exchange in which nothing was found."""
STATED, LIKED, OWN, IDENTITY, ASKED_FOR = 0.5, 0.6, 0.7, 0.9, 0.9

FACT, PREFERENCE = MemoryKind.FACT, MemoryKind.PREFERENCE
ASKS = re.compile(
    r"[?？]\s*$|[吗呢么]\s*[。.]?$|^(?:what|which|who|where|when|why|how|can|could|do|does|is|are)\b", re.IGNORECASE
)
IMPERATIVE = re.compile(
    r"^(?:please\s+)?(?:remember|note|keep in mind)\b(?:\s+that\b)?[\s,:]*"
    r"|^(?:请你?)?记住[，,：:\s]*",
    re.IGNORECASE,
)
END = re.compile(r"[\s。.!！;；,，]+$")
NEGATION = re.compile(r"\b(?:no longer|not|don't|do not|never|dislike|hate)\b|不再|不太|不|讨厌", re.IGNORECASE)
LATER = re.compile(r"\b(?:now|anymore|any more|actually|really|from now on)\b|现在|其实|从现在起|了$", re.IGNORECASE)

# Each finds in a sentence the subject (named group "about", or the name given here) that a later one may supersede.
RULES: tuple[tuple[MemoryKind, float, str | None, re.Pattern[str]], ...] = tuple(
    (kind, importance, subject, re.compile(pattern, re.IGNORECASE))
    for kind, importance, subject, pattern in (
        (FACT, IDENTITY, "name", r"\bmy name(?: is|'s)\b|\bcall me\b|(?:我的名字(?:是|叫)|我叫|叫我|称呼我)"),
        (PREFERENCE, IDENTITY, None, r"\b(?P<about>(?:answer|reply|respond|write)(?: to)?(?: me)?)(?: always)? in\b"),
        (PREFERENCE, IDENTITY, "回答用", r"(?:以后|请)?.{0,4}用.{1,6}(?:回答|回复)"),
        (FACT, OWN, None, r"\b(?:my|our) (?P<about>[\w' -]{2,40}?) (?:is|are|was|were|has changed to)\b"),
        (
            FACT,
            OWN,
            None,
            r"我们?(?:公司|部门|团队|家)?的"
            r"(?P<about>[^，。,；是为]{1,15}?)(?:现在)?(?:是|为|改为|改成|换成)",
        ),
        (FACT, OWN, "lives", r"\b(?:i|we) (?:now )?live in\b|\bi(?:'ve| have)? moved to\b|我们?(?:现在)?(?:住在|搬到)"),
        (FACT, OWN, "works", r"\bi (?:now )?work (?:at|for|in|as)\b|我(?:现在)?在.{1,30}(?:工作|上班)"),
        (PREFERENCE, LIKED, None, r"\b(?:i|we) (?:[\w']+ ){0,3}(?:prefer|like|love|hate|dislike)\b(?P<about>.+)"),
        (PREFERENCE, LIKED, None, r"我们?(?:[^，。]{0,4})(?:不?喜欢|讨厌|偏好|习惯|最爱)(?P<about>.+)"),
        (
            PREFERENCE,
            LIKED,
            None,
            r"^(?:please )?(?:always|never|from now on)\b"
            r"|^以后(?:请)?|^请(?:一直|总是|不要|务必)",
        ),
        (
            FACT,
            STATED,
            None,
            r"\bi(?:'m| am) (?:an?|the|from|allergic|responsible|in charge)\b"
            r"|我是|我负责|我对.{1,10}过敏",
        ),
    )
)


class Summarizer(Protocol):
    """A strategy of what is remembered."""

    async def digest(self, ctx: Context, lines: Sequence[SummaryLine], exchanges: Sequence[Exchange]) -> Digest:
        """Takes `exchanges`, oldest first, into the summary that `lines` are so far, and finds what to remember.

        It never sees an exchange twice. Raises what a model raises, where one is asked.
        """
        ...


class RuleSummarizer:
    """Sentences by which people tell of themselves, and each question with the beginning of its answer."""

    async def digest(self, ctx: Context, lines: Sequence[SummaryLine], exchanges: Sequence[Exchange]) -> Digest:
        """Needs no model and can't fail."""
        findings = [finding for exchange in exchanges for finding in found(exchange)]
        weights = {exchange.id: SAID for exchange in exchanges}
        for finding in findings:
            weights[finding.source_id] = max(weights[finding.source_id], finding.importance)
        fresh = [
            SummaryLine(
                text=line(exchange),
                source_id=exchange.id,
                answer_id=exchange.answer_id,
                importance=weights[exchange.id],
                document_ids=exchange.document_ids,
            )
            for exchange in exchanges
        ]
        return Digest(lines=tuple(within([*lines, *fresh])), findings=tuple(findings))


def found(exchange: Exchange) -> Iterator[Finding]:
    """What the user tells of themselves or asks to be remembered, a sentence each, and the exchange as a whole."""
    for sentence in [] if exchange.again else sentences(exchange.question):
        text = " ".join(sentence.split())
        told = IMPERATIVE.sub("", text)
        if not told or len(told) > MEMORY_LIMIT or (ASKS.search(text) and told == text):
            continue
        finding = next(_by_rules(told), None)
        if finding is None and told == text:
            continue
        kind, importance, subject = finding or (FACT, ASKED_FOR, None)
        yield Finding(
            kind=kind,
            text=told,
            importance=importance if told == text else max(importance, ASKED_FOR),
            subject=subject,
            source_id=exchange.id,
            answer_id=exchange.answer_id,
            created_at=exchange.created_at,
        )
    yield whole(exchange)


def whole(exchange: Exchange) -> Finding:
    """An exchange as a memory of its own, for recall alone."""
    return Finding(
        kind=MemoryKind.TURN,
        text=turn(exchange),
        importance=SAID,
        document_ids=exchange.document_ids,
        source_id=exchange.id,
        answer_id=exchange.answer_id,
        created_at=exchange.created_at,
    )


def _by_rules(told: str) -> Iterator[tuple[MemoryKind, float, str | None]]:
    for kind, importance, subject, pattern in RULES:
        match = pattern.search(told)
        if match:
            about = match.groupdict().get("about")
            yield kind, importance, subject if about is None else _subject(about)


def _subject(about: str) -> str | None:
    """The same for "tea", "tea now" and "not tea any more"."""
    bare = END.sub("", LATER.sub("", NEGATION.sub("", fold(about))))
    return " ".join(bare.split())[:SUBJECT_LENGTH] or None


def turn(exchange: Exchange) -> str:
    """The exchange in one text, at most MEMORY_LIMIT characters; the answer gives way."""
    question = exchange.question[: MEMORY_LIMIT // 2]
    named = f" ({', '.join(exchange.filenames)})"[: MEMORY_LIMIT // 4] if exchange.filenames else ""
    answer = exchange.answer[: MEMORY_LIMIT - len(question) - len(named) - 1] if exchange.answered else ""
    return f"{question}\n{answer}{named}".strip()


def line(exchange: Exchange) -> str:
    """The exchange in one line: the question and how its answer begins."""
    question = _short(exchange.question, QUESTION_LENGTH)
    if not exchange.answered or not exchange.answer.strip():
        return question
    # What ends with a colon only announces: the built-in mode's labels, and many a model's first words.
    said = (MARKS.sub("", text).strip() for text in sentences(exchange.answer))
    first = next((text for text in said if text and not text.endswith((":", "："))), "")
    named = f" ({', '.join(exchange.filenames)})" if exchange.filenames else ""
    return f"{question} → {_short(first, ANSWER_LENGTH)}{_short(named, QUESTION_LENGTH)}"


def within(lines: Sequence[SummaryLine]) -> list[SummaryLine]:
    """As many as SUMMARY_TOKENS hold, in their order: the newest, then the most important."""
    ranked = sorted(
        range(len(lines)), key=lambda place: (place < len(lines) - NEWEST, -lines[place].importance, -place)
    )
    kept: list[int] = []
    left = SUMMARY_TOKENS
    for place in ranked:
        left -= estimate_tokens(lines[place].text)
        if kept and left < 0:
            break
        kept.append(place)
    return [lines[place] for place in sorted(kept)]


def _short(text: str, length: int) -> str:
    flat = " ".join(text.split()) if not text.startswith(" ") else text
    return flat if len(flat) <= length else f"{flat[: length - 1].rstrip()}…"
