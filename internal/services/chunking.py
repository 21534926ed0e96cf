"""Divides what was read from a file into chunks that are embedded, searched and quoted.

Pure and in two steps, because tokens are counted by another process: `units` gives the pieces that are never torn,
the caller has them counted in one call, `assemble` puts them together.

    pieces = units(parsed)
    chunks = assemble(pieces, await count([unit.text for unit in pieces]))

A chunk's text is the source's text, so that it can be quoted. What helps to find it (title, headings) stands apart in
`context` and is embedded with it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from internal.entities.parsed import Block, BlockKind, Location, Parsed, Part
from internal.services.chunking_sentences import can_cut, sentences, spans
from internal.services.places import join, place

__all__ = ["Chunk", "Unit", "assemble", "embedding_text", "sentences", "units"]

TARGET_TOKENS = 480  # nDCG@10 on cranfield: 320 gives .410, 400 .417, 480 .423
MAX_TOKENS = 480  # the model's window of 512 less its prefix, two marks and the context
OVERLAP_TOKENS = 48
WHOLE_TOKENS = 128  # a text up to this size is one chunk, whatever its sections
SECTION_TOKENS = 64  # a section up to this size may share its chunk with the next
CONTEXT_WEIGHT = 22.0  # tokens, roughly, that a context may have
UNIT_WEIGHT = 280.0  # tokens, roughly, beyond which a sentence is divided


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence, heading, list item or table row. `before` is what parts it from the unit ahead of it in a chunk;
    `block` is the number of its block; `header` of a table row stands at `header_location`."""

    text: str
    kind: BlockKind
    location: Location
    before: str
    block: int
    level: int = 0
    header: str | None = None
    header_location: Location | None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a document, ready to embed and to quote. `tokens` counts `text` alone; `parts` where it stands at
    more than one place."""

    text: str
    tokens: int
    location: Location
    ordinal: int
    context: str | None = None
    parts: tuple[Part, ...] = ()


def embedding_text(chunk: Chunk) -> str:
    """What is embedded for a chunk: its context, then its text."""
    return f"{chunk.context}\n{chunk.text}" if chunk.context else chunk.text


def units(parsed: Parsed) -> list[Unit]:
    """The pieces of a document in reading order. None of them is empty or cuts a grapheme."""
    found: list[Unit] = []
    previous: Block | None = None
    headers: dict[str, Location] = {}
    for number, block in enumerate(parsed.blocks):
        before = _separator(previous, block)
        if block.kind == "table_row" and block.header is None:
            headers[block.text] = block.location
        for start, text, between in _pieces(block):
            found.append(
                Unit(
                    text=text,
                    kind=block.kind,
                    location=place(block.parts, block.location, start, start + len(text)),
                    before=between if between is not None else before,
                    block=number,
                    level=block.level,
                    header=block.header,
                    header_location=headers.get(block.header) if block.header else None,
                )
            )
        previous = block
    return found


def assemble(
    pieces: Sequence[Unit],
    counts: Sequence[int],
    *,
    title: str | None = None,
    target_tokens: int = TARGET_TOKENS,
    max_tokens: int = MAX_TOKENS,
    overlap_tokens: int = OVERLAP_TOKENS,
) -> list[Chunk]:
    """Chunks of about `target_tokens` and at most `max_tokens`, by the counted tokens of each unit.

    A chunk keeps to its section where it can, a heading stays with what follows it, table rows repeat their header,
    and within a section the last sentences of a chunk begin the next one.
    """
    if len(pieces) != len(counts):
        raise ValueError(f"{len(pieces)} units but {len(counts)} counts")
    counted = [item for unit, count in zip(pieces, counts, strict=True) for item in _fitting(unit, count, max_tokens)]
    return _Assembler(counted, title, target_tokens, max_tokens, overlap_tokens).run()


class _Counted(msgspec.Struct, frozen=True):
    unit: Unit
    tokens: int


class _Assembler:
    """Fills one chunk after the other. `_open` is the chunk being filled; its first `_repeated` units are overlap."""

    def __init__(
        self, counted: list[_Counted], title: str | None, target_tokens: int, max_tokens: int, overlap_tokens: int
    ) -> None:
        self._counted = counted
        self._title = title
        self._target = target_tokens
        self._max = max_tokens
        self._overlap = overlap_tokens
        self._top = _top_level([item.unit.level for item in counted if item.unit.kind == "heading"])
        self._headers = {item.unit.text: item.tokens for item in counted if item.unit.kind == "table_row"}
        self._whole = sum(item.tokens for item in counted) <= min(WHOLE_TOKENS, target_tokens)
        self._open: list[_Counted] = []
        self._repeated = 0
        self._chunks: list[Chunk] = []

    def run(self) -> list[Chunk]:
        """All chunks in order."""
        for item in self._counted:
            if self._open and self._ends_before(item):
                self._close(item)
            self._open.append(item)
        self._emit()
        return self._chunks

    def _ends_before(self, item: _Counted) -> bool:
        if self._whole:
            return False
        size = self._size(self._open)
        if size + self._cost(self._open, item) > self._max:
            return True
        if all(opened.unit.kind == "heading" for opened in self._open):
            return False
        if item.unit.kind == "heading":
            limit = SECTION_TOKENS if item.unit.level <= self._top else self._target // 2
            return size >= min(limit, self._target // 2)
        if size + self._cost(self._open, item) <= self._target:
            return False
        # A paragraph that has just begun is better kept together than cut after its first sentence.
        return len(self._open) > self._repeated

    def _close(self, item: _Counted) -> None:
        """Ends the chunk ahead of `item`; trailing headings move on, trailing sentences are repeated."""
        moved: list[_Counted] = []
        while len(self._open) > self._repeated + 1 and self._open[-1].unit.kind == "heading":
            moved.insert(0, self._open.pop())
        first = moved[0] if moved else item
        tail = self._tail(first, self._size(moved) + item.tokens)
        self._emit()
        self._open = tail + moved
        self._repeated = len(tail)

    def _tail(self, following: _Counted, needed: int) -> list[_Counted]:
        """The last whole sentences of the open chunk that the next one repeats; none across sections or in tables."""
        tail: list[_Counted] = []
        room = min(self._overlap, self._max - needed)
        for item in reversed(self._open[self._repeated :]):
            same = item.unit.location.heading == following.unit.location.heading
            if (
                not same
                or item.unit.kind in ("heading", "table_row")
                or following.unit.kind in ("heading", "table_row")
            ):
                break
            room -= item.tokens
            if room < 0:
                break
            tail.insert(0, item)
        return tail if len(tail) < len(self._open) - self._repeated else []

    def _emit(self) -> None:
        items, self._open = self._open, []
        if not items:
            return
        pieces: list[tuple[str, str, Location]] = []
        for index, item in enumerate(items):
            unit, before = item.unit, item.unit.before
            header = self._header_for(items[:index], item)
            if header:
                pieces.append((before, header, unit.header_location or unit.location))
                before = "\n"
            pieces.append((before, unit.text, unit.location))
        text, parts = join(pieces)
        self._chunks.append(
            Chunk(
                text=text,
                tokens=self._size(items),
                location=_place([item.unit for item in items]),
                ordinal=len(self._chunks),
                context=_context(self._title, [item.unit for item in items]),
                parts=parts,
            )
        )

    def _header_for(self, before: Sequence[_Counted], item: _Counted) -> str | None:
        """The header that a table row needs because the chunk doesn't have it yet."""
        header = item.unit.header
        if header is None or (before and before[-1].unit.block == item.unit.block):
            return None
        last = before[-1].unit if before else None
        if last is not None and header in (last.text, last.header):
            return None
        # A header so long that it would fill the chunk explains less than it takes.
        tokens = self._headers.get(header, self._max)
        return header if tokens <= self._target // 2 and tokens + item.tokens <= self._max else None

    def _cost(self, before: Sequence[_Counted], item: _Counted) -> int:
        header = self._header_for(before, item)
        return item.tokens + (self._headers[header] if header else 0)

    def _size(self, items: Sequence[_Counted]) -> int:
        return sum(self._cost(items[max(0, index - 1) : index], item) for index, item in enumerate(items))


def _top_level(levels: Sequence[int]) -> int:
    """The level of a document's main sections: a title alone at its level doesn't count."""
    counts = Counter(levels)
    return min((level for level, count in counts.items() if count > 1), default=min(counts, default=0))


def _separator(previous: Block | None, block: Block) -> str:
    """What stands between two blocks in a chunk: rows and items on lines, paragraphs apart."""
    if previous is not None and previous.kind == block.kind and block.kind in ("table_row", "list_item"):
        return "\n"
    return "\n\n"


def _pieces(block: Block) -> Iterator[tuple[int, str, str | None]]:
    """Where each piece of a block starts, the piece, and the blanks ahead; None for the first, which a block separator
    precedes."""
    end = 0
    first = True
    for start, stop in (
        spans(block.text) if block.kind in ("paragraph", "list_item", "caption", "code") else _one(block.text)
    ):
        # Indentation of code is content.
        begin = end if block.kind == "code" and not first else start
        between = block.text[end:begin]
        position = begin
        for cut in _cuts(block.text, begin, stop):
            at, piece, position = position, block.text[position:cut], cut
            if not piece.strip():
                between += piece
                continue
            yield at, piece, None if first else between
            first, between = False, ""
        end = stop


def _one(text: str) -> Iterator[tuple[int, int]]:
    stripped = text.strip()
    if stripped:
        start = text.index(stripped)
        yield start, start + len(stripped)


def _cuts(text: str, start: int, stop: int) -> Iterator[int]:
    """Where a sentence ends or, when it is too long for a unit, has to be divided."""
    while (limit := _limit(text, start, stop)) < stop:
        start = _best_cut(text, start, limit, stop)
        yield start
    if start < stop:
        yield stop


def _limit(text: str, start: int, stop: int) -> int:
    """The first place where the text from `start` is too heavy for a unit, or `stop`."""
    total = 0.0
    for index in range(start, stop):
        total += _char_weight(text[index])
        if total > UNIT_WEIGHT:
            return max(index, start + 1)
    return stop


def _best_cut(text: str, start: int, limit: int, stop: int) -> int:
    """The last good place up to `limit`: after a comma, else a blank, else between graphemes."""
    floor = start + (limit - start) // 3
    for marks in ("，、；：,;:)）", " \t\n"):
        for index in range(limit, floor, -1):
            if text[index - 1] in marks and can_cut(text, index):
                return index
    for index in range(limit, start, -1):
        if can_cut(text, index):
            return index
    # A single grapheme longer than a unit: its end, wherever that is.
    return next((index for index in range(limit + 1, stop) if can_cut(text, index)), stop)


def weight(text: str) -> float:
    """A cautious guess at the tokens of a text, good enough to decide what needs dividing."""
    return sum(_char_weight(char) for char in text)


def _char_weight(char: str) -> float:
    if char.isascii():
        return 0.3 if char.isalpha() or char == " " else 0.6
    return 1.0 if "\u2e80" <= char <= "\U0003ffff" else 0.5


def _fitting(unit: Unit, tokens: int, max_tokens: int) -> Iterator[_Counted]:
    """The unit, or its parts when it has more tokens than a chunk may have (base64, rare scripts)."""
    if tokens <= max_tokens:
        yield _Counted(unit, tokens)
        return
    parts = -(-tokens * 5 // (max_tokens * 4))
    step = max(1, len(unit.text) // parts)
    position, before = 0, unit.before
    while position < len(unit.text):
        cut = min(position + step, len(unit.text))
        while not can_cut(unit.text, cut):
            cut += 1
        share = -(-tokens * (cut - position) // len(unit.text))
        part = msgspec.structs.replace(unit, text=unit.text[position:cut], before=before)
        yield _Counted(part, min(share, max_tokens))
        position, before = cut, ""


def _place(items: Sequence[Unit]) -> Location:
    """Page and heading where the chunk begins; the times and the box that it covers."""
    first = items[0].location
    body = next((item.location for item in items if item.kind != "heading"), first)
    boxes = [item.location.box for item in items]
    box = None
    if all(item.location.page == first.page for item in items) and all(boxes):
        known = [box for box in boxes if box is not None]
        box = (min(b[0] for b in known), min(b[1] for b in known), max(b[2] for b in known), max(b[3] for b in known))
    ends = [item.location.end_ms for item in items if item.location.end_ms is not None]
    return Location(
        page=first.page,
        heading=body.heading if items[0].kind == "heading" else first.heading,
        start_ms=first.start_ms,
        end_ms=max(ends, default=None),
        box=box,
    )


def _context(title: str | None, items: Sequence[Unit]) -> str | None:
    """Title and headings that the chunk stands under but doesn't contain, the nearest ones when there are many."""
    inside = {item.text for item in items if item.kind == "heading"}
    path = (items[0].location.heading or "").split(" > ")
    wanted = [part for part in ([title] if title else []) + path if part and part not in inside]
    kept: list[str] = []
    room = CONTEXT_WEIGHT
    # The nearest heading says most, then the title, then what lies between.
    for part in dict.fromkeys([*wanted[-1:], *wanted[:1], *reversed(wanted[1:-1])]):
        room -= weight(part) + 1
        if room < 0:
            break
        kept.append(part)
    return " > ".join(part for part in dict.fromkeys(wanted) if part in kept) or None
