"""Collects blocks in reading order, keeping track of page and heading path."""

from collections.abc import Iterable, Sequence

import msgspec

from internal.entities.parsed import Block, BlockKind, Location, PageImage, Parsed
from internal.parsers.clean import clean, flow, is_cjk, join_lines, one_line
from pkg.apperr import AppError, Code

MAX_HEADING = 200
MAX_COLUMNS = 256
MIN_FLOWING = 40  # characters of a Chinese paragraph that may flow over a page; shorter ones may be headings
MAX_FLOWING = 20_000
SENTENCE_ENDS = tuple(".!?:;。！？：；…”」』")
CELL = " | "


class Outline:
    """Where parsers write what they find. Every text is cleaned here and nowhere else.

    `max_bytes` bounds the UTF-8 size of all text; more raises FILE_TOO_COMPLEX.
    """

    def __init__(self, *, max_bytes: int = 64 << 20) -> None:
        self.page: int | None = None
        self.metadata: dict[str, str] = {}
        self.warnings: list[str] = []
        self.images: list[PageImage] = []
        self._blocks: list[Block] = []
        self._path: list[tuple[int, str]] = []
        self._left = max_bytes

    def heading(self, text: str, level: int) -> None:
        """A heading of level 1 to 6; what follows stands under it."""
        text = one_line(text)
        if not text:
            return
        if len(text) > MAX_HEADING:
            self.text(text)
            return
        level = min(max(level, 1), 6)
        self._path = [item for item in self._path if item[0] < level]
        self._path.append((level, text))
        self._add("heading", text, level=level)

    def leave_sections(self) -> None:
        """What follows stands under no heading (a new part of the file)."""
        self._path = []

    def text(
        self, text: str, kind: BlockKind = "paragraph", box: tuple[float, float, float, float] | None = None
    ) -> None:
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

    def extend(self, text: str) -> None:
        """Adds to the paragraph written last, which keeps its place."""
        last = self._blocks.pop()
        joined = flow(join_lines(last.text, text))
        self._left += len(last.text.encode())
        self._add("paragraph", joined, box=last.location.box)
        self._blocks[-1] = msgspec.structs.replace(self._blocks[-1], location=last.location)

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
        box: tuple[float, float, float, float] | None = None,
    ) -> None:
        self._left -= len(text.encode())
        if self._left < 0:
            raise AppError(Code.FILE_TOO_COMPLEX, "The file holds more text than is allowed; split it into parts.")
        path = " > ".join(heading for _, heading in self._path) or None
        location = Location(page=self.page, heading=path, box=box)
        self._blocks.append(Block(kind=kind, text=text, location=location, level=level, header=header))


def row_text(cells: Sequence[str]) -> str:
    """Cells of one row on one line, empty ones kept in between so that columns stay countable."""
    line = [one_line(cell) for cell in cells[:MAX_COLUMNS]]
    while line and not line[-1]:
        line.pop()
    return CELL.join(line).strip() if any(line) else ""
