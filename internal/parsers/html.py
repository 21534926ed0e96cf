"""HTML: headings, paragraphs, lists and tables; scripts, styles and markup are dropped."""

from html.parser import HTMLParser
from typing import BinaryIO

from internal.parsers.decode import declared_charset, decode
from internal.parsers.outline import Outline

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = frozenset(
    """
    address article aside blockquote body center dd details dialog dir div dl dt fieldset figure footer form header hr
    html main nav ol p section summary ul figcaption legend option select
    """.split()
)
_DROPPED = frozenset(
    ("script", "style", "template", "noscript", "svg", "math", "canvas", "object", "iframe", "audio", "video",
     "textarea", "head")
)  # fmt: skip
MAX_SPAN = 64


def read_html(file: BinaryIO, outline: Outline) -> None:
    """Reads an HTML file; the charset it names is honoured when it fits."""
    data = file.read()
    decoded = decode(data, declared=declared_charset(data))
    outline.note("encoding", decoded.encoding)
    write_html(decoded.text, outline)


def write_html(text: str, outline: Outline) -> None:
    """Writes the blocks of an HTML text (a file, a chapter, a mail) into `outline`."""
    reader = _Reader(outline)
    reader.feed(text)
    reader.close()
    reader.finish()


class _Reader(HTMLParser):
    """Gathers text until a block ends. `_cells` is the table row being read, None outside tables."""

    def __init__(self, outline: Outline) -> None:
        super().__init__(convert_charrefs=True)
        self._outline = outline
        self._parts: list[str] = []
        self._dropped: list[str] = []
        self._heading = 0
        self._item = False
        self._caption = False
        self._pre = 0
        self._title: list[str] | None = None
        self._tables = 0
        self._rows: list[list[str]] = []
        self._cells: list[str] = []
        self._in_cell = False
        self._span = 1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens a block, a cell or a part that is dropped."""
        values = dict(attrs)
        if tag == "title" and self._dropped in ([], ["head"]) and "title" not in self._outline.metadata:
            self._title = []
        elif tag == "html" and values.get("lang"):
            self._outline.note("language", values["lang"])
        elif tag == "meta" and (values.get("name") or "").lower() == "author":
            self._outline.note("author", values.get("content"))
        elif tag == "body":
            # An unclosed head must not swallow the page.
            self._dropped = []
        elif tag in _DROPPED:
            self._dropped.append(tag)
        elif not self._dropped:
            self._open(tag, values)

    def handle_endtag(self, tag: str) -> None:
        """Closes what the tag closes; stray end tags do nothing."""
        if tag == "title" and self._title is not None:
            self._outline.note("title", "".join(self._title))
            self._title = None
        elif tag in _DROPPED:
            if tag in self._dropped:
                del self._dropped[self._dropped.index(tag) :]
        elif not self._dropped:
            self._close(tag)

    def handle_data(self, data: str) -> None:
        """Text between tags; blanks count only in preformatted text."""
        if self._title is not None:
            self._title.append(data)
        elif not self._dropped:
            self._parts.append(data if self._pre else " ".join(("x" + data + "x").split())[1:-1])

    def finish(self) -> None:
        """Writes what was open when the text ended."""
        self._end_table()
        self._flush()

    def _open(self, tag: str, values: dict[str, str | None]) -> None:
        if tag == "br":
            self._parts.append("\n")
        elif tag == "img":
            self._parts.append(f" {values.get('alt') or ''} ")
        elif tag == "table":
            if self._tables == 0:
                self._flush()
            self._tables += 1
        elif self._tables:
            self._open_in_table(tag, values)
        elif tag in _HEADINGS:
            self._flush()
            self._heading = _HEADINGS[tag]
        elif tag == "li":
            self._flush()
            self._item = True
        elif tag == "pre":
            self._flush()
            self._pre += 1
        elif tag in _BLOCKS:
            item = self._item and tag in ("p", "div")
            self._flush()
            self._item = item
            self._caption = tag == "figcaption"

    def _close(self, tag: str) -> None:
        if tag == "table" and self._tables:
            self._tables -= 1
            if self._tables == 0:
                self._end_table()
        elif self._tables:
            if tag in ("td", "th") and self._tables == 1:
                self._end_cell()
            elif tag == "tr" and self._tables == 1:
                self._end_row()
            elif tag in _BLOCKS or tag in ("td", "th", "tr", "li", "caption"):
                self._parts.append(" ")
                if tag == "caption":
                    self._caption = True
                    self._flush()
        elif tag in _HEADINGS or tag in _BLOCKS or tag in ("li", "pre"):
            self._flush()
            self._pre = max(0, self._pre - (tag == "pre"))

    def _open_in_table(self, tag: str, values: dict[str, str | None]) -> None:
        if self._tables > 1:
            self._parts.append(" ")
        elif tag == "tr":
            self._end_row()
        elif tag in ("td", "th"):
            self._end_cell()
            self._in_cell = True
            span = values.get("colspan") or "1"
            self._span = min(int(span), MAX_SPAN) if span.isdecimal() and span.isascii() and len(span) < 5 else 1
        elif tag in _BLOCKS or tag == "li":
            self._parts.append(" ")

    def _end_cell(self) -> None:
        text = "".join(self._parts).strip()
        self._parts = []
        if text or self._in_cell:
            self._cells.append(text)
            self._cells.extend([""] * (self._span - 1))
        self._in_cell = False
        self._span = 1

    def _end_row(self) -> None:
        self._end_cell()
        if self._cells:
            self._rows.append(self._cells)
        self._cells = []

    def _end_table(self) -> None:
        self._end_row()
        rows, self._rows, self._tables = self._rows, [], 0
        if len(rows) == 1 or max((len(row) for row in rows), default=0) == 1:
            # A table of one row or column is layout, not data.
            for row in rows:
                for cell in row:
                    self._outline.text(cell)
        elif rows:
            self._outline.table(rows)

    def _flush(self) -> None:
        text = "".join(self._parts)
        self._parts = []
        if self._heading:
            self._outline.heading(text, self._heading)
        elif self._pre:
            self._outline.code(text)
        else:
            self._outline.text(text, "caption" if self._caption else "list_item" if self._item else "paragraph")
        self._heading = 0
        self._item = self._caption = False
