"""Numbered citations: found in the text as it streams, renumbered, and backed by the exact words of a passage."""

import re
from collections.abc import Sequence, Set

import msgspec

from internal.entities.conversations import Passage
from internal.services.chunking_sentences import sentences
from internal.services.safetext import SafeText

OPENING = re.compile(r"[\[【［]")
MARK = re.compile(r"[\[【［]\s*\^?\s*(\d{1,3}(?:\s*[-–,，、;；]\s*\d{1,3})*)\s*(?:†[^\]】］\n]{0,40})?[\]】］]")
UNFINISHED = re.compile(r"[\[【［][\s\d^,，、;；\-–]{0,40}(?:†[^\]】］\n]{0,40})?\Z")
RANGE = re.compile(r"(\d+)\s*[-–]\s*(\d+)|(\d+)")
SENT = re.compile(r"(?P<blank> ?)(?P<marks>(?:\[\d{1,3}\])+)")
EACH = re.compile(r"\[\d+\]")
LONGEST_RANGE = 20
CLAIM_CHARACTERS = 600


class Cited(msgspec.Struct, frozen=True):
    """A passage that the answer refers to, and the statements that it backs."""

    index: int
    passage: Passage
    claims: tuple[str, ...]


class Mark(msgspec.Struct, frozen=True):
    """One mark in the text: the index that it shows, and the statement that it stands behind."""

    index: int
    claim: str


class AnswerText:
    """Turns a model's raw deltas into what may be sent: harmless text, marks numbered in order of appearance.

    Accepts [1], [1, 2], [1-3], [^1], 【1】 and 【1†source】. Marks of passages that don't exist are dropped.
    `marks` are those that were sent, in order.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = {passage.number: passage for passage in passages}
        self._safe = SafeText()
        self._held = ""
        self._plain = ""
        self._claims: dict[int, list[str]] = {}
        self._sent: list[str] = []
        self.marks: list[Mark] = []

    @property
    def text(self) -> str:
        """All that was given back so far."""
        return "".join(self._sent)

    def feed(self, delta: str) -> str:
        """What of the text so far may be sent."""
        text = self._held + delta
        held = UNFINISHED.search(text)
        at = held.start() if held else len(text)
        self._held = text[at:]
        return self._send(self._take(text[:at]))

    def finish(self) -> str:
        """What was held back, at the end."""
        rest, self._held = self._held, ""
        return self._send(self._take(rest) + self._safe.finish())

    def add(self, remark: str) -> str:
        """A remark of our own after the end, known to be harmless."""
        return self._send(remark)

    def cited(self) -> list[Cited]:
        """The passages that were referred to, by index."""
        return [
            Cited(index, self._passages[number], tuple(dict.fromkeys(claims)))
            for index, (number, claims) in enumerate(self._claims.items(), 1)
        ]

    def without(self, unsupported: Set[Mark]) -> str:
        """The whole text without these marks; the others keep their numbers, by which readers know them already."""
        marks = iter(self.marks)

        def kept(run: re.Match[str]) -> str:
            left = "".join(mark for mark in EACH.findall(run["marks"]) if next(marks, None) not in unsupported)
            return run["blank"] + left if left else ""

        return SENT.sub(kept, self.text)

    def _send(self, text: str) -> str:
        if text:
            self._sent.append(text)
        return text

    def _take(self, text: str) -> str:
        out: list[str] = []
        at = 0
        for match in MARK.finditer(text):
            out.append(self._words(text[at : match.start()]))
            out.append(self._safe.mark(self._renumbered(match.group(1))))
            at = match.end()
        out.append(self._words(text[at:]))
        return "".join(out)

    def _words(self, text: str) -> str:
        self._plain = (self._plain + text)[-CLAIM_CHARACTERS:]
        return self._safe.feed(text)

    def _renumbered(self, inside: str) -> str:
        claim = self._claim()
        found: dict[int, None] = {}
        for number in _numbers(inside):
            if number in self._passages:
                self._claims.setdefault(number, []).append(claim)
                found[list(self._claims).index(number) + 1] = None
        self.marks += [Mark(index, claim) for index in found]
        return "".join(f"[{index}]" for index in found)

    def _claim(self) -> str:
        """The sentence that a mark at this point stands behind."""
        parts = sentences(self._plain)
        return parts[-1] if parts else ""


def _numbers(inside: str) -> list[int]:
    found: list[int] = []
    for first, last, single in RANGE.findall(inside):
        if single:
            found.append(int(single))
        else:
            found += range(int(first), min(int(last), int(first) + LONGEST_RANGE) + 1)
    return found
