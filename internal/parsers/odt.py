"""ODT: headings, paragraphs, lists, tables and notes of an OpenDocument text."""

from collections.abc import Iterator
from typing import BinaryIO
from xml.etree.ElementTree import Element

from internal.parsers.archive import Package, attribute, damaged, find, local
from internal.parsers.outline import Outline
from pkg.apperr import AppError, Code

MAX_REPEAT = 256
_SKIPPED = frozenset(("tracked-changes", "sequence-decls", "forms", "bookmark", "note-citation", "desc", "title"))
_META = {"title": "title", "initial-creator": "author", "language": "language", "subject": "subject"}


def read_odt(file: BinaryIO, outline: Outline) -> None:
    """Reads an OpenDocument text."""
    package = Package(file)
    if "META-INF/manifest.xml" in package and b"encryption-data" in package.read("META-INF/manifest.xml"):
        raise AppError(Code.FILE_ENCRYPTED, "The document has a password; save it without one and upload it again.")
    if "meta.xml" in package:
        for item in package.xml("meta.xml").iter():
            if local(item) in _META:
                outline.note(_META[local(item)], item.text)
    text = find(package.xml("content.xml"), "body", "text")
    if text is None:
        raise damaged()
    _blocks(text, outline, in_list=False)


def _blocks(parent: Element, outline: Outline, *, in_list: bool) -> None:
    for child in parent:
        name = local(child)
        if name == "h":
            level = attribute(child, "outline-level") or "1"
            outline.heading(_text(child), int(level) if level.isdecimal() and len(level) < 3 else 1)
        elif name == "p":
            if attribute(child, "style-name") == "Title":
                outline.heading(_text(child), 1)
            else:
                outline.text(_text(child), "list_item" if in_list else "paragraph")
            for frame in _frames(child):
                _blocks(frame, outline, in_list=False)
        elif name == "table":
            _table(child, outline)
        elif name not in _SKIPPED:
            _blocks(child, outline, in_list=in_list or name == "list")


def _frames(paragraph: Element) -> Iterator[Element]:
    """Text boxes anchored in a paragraph."""
    return (item for item in paragraph.iter() if local(item) == "text-box")


def _text(element: Element) -> str:
    return "".join(_runs(element)).strip()


def _runs(element: Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        name = local(child)
        if name == "s":
            count = attribute(child, "c") or "1"
            yield " " * (min(int(count), MAX_REPEAT) if count.isdecimal() and len(count) < 6 else 1)
        elif name == "tab":
            yield "\t"
        elif name == "line-break":
            yield "\n"
        elif name in ("note", "annotation"):
            yield f" ({' '.join(''.join(_runs(child)).split())})"
        elif name not in _SKIPPED and name not in ("text-box", "object"):
            yield from _runs(child)
        yield child.tail or ""


def _table(table: Element, outline: Outline) -> None:
    rows = [
        [_cell(cell) for cell in row if local(cell) in ("table-cell", "covered-table-cell")] for row in _rows(table)
    ]
    if len(rows) == 1 or max((len(row) for row in rows), default=0) == 1:
        for row in _rows(table):
            for cell in row:
                _blocks(cell, outline, in_list=False)
        return
    outline.table(rows)


def _rows(table: Element) -> Iterator[Element]:
    for child in table:
        if local(child) == "table-row":
            yield child
        elif local(child) in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows(child)


def _cell(cell: Element) -> str:
    """All paragraphs of a cell on one line, those of nested tables too."""
    return " ".join(text for item in cell.iter() if local(item) in ("p", "h") and (text := _text(item)))
