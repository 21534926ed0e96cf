"""Plain text, Markdown, CSV and JSON."""

import csv
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from internal.parsers.decode import Decoded, decode
from internal.parsers.outline import Outline
from pkg.apperr import AppError, Code

MAX_JSON_DEPTH = 100
MAX_CELL = 1 << 20
_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•·‣◦]|\(?\d{1,3}[.)、]|[一二三四五六七八九十]{1,3}、)[ \t]*\S")


def read_plain(file: BinaryIO, outline: Outline) -> None:
    """Paragraphs are parted by empty lines; lines wrapped at a fixed width stay as they are."""
    decoded = _decoded(file, outline)
    for paragraph in _PARAGRAPHS.split(decoded.text):
        lines = paragraph.split("\n")
        if len(lines) > 1 and sum(1 for line in lines if _LIST_ITEM.match(line)) * 2 > len(lines):
            for line in lines:
                outline.text(line, "list_item")
        else:
            outline.text(paragraph)


def read_csv(file: BinaryIO, outline: Outline) -> None:
    """Rows with the first one as header; the delimiter is the one that gives the most even columns."""
    decoded = _decoded(file, outline)
    text = decoded.text.lstrip("\ufeff")
    delimiter = _delimiter(text[:65536])
    csv.field_size_limit(MAX_CELL)
    lines = iter(text.splitlines(keepends=True))
    try:
        outline.table(csv.reader(lines, delimiter=delimiter))
    except csv.Error as error:
        raise AppError(Code.FILE_UNREADABLE, f"The table can't be read: {error}. Save it as CSV again.") from error


def read_json(file: BinaryIO, outline: Outline) -> None:
    """Each value on a line of its own under its path: `orders.0.name: Ada`. Also one JSON value a line."""
    decoded = _decoded(file, outline)
    text = decoded.text.lstrip("\ufeff")
    try:
        values = [json.loads(text)]
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError:
        values = _json_lines(text)
    if values is None:
        outline.warn("The JSON is not well-formed; it was read as plain text.")
        for paragraph in _PARAGRAPHS.split(text):
            outline.text(paragraph)
        return
    for number, value in enumerate(values):
        prefix = str(number) if len(values) > 1 else ""
        for line in _entries(value, prefix):
            outline.text(line, "list_item")


def _decoded(file: BinaryIO, outline: Outline) -> Decoded:
    decoded = decode(file.read())
    decoded = Decoded(decoded.text.replace("\r\n", "\n").replace("\r", "\n"), decoded.encoding)
    outline.note("encoding", decoded.encoding)
    return decoded


def _delimiter(sample: str) -> str:
    best, best_score = ",", 0.0
    lines = sample.splitlines()[:200]
    for delimiter in (",", ";", "\t", "|"):
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if not widths or max(widths) < 2:
            continue
        usual = max(set(widths), key=widths.count)
        score = widths.count(usual) / len(widths) * (usual > 1) + min(usual, 20) / 1000
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _json_lines(text: str) -> list[Any] | None:
    values: list[Any] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except RecursionError as error:
            raise _too_deep() from error
        except ValueError:
            return None
    return values or None


def _entries(value: Any, path: str, depth: int = 0) -> Iterator[str]:
    """`path: value` for every leaf, in order; a list of plain values is one line."""
    if depth > MAX_JSON_DEPTH:
        raise _too_deep()
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _entries(inner, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, inner in enumerate(value):
            yield from _entries(inner, f"{path}.{number}" if path else str(number), depth + 1)
    else:
        text = ", ".join(_leaf(item) for item in value) if isinstance(value, list) else _leaf(value)
        if text:
            yield f"{path}: {text}" if path else text


def _leaf(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _too_deep() -> AppError:
    return AppError(Code.FILE_TOO_COMPLEX, f"The JSON is nested deeper than {MAX_JSON_DEPTH} levels.")
