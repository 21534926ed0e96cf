"""Lists: `?limit=&cursor=` in, `{"items", "next_cursor"}` out."""

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Generic, TypeVar
from uuid import UUID

import msgspec
from litestar.params import PathParameter, QueryParameter

from pkg.apperr import AppError, Code

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_CURSOR = 1000

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description="How many items at most.")]
Cursor = Annotated[str | None, QueryParameter(description="`next_cursor` of the page before.")]
Id = Annotated[str, PathParameter(schema_extra={"type": "string", "format": "uuid"})]
"""An id in a path: read by `read_id`, so that a malformed one is answered like an unknown one."""

Item = TypeVar("Item")
Place = TypeVar("Place")


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """A part of a list; `next_cursor` is null at its end."""

    items: list[Item]
    next_cursor: str | None


def page_of(found: list[Item], limit: int, place: Callable[[Item], object]) -> tuple[list[Item], str | None]:
    """The first `limit` of what was found, and a cursor after the last where more was found than that."""
    if len(found) <= limit:
        return found, None
    kept = found[:limit]
    return kept, base64.urlsafe_b64encode(msgspec.json.encode(place(kept[-1]))).rstrip(b"=").decode()


def read_cursor(cursor: str | None, kind: type[Place]) -> Place | None:
    """The place that a cursor names. Raises REQUEST_INVALID for one that no answer of ours had."""
    if cursor is None:
        return None
    try:
        if len(cursor) > MAX_CURSOR:
            raise ValueError
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise bad_cursor() from None


def bad_cursor() -> AppError:
    """The answer for a cursor that no answer of ours had."""
    return AppError(
        Code.REQUEST_INVALID,
        "cursor: this isn't a next_cursor of an answer; leave it out to begin at the start.",
        errors=[{"field": "cursor", "message": "not a cursor"}],
    )


def read_id(text: str, missing: AppError) -> UUID:
    """An id in a path. What isn't a UUID is answered as an id that isn't there."""
    try:
        if len(text) != len("00000000-0000-0000-0000-000000000000"):
            raise missing
        return UUID(text)
    except ValueError:
        raise missing from None
