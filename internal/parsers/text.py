"""Plain text, CSV and JSON, read piece by piece: what is held in memory is what was found, not the file as well."""

import csv
import json
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain
from typing import Any, BinaryIO

from internal.parsers.decode import SAMPLE, guess, sniff
from internal.parsers.outline import Outline
from pkg.apperr import AppError, Code

MAX_JSON_DEPTH = 100
MAX_CELL = 1 << 20
MAX_PARAGRAPH = 1 << 20
"""Characters; cleaning takes ten times the memory of what is cleaned. A longer paragraph becomes several."""
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•·‣◦]|\(?\d{1,3}[.)、]|[一二三四五六七八九十]{1,3}、)[ \t]*\S")


def read_plain(file: BinaryIO, outline: Outline) -> None:
    """Paragraphs are parted by empty lines; lines wrapped at a fixed width stay as they are."""
    with _text(file, outline) as text:
        for lines in _paragraphs(text):
            if len(lines) > 1 and sum(1 for line in lines if _LIST_ITEM.match(line)) * 2 > len(lines):
                for line in lines:
                    outline.text(line, "list_item")
            else:
                outline.text("\n".join(lines))


def read_csv(file: BinaryIO, outline: Outline) -> None:
    """Rows with the first one as header; the delimiter is the one that gives the most even columns."""
    csv.field_size_limit(MAX_CELL)
    with _text(file, outline) as text:
        sample = text.read(SAMPLE) + text.readline(MAX_CELL)
        lines = chain(sample.lstrip("\ufeff").splitlines(keepends=True), text)
        try:
            outline.table(csv.reader(lines, delimiter=_delimiter(sample)))
        except csv.Error as error:
            raise AppError(Code.FILE_UNREADABLE, f"The table can't be read: {error}. Save it as CSV again.") from error


def read_json(file: BinaryIO, outline: Outline) -> None:
    """Each value on a line of its own under its path: `orders.0.name: Ada`. Also one JSON value a line."""
    with _text(file, outline) as text:
        try:
            if (count := _count_lines(text)) > 1:
                values = enumerate(_json_lines(text))
            else:
                values, count = iter([(0, json.loads(text.read().lstrip("\ufeff")))]), 1
        except RecursionError as error:
            raise _too_deep() from error
        except ValueError:
            outline.warn("The JSON is not well-formed; it was read as plain text.")
            text.seek(0)
            for lines in _paragraphs(text):
                outline.text("\n".join(lines))
            return
        for number, value in values:
            for line in _entries(value, str(number) if count > 1 else ""):
                outline.text(line, "list_item")


@contextmanager
def _text(file: BinaryIO, outline: Outline) -> Generator[TextIOWrapper]:
    """The file as text with plain line ends; it can be read again after `seek(0)`."""
    head = file.read(SAMPLE + 1)
    file.seek(0)
    sample = head[:SAMPLE]
    encoding = sniff(sample, complete=len(head) <= SAMPLE) or guess(sample)
    outline.note("encoding", encoding)
    text = TextIOWrapper(file, encoding=encoding, errors="replace", newline=None)
    try:
        yield text
    finally:
        text.detach()  # the file is the caller's to close


def _paragraphs(text: TextIOWrapper) -> Iterator[list[str]]:
    """The lines of each paragraph, without line ends."""
    lines: list[str] = []
    size = 0
    for line in _pieces(text):
        if not line.strip(" \t") or size + len(line) > MAX_PARAGRAPH:
            if lines:
                yield lines
            lines, size = [], 0
        if lines or line.strip():  # further empty lines are no paragraph, whatever blanks they consist of
            lines.append(line)
            size += len(line)
    if lines:
        yield lines


def _pieces(text: TextIOWrapper) -> Iterator[str]:
    """Lines without their ends; a line of a megabyte and more comes in pieces that end after a word."""
    rest = ""
    while line := text.readline(MAX_PARAGRAPH):
        line, rest = rest + line, ""
        if line.endswith("\n"):
            yield line[:-1]
        elif len(line) < MAX_PARAGRAPH:  # the last line of the file
            yield line
        else:
            end = line.rfind(" ") + 1 or len(line)
            yield line[:end]
            rest = line[end:]
    if rest:
        yield rest


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


def _count_lines(text: TextIOWrapper) -> int:
    """How many JSON values there are, one a line; 0 when the first line is none. Raises ValueError for a later one.

    Afterwards `text` is at its beginning.
    """
    count = 0
    try:
        for _value in _json_lines(text):
            count += 1
    except ValueError:
        if count > 1:  # neither is it one value: that would not go on after the first line
            raise
        count = 0
    text.seek(0)
    return count


def _json_lines(text: Iterable[str]) -> Iterator[Any]:
    for line in text:
        if line := line.strip("\ufeff \t\n"):
            yield json.loads(line)


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
