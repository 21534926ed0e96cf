"""The upload form: any cut of the bytes, any order of the parts, and everything malformed."""

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.handlers.uploads import FORM_BYTES, UploadForm
from pkg.apperr import AppError, Code

BOUNDARY = "----limit7MA4YWx"
LIMIT = 4 * 1024 * 1024


def part(name: str, body: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + body + b"\r\n"


def named(disposition: bytes) -> bytes:
    """A form whose file has this Content-Disposition behind its field's name."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"'.encode()
    return body(head + disposition + b"\r\n\r\nx\r\n")


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def stream(data: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        yield data[start:end]
    yield b""


async def read(data: bytes, cuts: list[int] | None = None, limit: int = LIMIT) -> tuple[UploadForm, bytes]:
    form = UploadForm(stream(data, cuts or []), BOUNDARY, max_file_bytes=limit)
    await form.begin()
    content = b"".join([chunk async for chunk in form.chunks()])
    await form.finish()
    return form, content


near_boundaries = st.lists(
    st.sampled_from([b"\r\n", b"--", BOUNDARY.encode(), f"\r\n--{BOUNDARY[:-1]}".encode(), b"\x00", b"\r", b"text"]),
    max_size=12,
).map(b"".join)


@given(content=near_boundaries, cuts=st.lists(st.integers(0, 2000), max_size=30), file_first=st.booleans())
async def test_the_same_form_however_the_network_cuts_it(content: bytes, cuts: list[int], file_first: bool) -> None:
    content = content.replace(f"\r\n--{BOUNDARY}".encode(), b"")
    file = part("file", content, "报告.pdf")
    fields = [
        part("priority", b"high"),
        part("tags", "红,blue".encode()),
        part("tags", b'["green", "a, b"]'),
        part("tags", b"[x]"),
    ]
    form, found = await read(body(file, *fields) if file_first else body(*fields, file), cuts)
    assert found == content
    assert form.filename == "报告.pdf"
    assert form.field("priority") == "high"
    assert form.tags() == ["红", "blue", "green", "a, b", "[x]"]
    assert form.field("collection") is None


@pytest.mark.parametrize(
    ("data", "code", "named"),
    [
        (body(part("priority", b"high")), Code.REQUEST_INVALID, "file"),
        (body(part("file", b"x", "a"), part("file", b"y", "b")), Code.REQUEST_INVALID, "file"),
        (body(part("colour", b"red"), part("file", b"x", "a")), Code.REQUEST_INVALID, "colour"),
        (body(part("file", b"x", "a"), part("colour", b"red")), Code.REQUEST_INVALID, "colour"),
        (
            body(part("priority", b"high"), part("priority", b"high"), part("file", b"x", "a")),
            Code.REQUEST_INVALID,
            "priority",
        ),
        (body(part("tags", b"\xff"), part("file", b"x", "a")), Code.REQUEST_INVALID, "tags"),
        (body(part("tags", b"a\x00b"), part("file", b"x", "a")), Code.REQUEST_INVALID, "tags"),
        (body(part("tags", b"a" * 40_000), part("file", b"x", "a")), Code.REQUEST_INVALID, "tags"),
        (body(part("file", b"x", "a"))[:-20], Code.REQUEST_MALFORMED, "multipart"),
        (b"no form at all", Code.REQUEST_MALFORMED, "multipart"),
        (b"", Code.REQUEST_MALFORMED, "multipart"),
        (b"--" + BOUNDARY.encode() + b"\r\nno header\r\n\r\n", Code.REQUEST_MALFORMED, "Malformed segment header."),
        (
            body(*(part("tags", b"a") for _ in range(100)), part("file", b"x", "a")),
            Code.REQUEST_TOO_LARGE,
            "many parts",
        ),
        (body(part("file", b"x" * (FORM_BYTES + 1025), "a")), Code.FILE_TOO_LARGE, "limit"),
    ],
)
async def test_a_bad_form_is_refused_by_name(data: bytes, code: Code, named: str) -> None:
    with pytest.raises(AppError) as caught:
        await read(data, limit=1024)
    assert caught.value.code is code
    assert named in caught.value.detail


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        (b"; filename*=UTF-8''%E4%B8%AD.txt", "中.txt"),
        (b"; filename=\"_.txt\"; filename*=UTF-8''%E4%B8%AD.txt", "中.txt"),
        (b"; filename*=utf-8'zh-CN'%E4%B8%AD.txt; filename=\"_.txt\"", "中.txt"),
        (b"; FileName*=ISO-8859-1'en'%A3%20rates.txt", "£ rates.txt"),
        (b"; filename*=\"UTF-8''%E4%B8%AD.txt\"", "中.txt"),
        (b"; filename*=UTF-8''a%2522%22.txt", 'a%22".txt'),
        (b"; filename=\"a.txt\"; filename*=UTF-8''%FF.txt", "a.txt"),
        (b"; filename=\"a.txt\"; filename*=KOI8-R''%C1.txt", "a.txt"),
        (b'; filename="a.txt"; filename*=UTF-8', "a.txt"),
        (b"; filename=\"x; filename*=UTF-8''evil.txt\"", "x; filename*=UTF-8''evil.txt"),
        (b"; filename*=UTF-8''%FF", ""),
        (b"", ""),
        ('; filename="报告.txt"'.encode(), "报告.txt"),
        ('; filename="中文报告.txt"'.encode("gb18030"), "中文报告.txt"),
        ('; filename="成績誠.txt"'.encode("gb18030"), "成績誠.txt"),
        ('; filename="誠"'.encode("gb18030"), "誠"),
        ('; filename="é.txt"'.encode("latin-1"), "é.txt"),
    ],
)
async def test_the_name_of_a_file_however_it_is_written(disposition: bytes, filename: str) -> None:
    form, content = await read(named(disposition))
    assert (form.filename, content) == (filename, b"x")


async def test_an_unknown_field_is_told_as_it_was_written() -> None:
    with pytest.raises(AppError) as caught:
        await read(body(part("颜色", b"red")))
    assert caught.value.detail.startswith("颜色 ")


@given(st.binary(max_size=60).filter(lambda raw: b"\n" not in raw and b"\r" not in raw))
async def test_no_name_keeps_a_file_out_of_the_form(raw: bytes) -> None:
    for disposition in (b'; filename="' + raw + b'"', b"; filename*=" + raw):
        form, content = await read(named(disposition))
        assert content == b"x"
        form.filename.encode()


async def test_a_file_that_is_too_large_is_refused_before_it_is_read_whole() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield part("file", b"", "a")[:-2]
        while True:
            taken += 65536
            yield b"x" * 65536

    form = UploadForm(endless(), BOUNDARY, max_file_bytes=LIMIT)
    await form.begin()
    with pytest.raises(AppError) as caught:
        async for _ in form.chunks():
            pass
    assert caught.value.code is Code.FILE_TOO_LARGE
    assert taken <= LIMIT + FORM_BYTES + 65536


def test_a_boundary_is_needed() -> None:
    with pytest.raises(AppError) as caught:
        UploadForm(stream(b"", []), "", max_file_bytes=1)
    assert caught.value.code is Code.REQUEST_MALFORMED
