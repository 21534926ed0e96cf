"""Plain text, CSV and JSON in sizes and line ends that people really have, read without a second copy in memory."""

import io
import tracemalloc
from pathlib import Path

import pytest

from internal.entities.parsed import Parsed
from internal.parsers import media_types as media
from internal.parsers.read import read
from internal.parsers.text import MAX_PARAGRAPH
from pkg.apperr import AppError, Code

MEGABYTE = 1 << 20
SENTENCE = b"The heron stands in the reeds and waits. "


def parse(data: bytes, media_type: str, max_bytes: int = 64 * MEGABYTE) -> Parsed:
    return read(io.BytesIO(data), media_type=media_type, workdir=Path(), max_bytes=max_bytes, megapixels=1)


def texts(parsed: Parsed) -> list[str]:
    return [block.text for block in parsed.blocks]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_paragraphs_whatever_the_line_ends_and_the_encoding(end: str, encoding: str) -> None:
    lines = ["第一段在这里，", "它有两行。", "", " \t", "　", "  第二段的时间是今天。"]
    found = parse(end.join(lines).encode(encoding), media.PLAIN)
    assert texts(found) == ["第一段在这里，\n它有两行。", "第二段的时间是今天。"]


def test_lists_are_told_from_paragraphs() -> None:
    found = parse(b"1. one\n2. two\n\nplain\n", media.PLAIN)
    assert [block.kind for block in found.blocks] == ["list_item", "list_item", "paragraph"]


def test_a_line_without_end_comes_in_pieces_that_lose_nothing() -> None:
    data = SENTENCE * (5 * MEGABYTE // len(SENTENCE) // 2)
    found = texts(parse(data, media.PLAIN))
    assert len(found) == 3
    assert max(map(len, found)) <= MAX_PARAGRAPH
    assert " ".join(found) == data.decode().strip()


def test_many_lines_without_an_empty_one_come_in_pieces() -> None:
    data = b"2026-01-01 served\n" * (2 * MEGABYTE // 18)
    found = texts(parse(data, media.PLAIN))
    assert "\n".join(found) == data.decode().strip()
    assert 1 < len(found) < 5


@pytest.mark.parametrize(
    ("unit", "media_type", "times"),
    [
        (SENTENCE, media.PLAIN, 3.0),
        (SENTENCE + b"\n\n", media.PLAIN, 5.0),
        ("A heron \N{BIRD}. ".encode(), media.PLAIN, 7.0),  # one such character makes four bytes of every letter
        (b"1,Ada Lovelace,London,mathematician,1815-12-10\n", media.CSV, 6.0),
        (b'{"name": "' + SENTENCE + b'"}\n', media.JSON, 6.0),
    ],
    ids=["one line", "paragraphs", "wide", "csv", "json lines"],
)
def test_memory_is_a_small_multiple_of_the_file(unit: bytes, media_type: str, times: float) -> None:
    data = unit * (8 * MEGABYTE // len(unit))
    parse(unit * 3, media_type)  # what is imported and compiled once doesn't count
    tracemalloc.start()
    try:
        parse(data, media_type)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Cleaning a paragraph of the largest size takes some megabytes however large the file is.
    assert peak < times * len(data) + 16 * MEGABYTE


@pytest.mark.parametrize("unit", [SENTENCE + b"\n\n", b"x\n\n"], ids=["sentences", "words"])
def test_too_much_text_is_refused_with_the_bound_and_what_to_do(unit: bytes) -> None:
    with pytest.raises(AppError, match=r"more than 2 MB of text .*; split it into parts") as raised:
        parse(unit * (3 * MEGABYTE // len(unit)), media.PLAIN, max_bytes=2 * MEGABYTE)
    assert raised.value.code is Code.FILE_TOO_COMPLEX


def test_json_lines_one_value_and_neither() -> None:
    assert texts(parse(b'\xef\xbb\xbf\n{"a": 1}\r\n\n{"a": 2}', media.JSON)) == ["0.a: 1", "1.a: 2"]
    assert texts(parse(b'{"a": 1}\n\n', media.JSON)) == ["a: 1"]
    assert texts(parse(b'{"a":\n 1}\n', media.JSON)) == ["a: 1"]
    assert texts(parse('{"a": "x\u2028y"}\n{"a": "z"}\n'.encode(), media.JSON)) == ["0.a: x\ny", "1.a: z"]
    for broken in (b'{"a": 1}\nnot JSON\n', b'{"a": 1}\n{"a": 2}\nnot JSON\n'):
        found = parse(broken, media.JSON)
        assert found.warnings == ("The JSON is not well-formed; it was read as plain text.",)
        assert texts(found) == [broken.decode().strip()]
