"""XLSX: each sheet is a page under its name; blocks of cells become tables."""

import datetime
import re
from collections.abc import Iterator
from typing import BinaryIO
from xml.etree.ElementTree import Element

from internal.parsers.archive import Package, attribute, find, local
from internal.parsers.opc import core_properties, main_part
from internal.parsers.outline import MAX_COLUMNS, Outline
from pkg.apperr import AppError, Code

MAX_CELLS = 5_000_000
MAX_SHARED = 2_000_000
EMPTY_BETWEEN = 2  # columns between tables that stand side by side
_REFERENCE = re.compile(r"([A-Z]{1,3})(\d{1,7})$")
_BUILTIN_DATES = frozenset((*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)))
_NOT_FORMAT = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')
_EPOCH = datetime.datetime(1899, 12, 30)  # noqa: DTZ001 (a spreadsheet's dates have no zone)
_EPOCH_1904 = datetime.datetime(1904, 1, 1)  # noqa: DTZ001


def read_xlsx(file: BinaryIO, outline: Outline) -> None:
    """Reads a workbook, sheet after sheet."""
    package = Package(file)
    part = main_part(package)
    core_properties(package, outline)
    book = package.xml(part)
    relations = package.relations(part)
    by_kind = {kind: target for kind, target in relations.values() if target in package}
    reader = _Workbook(package, outline, by_kind, epoch_1904=_uses_1904(book))
    sheets = find(book, "sheets")
    number = 0
    for sheet in sheets if sheets is not None else ():
        number += 1
        kind, target = relations.get(next((v for k, v in sheet.attrib.items() if k.endswith("}id")), ""), ("", ""))
        if kind == "worksheet" and target in package:
            outline.page = number
            outline.leave_sections()
            outline.heading(sheet.get("name", f"{number}"), 1)
            reader.sheet(target)
    outline.note("pages", number)


def _uses_1904(book: Element) -> bool:
    properties = find(book, "workbookPr")
    return properties is not None and attribute(properties, "date1904") in ("1", "true")


class _Workbook:
    """Shared strings and number formats, and the reading of one sheet."""

    def __init__(self, package: Package, outline: Outline, parts: dict[str, str], *, epoch_1904: bool) -> None:
        self._package = package
        self._outline = outline
        self._epoch = _EPOCH_1904 if epoch_1904 else _EPOCH
        self._shared = list(self._strings(parts["sharedStrings"])) if "sharedStrings" in parts else []
        self._dates = _date_styles(package.xml(parts["styles"])) if "styles" in parts else frozenset[int]()
        self._cells = 0

    def sheet(self, part: str) -> None:
        """Writes the tables of one sheet. An empty row ends a table; a lone cell is a paragraph."""
        table: list[dict[int, str]] = []
        last = 0
        for row in self._package.rows(part, "row"):
            cells = self._row(row)
            number = _number(row.get("r")) or last + 1
            if table and (not cells or number > last + 1):
                self._write(table)
                table = []
            if cells:
                table.append(cells)
            last = number
        self._write(table)
        for kind, target in self._package.relations(part).values():
            if kind == "comments" and target in self._package:
                for comment in self._package.rows(target, "comment"):
                    self._outline.text(f"{comment.get('ref', '')}: {_rich_text(comment)}")

    def _write(self, table: list[dict[int, str]]) -> None:
        """Writes rows that belong together; tables side by side, two empty columns apart, one after the other."""
        for part in _side_by_side(table):
            self._write_one(part)

    def _write_one(self, table: list[dict[int, str]]) -> None:
        """Lone cells at the top are titles; rows start at the leftmost column in use."""
        while table and len(table[0]) == 1 and (len(table) == 1 or len(table[1]) > 1):
            self._outline.text(next(iter(table[0].values())))
            table = table[1:]
        if all(len(row) == 1 for row in table):
            for row in table:
                self._outline.text(next(iter(row.values())), "list_item")
            return
        first = min(min(row) for row in table)
        self._outline.table(_dense(row, first) for row in table)

    def _row(self, row: Element) -> dict[int, str]:
        cells: dict[int, str] = {}
        column = -1
        for cell in row:
            if local(cell) != "c":
                continue
            match = _REFERENCE.match(cell.get("r", ""))
            column = _column(match[1]) if match else column + 1
            text = self._text(cell).strip()
            if text:
                cells[column] = text
        self._cells += len(cells)
        if self._cells > MAX_CELLS:
            raise AppError(
                Code.FILE_TOO_COMPLEX, f"The workbook has more than {MAX_CELLS:,} cells; split it into parts."
            )
        return cells

    def _text(self, cell: Element) -> str:
        kind = cell.get("t", "n")
        if kind == "inlineStr":
            return _rich_text(cell)
        value = find(cell, "v")
        raw = (value.text or "") if value is not None else ""
        if kind == "s":
            index = _number(raw)
            return self._shared[index] if index is not None and index < len(self._shared) else ""
        if kind == "b":
            return "TRUE" if raw == "1" else "FALSE"
        if kind == "n" and raw:
            return self._numeric(raw, _number(cell.get("s")))
        return raw

    def _numeric(self, raw: str, style: int | None) -> str:
        try:
            value = float(raw)
        except ValueError:
            return raw
        if style in self._dates and 0 <= value < 2_958_466:
            return _date(self._epoch, value)
        # 17 digits of binary noise help nobody: 0.30000000000000004 is shown as 0.3.
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"

    def _strings(self, part: str) -> Iterator[str]:
        for count, item in enumerate(self._package.rows(part, "si")):
            if count >= MAX_SHARED:
                raise AppError(Code.FILE_TOO_COMPLEX, "The workbook has too many texts; split it into parts.")
            yield _rich_text(item)


def _side_by_side(table: list[dict[int, str]]) -> Iterator[list[dict[int, str]]]:
    columns = sorted({column for row in table for column in row})
    start = 0
    for index in range(1, len(columns) + 1):
        if index == len(columns) or columns[index] - columns[index - 1] > EMPTY_BETWEEN:
            wanted = set(columns[start:index])
            part = [{column: text for column, text in row.items() if column in wanted} for row in table]
            yield [row for row in part if row]
            start = index


def _rich_text(element: Element) -> str:
    """Text of all runs, phonetic guides left out."""
    parts: list[str] = []
    for child in element:
        if local(child) == "t":
            parts.append(child.text or "")
        elif local(child) not in ("rPh", "phoneticPr", "rPr"):
            parts.append(_rich_text(child))
    return "".join(parts)


def _date_styles(styles: Element) -> frozenset[int]:
    """Indexes of cell formats that show a number as a date or time."""
    dates = set(_BUILTIN_DATES)
    formats = find(styles, "numFmts")
    for item in formats if formats is not None else ():
        code = _NOT_FORMAT.sub("", item.get("formatCode", "")).lower()
        identifier = _number(item.get("numFmtId"))
        if identifier is not None and any(letter in code for letter in "ymdhs") and "general" not in code:
            dates.add(identifier)
    cells = find(styles, "cellXfs")
    found = (_number(item.get("numFmtId")) for item in (cells if cells is not None else ()))
    return frozenset(index for index, identifier in enumerate(found) if identifier in dates)


def _date(epoch: datetime.datetime, value: float) -> str:
    moment = epoch + datetime.timedelta(seconds=round(value * 86400))
    if value < 1:
        return moment.time().isoformat()
    return moment.date().isoformat() if value.is_integer() else moment.isoformat(sep=" ")


def _dense(row: dict[int, str], first: int) -> list[str]:
    """Cells from the first column on; far-away columns of sparse sheets move together."""
    last = max(row)
    if last - first < MAX_COLUMNS:
        return [row.get(column, "") for column in range(first, last + 1)]
    return [row[column] for column in sorted(row)]


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 64
    return number - 1


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else None
