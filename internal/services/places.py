"""The places of a text that was put together from several: kept where they change, and found again for a quote."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

import msgspec

from internal.entities.conversations import Passage
from internal.entities.parsed import Location, Part
from internal.services.terms import TermAnalyser

SLACK = 0.02
"""Share of the width by which boxes of two words may overlap, as the text reader draws them."""


def join(pieces: Iterable[tuple[str, str, Location]]) -> tuple[str, tuple[Part, ...]]:
    """One text of pieces, each with what parts it from the piece ahead, its own text and its place.

    What stands ahead of the first piece and blanks at the end are dropped. No parts where all stands at one place.
    """
    written: list[str] = []
    parts: list[Part] = []
    length = 0
    for before, piece, location in pieces:
        if written:
            written.append(before)
            length += len(before)
        if not parts or parts[-1].location != location:
            parts.append(Part(start=length, location=location))
        written.append(piece)
        length += len(piece)
    text = "".join(written).rstrip()
    parts = [part for part in parts if part.start < len(text)]
    return text, tuple(parts) if len(parts) > 1 else ()


def place(parts: Sequence[Part], whole: Location, start: int, end: int) -> Location:
    """Page, heading and box of the part where text[start:end] begins, and the times that it covers.

    `whole` is the place of a text without parts.
    """
    if not parts:
        return whole
    first = max(0, bisect_right(parts, start, key=lambda part: part.start) - 1)
    after = bisect_right(parts, max(start, end - 1), key=lambda part: part.start)
    ends = [part.location.end_ms for part in parts[first:after] if part.location.end_ms is not None]
    return msgspec.structs.replace(parts[first].location, end_ms=max(ends, default=None))


def in_rows(passage: Passage) -> str:
    """Its text with a blank in place of a line's end where the next line stands beside it, as the sum stands beside
    "Total" on a receipt: of the same length, so that every place in it stays the same."""
    places = passage.parts or [
        Part(start=piece.start + part.start, location=part.location)
        for piece in passage.pieces
        for part in piece.parts or (Part(start=0, location=piece.location),)
    ]
    text = list(passage.text)
    for one, other in pairwise(places):
        if 0 < other.start <= len(text) and text[other.start - 1] == "\n" and _beside(one.location, other.location):
            text[other.start - 1] = " "
    return "".join(text)


def _beside(one: Location, other: Location) -> bool:
    """Whether a box stands to the right of one of about its height."""
    if one.box is None or other.box is None or one.page != other.page:
        return False
    (_, top, right, bottom), (left, upper, _, lower) = one.box, other.box
    shared = min(bottom, lower) - max(top, upper)
    return left >= right - SLACK and shared > min(bottom - top, lower - upper) / 2


def likeliest(parts: Sequence[Part], text: str, wanted: frozenset[str], analyser: TermAnalyser) -> Location:
    """Where, of a text on several pages, the page begins that has most of the `wanted` terms; of several the one with
    most of the text. `parts` is at least one."""
    starts = [next(group) for _, group in groupby(parts, key=lambda part: part.location.page)]
    edges = [*(part.start for part in starts[1:]), len(text)]
    pages = [text[start.start : end] for start, end in zip(starts, edges, strict=True)]
    common = [len(wanted.intersection(analyser.terms(page))) for page in pages]
    best = max(range(len(pages)), key=lambda place: (common[place], len(pages[place]), -place))
    return starts[best].location
