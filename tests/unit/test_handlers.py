"""What handlers do without a server: strict JSON, ranges, cursors, events, and the mapping of errors."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.exceptions import HTTPException, InternalServerException, NotAuthorizedException

from internal.entities.ids import new_id
from internal.handlers.auth import Access
from internal.handlers.docs import page
from internal.handlers.downloads import disposition, parse_range
from internal.handlers.observation import UNLESS_SET, _ids
from internal.handlers.paging import page_of, read_cursor, read_id
from internal.handlers.problems import STATUS, to_problem
from internal.handlers.requests import decode
from internal.handlers.routes import ROUTES, openapi_document
from internal.handlers.streams import HEARTBEAT, event, with_heartbeats
from pkg.apperr import AppError, Code
from pkg.ctxutil import Role


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    names: list[str] = []


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    query: str
    k: int = 10
    inner: Inner = msgspec.field(default_factory=Inner)


@pytest.mark.parametrize(
    ("body", "line", "column"),
    [
        (b'{"query": "x",\n "k": }', 2, 7),
        (b'{"query": "x"', 1, 14),
        (b'{"query": "x"} y', 1, 16),
        (b"{'query': 1}", 1, 2),
        (b'{"query":\n\n"a\x00"}', 3, 3),
        (b'{"query":"\xff"}', 1, 11),
        ('{"query":"你好",\n"k":?}'.encode(), 2, 5),
        (b'{"query":"ok \\ud83d\\ude00 \\ud800"}', 1, 27),
        (b'{"query":"\xed\xa0\x80"}', 1, 11),
        (b'\xef\xbb\xbf{"query":"a"}', 1, 1),
        (b'{"query":"NaN",\n"k":NaN}', 2, 5),
        (b'{"query":"a \\" Infinity","k":-Infinity}', 1, 30),
    ],
)
def test_malformed_json_is_told_with_its_place(body: bytes, line: int, column: int) -> None:
    with pytest.raises(AppError) as caught:
        decode(body, Outer)
    assert caught.value.code is Code.REQUEST_MALFORMED
    assert caught.value.errors is not None
    assert (caught.value.errors[0]["line"], caught.value.errors[0]["column"]) == (line, column)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b'{"query":"a","k":NaN}', "NaN"),
        (b'{"query":"a","k":Infinity}', "Infinity"),
        (b'{"query":"\\udc00","k":NaN}', "NaN"),
        (b'{"query":"\\udc00"}', "surrogate"),
    ],
)
def test_malformed_json_is_told_as_what_it_is(body: bytes, what: str) -> None:
    with pytest.raises(AppError) as caught:
        decode(body, dict[str, Any])
    assert caught.value.code is Code.REQUEST_MALFORMED
    assert what in caught.value.detail
    assert ("surrogate" in caught.value.detail) == (what == "surrogate")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"query":1}', "query"),
        (b'{"query":"x","k":"5"}', "k"),
        (b'{"query":"x","k":1.5}', "k"),
        (b'{"query":"x","nope":1}', "nope"),
        (b'{"query":"x","inner":{"nope":1}}', "inner.nope"),
        (b'{"query":"x","inner":{"names":["a",2]}}', "inner.names[1]"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"{}", "body"),
        (b'{"query":"a\\u0000b"}', "query"),
        (b'{"query":"a","inner":{"names":["b","\\u0000"]}}', "inner.names[1]"),
    ],
)
def test_wrong_fields_are_named(body: bytes, field: str) -> None:
    with pytest.raises(AppError) as caught:
        decode(body, Outer)
    assert caught.value.code is Code.REQUEST_INVALID
    assert caught.value.errors is not None
    assert caught.value.errors[0]["field"] == field


def test_an_escaped_backslash_before_u0000_is_only_text() -> None:
    assert decode(rb'{"query":"\\u0000"}', Outer).query == r"\u0000"


@given(st.binary(max_size=200))
def test_no_body_does_worse_than_a_named_error(body: bytes) -> None:
    with pytest.raises(AppError) as caught:
        decode(b"?" + body, Outer)
    assert STATUS[caught.value.code] == 400


def test_deep_nesting_is_an_error_like_others() -> None:
    with pytest.raises(AppError):
        decode(b'{"query":' + b"[" * 100_000, dict[str, Any])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-999", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=100-", (100, 100)),
        ("bytes=-0", (100, 100)),
        ("bytes=5-1", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("pages=1-2", None),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == expected


def test_a_file_name_cannot_leave_its_header() -> None:
    value = disposition('报告"\r\nSet-Cookie: a=b; 100%.pdf')
    assert "\r" not in value
    assert "\n" not in value
    assert value.count('"') == 2
    assert "filename*=UTF-8''%E6%8A%A5%E5%91%8A%22%0D%0A" in value


@given(st.lists(st.integers(0, 1000), unique=True, max_size=30).map(sorted), st.integers(1, 10))
def test_pages_give_everything_once(items: list[int], limit: int) -> None:
    seen: list[int] = []
    cursor = None
    while True:
        after = read_cursor(cursor, int)
        rest = [item for item in items if after is None or item > after]
        found, cursor = page_of(rest[: limit + 1], limit, lambda item: item)
        seen += found
        if cursor is None:
            break
    assert seen == items


@pytest.mark.parametrize("cursor", ["", "zzz", "e30", "💥", "A" * 5000, "bnVsbA", "WyIyMDI0LTAxLTAxIl0", "\x00"])
def test_a_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(AppError) as caught:
        read_cursor(cursor, tuple[datetime, UUID])
    assert caught.value.code is Code.REQUEST_INVALID


def test_a_cursor_keeps_its_place_exactly() -> None:
    place = (datetime.now(UTC), new_id())
    _, cursor = page_of([place, place], 1, lambda item: item)
    assert read_cursor(cursor, tuple[datetime, UUID]) == place


SOME_ID = "01a201d2-7f87-76b8-973e-09961a02f4dc"


TEXTS = ["", "nope", "1", "{" + "0" * 34 + "}", "urn:uuid:" + SOME_ID, SOME_ID.replace("-", "")]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_id_is_not_there(text: str) -> None:
    missing = AppError(Code.TASK_NOT_FOUND, "There is no such task.")
    with pytest.raises(AppError) as caught:
        read_id(text, missing)
    assert caught.value is missing


def test_every_code_has_a_status() -> None:
    assert set(STATUS) == set(Code)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("select secret from users"),
        AppError(Code.INTERNAL, "a query without a tenant"),
        InternalServerException("Traceback: secret"),
        KeyError("secret"),
    ],
)
def test_the_unexpected_is_answered_without_a_word_of_it(error: Exception) -> None:
    problem = to_problem(error)
    assert problem.status_code == 500
    shown = f"{problem.detail} {problem.extra} {problem.title}"
    assert "secret" not in shown
    assert "tenant" not in shown


def test_problems_say_when_to_come_back() -> None:
    def header(error: Exception) -> str | None:
        return (to_problem(error).headers or {}).get("Retry-After")

    assert header(AppError(Code.RATE_LIMITED, "slow down", retry_after=0.2)) == "1"
    assert header(AppError(Code.QUEUE_FULL, "full", retry_after=30)) == "30"
    assert header(AppError(Code.DATABASE_UNAVAILABLE, "down")) == "5"
    assert header(AppError(Code.DOCUMENT_NOT_FOUND, "none")) is None


def test_the_frameworks_own_errors_have_our_codes() -> None:
    assert to_problem(HTTPException(status_code=405, headers={"allow": "GET"})).headers == {"allow": "GET"}
    assert to_problem(NotAuthorizedException()).extra["code"] == "auth.missing_token"  # type: ignore[index,call-overload]  # a dict


async def _numbers(pause: float, closed: list[bool]) -> AsyncGenerator[bytes]:
    try:
        for number in range(3):
            await asyncio.sleep(pause)
            yield event("delta", {"text": str(number)})
    finally:
        closed.append(True)


async def test_events_pass_in_order_without_heartbeats_when_they_come_quickly() -> None:
    closed: list[bool] = []
    found = [item async for item in with_heartbeats(_numbers(0, closed), 5.0)]
    assert found == [b'event: delta\ndata: {"text":"%d"}\n\n' % number for number in range(3)]
    assert closed == [True]


async def test_silence_is_filled_with_comments_and_loses_nothing() -> None:
    closed: list[bool] = []
    found = [item async for item in with_heartbeats(_numbers(0.05, closed), 0.01)]
    assert HEARTBEAT in found
    assert [item for item in found if item != HEARTBEAT] == [event("delta", {"text": str(n)}) for n in range(3)]


async def test_a_reader_who_leaves_closes_the_source() -> None:
    closed: list[bool] = []
    stream = with_heartbeats(_numbers(10, closed), 0.01)
    assert await anext(stream) == HEARTBEAT
    await stream.aclose()
    assert closed == [True]


async def test_an_error_of_the_source_reaches_the_reader() -> None:
    async def failing() -> AsyncGenerator[bytes]:
        yield b"a"
        raise ValueError("broken")

    stream = with_heartbeats(failing(), 1.0)
    assert await anext(stream) == b"a"
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)


def test_request_ids_are_echoed_only_when_sane() -> None:
    def answer(value: bytes) -> str:
        return _ids([(b"x-request-id", value)])[0]

    assert answer(b"job-42.a:b_c") == "job-42.a:b_c"
    for strange in (b"", b"a b", b"a\r\nb", b"x" * 200, b"dh_" + b"A" * 43, "ü".encode()):
        assert UUID(answer(strange))


def test_the_callers_trace_is_kept() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    good = f"00-{trace}-b7ad6b7169203331-01".encode()
    assert _ids([(b"traceparent", good)])[1] == trace
    for bad in (b"", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", good + b"x", good.replace(b"00-", b"ff-")):
        found = _ids([(b"traceparent", bad)])[1]
        assert found != trace
        assert len(found) == 32


def test_every_route_says_who_may_call_it() -> None:
    for handler in ROUTES:
        assert isinstance(handler.opt["access"], Access), handler  # type: ignore[union-attr]  # a route handler


def test_viewers_only_read_search_and_chat() -> None:
    writing = {
        (next(iter(handler.paths)), method)  # type: ignore[union-attr]  # a route handler
        for handler in ROUTES
        for method in getattr(handler, "http_methods", ())  # a WebSocket has none, and takes nothing either
        if handler.opt["access"] is Role.VIEWER and method not in ("GET", "HEAD")  # type: ignore[union-attr]  # a route handler
    }
    assert all(path.startswith(("/api/v1/search", "/api/v1/conversations", "/api/v1/memory")) for path, _ in writing), (
        writing
    )


def test_describing_leaves_logging_alone() -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    openapi_document("1.2.3")
    assert root.handlers == before


def test_the_description_is_whole_and_the_page_needs_nothing_from_outside() -> None:
    document = openapi_document("1.2.3")
    assert document["info"]["version"] == "1.2.3"
    upload = document["paths"]["/api/v1/documents"]["post"]
    assert "multipart/form-data" in upload["requestBody"]["content"]
    assert set(upload["responses"]) == {"200", "202", "default"}
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert document["paths"]["/api/v1/members"]["get"]["x-role"] == "admin"
    assert {"get", "head"} == set(document["paths"]["/healthz"])
    assert "parameters" not in document["paths"]["/api/v1/api-keys"]["post"]  # an answer that isn't kept for replays
    operations = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(operations) == len(set(operations))
    html = page(document)
    assert "/api/v1/conversations/{conversation_id}/messages" in html
    for outside in ("http://", "https://", "<script", "src=", "@import", "url("):
        assert outside not in html
    assert UNLESS_SET[0][0] == b"content-security-policy"
