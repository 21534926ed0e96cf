"""Collects blocks in reading order, keeping track of page and heading path."""

from collections.abc import Iterable, Sequence

import msgspec

from internal.entities.parsed import Block, BlockKind, Box, Location, PageImage, Parsed, Part
from internal.parsers.clean import clean, flow, is_cjk, join_lines, one_line
from pkg.apperr import AppError, Code

MAX_HEADING = 200
MAX_COLUMNS = 256
MIN_FLOWING = 40  # characters of a Chinese paragraph that may flow over a page; shorter ones may be headings
MAX_FLOWING = 20_000
SENTENCE_ENDS = tuple(".!?:;。！？：；…”」』")
CELL = " | "
BLOCK_BYTES = 32
"""What a block, or a part of one, takes in the result beside its text: names of fields, kind and place."""


class Outline:
    """Where parsers write what they find. Every text is cleaned here and nowhere else.

    `max_bytes` bounds the size of the result, text in UTF-8; more raises FILE_TOO_COMPLEX.
    """

    def __init__(self, *, max_bytes: int = 64 << 20) -> None:
        self.page: int | None = None
        self.metadata: dict[str, str] = {}
        self.warnings: list[str] = []
        self.images: list[PageImage] = []
        self._blocks: list[Block] = []
        self._path: list[tuple[int, str]] = []
        self._heading: str | None = None
        self._place = Location()
        self._max_bytes = self._left = max_bytes

    def heading(self, text: str, level: int) -> None:
        """A heading of level 1 to 6; what follows stands under it."""
        text = one_line(text)
        if not text:
            return
        if len(text) > MAX_HEADING:
            self.text(text)
            return
        level = min(max(level, 1), 6)
        self._enter([*(item for item in self._path if item[0] < level), (level, text)])
        self._add("heading", text, level=level)

    def leave_sections(self) -> None:
        """What follows stands under no heading (a new part of the file)."""
        self._enter([])

    def _enter(self, path: list[tuple[int, str]]) -> None:
        self._path = path
        self._heading = " > ".join(heading for _, heading in path) or None

    def text(self, text: str, kind: BlockKind = "paragraph", box: Box | None = None) -> None:
        """A paragraph, list item or caption; empty ones are dropped."""
        text = flow(text)
        if text:
            self._add(kind, text, box=box)

    def continues(self, text: str) -> bool:
        """True when `text` goes on with the paragraph written last: an open sentence that flows over a page's end."""
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.kind != "paragraph" or last.text.endswith(SENTENCE_ENDS):
            return False
        flows_on = text[:1].islower() or (is_cjk(text[:1]) and is_cjk(last.text[-1]) and len(last.text) >= MIN_FLOWING)
        return flows_on and len(last.text) < MAX_FLOWING

    def extend(self, text: str, box: Box | None = None) -> None:
        """Adds to the paragraph written last, which keeps its place; what is added has its own."""
        last = self._blocks.pop()
        joined = flow(join_lines(last.text, text))
        added = Part(start=max(0, len(joined) - len(flow(text))), location=self._location(box))
        self._left += self._cost(last.text, last.header) - self._cost("", None)
        self._add("paragraph", joined)
        parts = (*(last.parts or (Part(start=0, location=last.location),)), added)
        self._blocks[-1] = msgspec.structs.replace(self._blocks[-1], location=last.location, parts=parts)

    def code(self, text: str) -> None:
        """Preformatted text, whose blanks matter."""
        text = clean(text).strip("\n")
        if text.strip():
            self._add("code", text)

    def table(self, rows: Iterable[Sequence[str]]) -> None:
        """Rows of cells. The first row with text heads the others."""
        header: str | None = None
        for row in rows:
            if line := row_text(row):
                self._add("table_row", line, header=header)
                header = header or line

    def table_row(self, line: str, header: str | None) -> None:
        """One row whose cells are joined already."""
        line = one_line(line)
        if line:
            self._add("table_row", line, header=header)

    def note(self, key: str, value: object) -> None:
        """A piece of metadata; empty values are dropped, long ones cut at 500 characters."""
        text = one_line(str(value))[:500] if value is not None else ""
        if text:
            self.metadata.setdefault(key, text)

    def warn(self, warning: str) -> None:
        """Something that was left out, told to the user once."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def parsed(self) -> Parsed:
        """Everything that was written."""
        return Parsed(
            blocks=tuple(self._blocks),
            page_images=tuple(self.images),
            metadata=self.metadata,
            warnings=tuple(self.warnings),
        )

    def _add(
        self,
        kind: BlockKind,
        text: str,
        *,
        level: int = 0,
        header: str | None = None,
        box: Box | None = None,
    ) -> None:
        self._left -= self._cost(text, header)
        if self._left < 0:
            raise AppError(
                Code.FILE_TOO_COMPLEX,
                f"The file holds more than {self._max_bytes >> 20} MB of text with its headings and rows,"
                " the most that is read from one file; split it into parts.",
            )
        self._blocks.append(Block(kind=kind, text=text, location=self._location(box), level=level, header=header))

    def _cost(self, text: str, header: str | None) -> int:
        """Bytes of a block in the result; millions of short lines are mostly the second part."""
        return len(text.encode()) + BLOCK_BYTES + len(header or "") + len(self._heading or "")

    def _location(self, box: Box | None) -> Location:
        """One object for all blocks of a section of a page: a large file has millions of blocks."""
        if self._place.page != self.page or self._place.heading != self._heading:
            self._place = Location(page=self.page, heading=self._heading)
        return self._place if box is None else Location(page=self.page, heading=self._heading, box=box)


def row_text(cells: Sequence[str]) -> str:
    """Cells of one row on one line, empty ones kept in between so that columns stay countable."""
    line = [one_line(cell) for cell in cells[:MAX_COLUMNS]]
    while line and not line[-1]:
        line.pop()
    return CELL.join(line).strip() if any(line) else ""
