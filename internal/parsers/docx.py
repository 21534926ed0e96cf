"""DOCX: paragraphs, headings, lists, tables, text boxes, notes, comments, headers and footers."""

from collections.abc import Iterator
from typing import BinaryIO
from xml.etree.ElementTree import Element

from internal.parsers.archive import Package, attribute, damaged, find, local
from internal.parsers.drawing import write_graphic
from internal.parsers.opc import core_properties, main_part
from internal.parsers.outline import Outline

MAX_STYLE_DEPTH = 20
_SKIPPED = frozenset(("del", "moveFrom", "instrText", "delText", "rPr", "pPr", "tblPr", "trPr", "tcPr", "Fallback"))


def read_docx(file: BinaryIO, outline: Outline) -> None:
    """Reads a Word document. Pages count where Word left its page breaks, else they are unknown."""
    package = Package(file)
    part = main_part(package)
    core_properties(package, outline)
    body = find(package.xml(part), "body")
    if body is None:
        raise damaged()
    relations = package.relations(part)
    by_kind: dict[str, list[str]] = {}
    for kind, target in relations.values():
        if target in package:
            by_kind.setdefault(kind, []).append(target)
    styles = _Styles(package, by_kind.get("styles", []))
    rendered = any(local(item) == "lastRenderedPageBreak" for item in body.iter())
    writer = _Writer(package, relations, styles, outline, rendered=rendered)
    _margins(package, by_kind.get("header", []), writer)
    outline.page = 1 if writer.counts_pages(body) else None
    writer.blocks(body)
    outline.page = None
    outline.leave_sections()
    for kind in ("footnotes", "endnotes", "comments"):
        for target in by_kind.get(kind, []):
            for note in package.xml(target):
                if attribute(note, "type") in (None, "normal"):
                    writer.blocks(note)
    _margins(package, by_kind.get("footer", []), writer)


def _margins(package: Package, parts: list[str], writer: "_Writer") -> None:
    """Headers or footers: each different text once."""
    seen: set[str] = set()
    for part in parts:
        root = package.xml(part)
        text = "".join(root.itertext()).strip()
        if text and not text.isdecimal() and text not in seen:
            seen.add(text)
            writer.blocks(root)


class _Styles:
    """Which paragraph styles are headings (and of what level) or list items."""

    def __init__(self, package: Package, parts: list[str]) -> None:
        self._styles: dict[str, Element] = {}
        for part in parts:
            for style in package.xml(part):
                if local(style) == "style":
                    self._styles[attribute(style, "styleId") or ""] = style

    def level(self, properties: Element | None) -> int:
        """The heading level 1 to 6 of a paragraph, 0 for other text."""
        if properties is None:
            return 0
        own = _outline_level(properties)
        if own is not None:
            return own
        style = find(properties, "pStyle")
        name = attribute(style, "val") if style is not None else None
        for _ in range(MAX_STYLE_DEPTH):
            found = self._styles.get(name or "")
            if found is None:
                return 0
            level = _named_level(found)
            if level is not None:
                return level
            based = find(found, "basedOn")
            name = attribute(based, "val") if based is not None else None
        return 0

    def is_item(self, properties: Element | None) -> bool:
        """True for a paragraph with a bullet or number."""
        if properties is None:
            return False
        if find(properties, "numPr") is not None:
            number = find(properties, "numPr", "numId")
            return number is None or attribute(number, "val") != "0"
        style = find(properties, "pStyle")
        found = self._styles.get(attribute(style, "val") or "") if style is not None else None
        return found is not None and find(found, "pPr", "numPr") is not None


def _outline_level(properties: Element) -> int | None:
    item = find(properties, "outlineLvl")
    value = (attribute(item, "val") or "") if item is not None else ""
    if not value.isdecimal():
        return None
    return int(value) + 1 if int(value) < 6 else 0


def _named_level(style: Element) -> int | None:
    """The level that a style's name or outline level tells, None when it tells nothing."""
    item = find(style, "name")
    name = ((attribute(item, "val") or "") if item is not None else "").lower()
    if name == "title":
        return 1
    if name.startswith(("heading ", "标题 ", "標題 ")) and name[-1].isdecimal():
        return min(int(name[-1]), 6) or None
    properties = find(style, "pPr")
    return _outline_level(properties) if properties is not None else None


class _Writer:
    """Turns WordprocessingML into blocks."""

    def __init__(
        self,
        package: Package,
        relations: dict[str, tuple[str, str]],
        styles: _Styles,
        outline: Outline,
        *,
        rendered: bool,
    ) -> None:
        self._package = package
        self._relations = relations
        self._outline = outline
        self._styles = styles
        self._rendered = rendered

    def counts_pages(self, body: Element) -> bool:
        """True when the text tells where pages end."""
        return self._rendered or any(local(item) == "br" and attribute(item, "type") == "page" for item in body.iter())

    def blocks(self, parent: Element) -> None:
        """Writes the paragraphs and tables below `parent`, whatever wraps them."""
        for child in parent:
            name = local(child)
            if name == "p":
                self._paragraph(child)
            elif name == "tbl":
                self._table(child)
            elif name not in _SKIPPED:
                self.blocks(child)

    def _paragraph(self, paragraph: Element) -> None:
        boxes: list[Element] = []
        text = "".join(self._runs(paragraph, boxes))
        properties = find(paragraph, "pPr")
        level = self._styles.level(properties)
        if level:
            self._outline.heading(text, level)
        else:
            self._outline.text(text, "list_item" if self._styles.is_item(properties) else "paragraph")
        for box in boxes:
            if local(box) == "txbxContent":
                self.blocks(box)
            else:
                write_graphic(self._package, self._relations, box, self._outline)

    def _runs(self, element: Element, boxes: list[Element]) -> Iterator[str]:
        """The text of a paragraph; text boxes and charts anchored in it are put aside."""
        for child in element:
            name = local(child)
            if name == "t":
                yield child.text or ""
            elif name in ("tab", "ptab"):
                yield "\t"
            elif name in ("br", "cr", "lastRenderedPageBreak"):
                yield from self._break(child, name)
            elif name == "noBreakHyphen":
                yield "-"
            elif name in ("txbxContent", "chart", "relIds"):
                boxes.append(child)
            elif name not in _SKIPPED:
                yield from self._runs(child, boxes)

    def _break(self, element: Element, name: str) -> Iterator[str]:
        kind = attribute(element, "type")
        page_ends = name == "lastRenderedPageBreak" or (kind == "page" and not self._rendered)
        if page_ends:
            if self._outline.page is not None:
                self._outline.page += 1
        elif name != "lastRenderedPageBreak" and kind in (None, "textWrapping"):
            yield "\n"

    def _table(self, table: Element) -> None:
        rows = [_cells_of(row) for row in _wrapped(table, "tr")]
        if len(rows) == 1 or max((len(row) for row in rows), default=0) == 1:
            # A table of one row or column is layout, not data: its cells hold ordinary blocks.
            for row in rows:
                for cell in row:
                    self.blocks(cell)
            return
        self._outline.table([self._cell_texts(row) for row in rows])

    def _cell_texts(self, row: list[Element]) -> list[str]:
        texts: list[str] = []
        for cell in row:
            properties = find(cell, "tcPr")
            merge = find(properties, "vMerge") if properties is not None else None
            span = find(properties, "gridSpan") if properties is not None else None
            continues = merge is not None and attribute(merge, "val") != "restart"
            texts.append("" if continues else self._cell_text(cell))
            width = (attribute(span, "val") or "1") if span is not None else "1"
            texts.extend([""] * (min(int(width), 64) - 1 if width.isdecimal() else 0))
        return texts

    def _cell_text(self, cell: Element) -> str:
        lines: list[str] = []
        for paragraph in (item for item in cell.iter() if local(item) == "p"):
            boxes: list[Element] = []
            lines.append("".join(self._runs(paragraph, boxes)))
        return " ".join(line for line in lines if line)


def _cells_of(row: Element) -> list[Element]:
    return list(_wrapped(row, "tc"))


def _wrapped(parent: Element, name: str) -> Iterator[Element]:
    """Children named `name`, also inside content controls."""
    for child in parent:
        if local(child) == name:
            yield child
        elif local(child) in ("sdt", "sdtContent", "ins", "customXml", "smartTag"):
            yield from _wrapped(child, name)
