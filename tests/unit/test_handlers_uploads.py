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
    fields = [part("priority", b"high"), part("tags", "红,blue".encode()), part("tags", b"green")]
    form, found = await read(body(file, *fields) if file_first else body(*fields, file), cuts)
    assert found == content
    assert form.filename == "报告.pdf"
    assert form.field("priority") == "high"
    assert form.tags() == ["红", "blue", "green"]
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
