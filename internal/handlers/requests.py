"""Reading JSON bodies strictly: the right type, no unknown field, and the place of what is wrong."""

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from litestar import Request
from litestar.types import Empty

from pkg.apperr import AppError, Code

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time with its zone: without one it would be the machine's, hours from what was meant."""
JSON_LIMIT = 1024 * 1024
JSON_TYPES = ("", "application/json")
FIELD = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(?P<name>-?Infinity|NaN)', re.DOTALL)
"""A string, which is passed over, or a number that Python reads as JSON and nobody else does."""
UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
ESCAPED_NUL = b"\\u0000"


class StrictRequest(Request[Any, Any, Any]):
    """A request whose `json()` is the handler's own input struct."""

    async def json(self) -> Any:
        """Decodes the body as the type of the handler's `data`. Raises REQUEST_MALFORMED or REQUEST_INVALID."""
        if self._json is Empty:
            media_type = self.content_type[0]
            if media_type not in JSON_TYPES and not media_type.endswith("+json"):
                raise AppError(
                    Code.REQUEST_UNSUPPORTED_MEDIA_TYPE, "This path takes JSON; send Content-Type: application/json."
                )
            self._json = decode(await self.body(), self.route_handler.parsed_fn_signature.parameters["data"].annotation)
        return self._json


def decode(body: bytes, kind: Any) -> Any:
    """`body` as a value of `kind`. Raises REQUEST_MALFORMED with line and column, REQUEST_INVALID with the field."""
    try:
        value = _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _malformed(body) from None
    if ESCAPED_NUL in body:
        _refuse_nul(msgspec.to_builtins(value, str_keys=True), "")
    return value


def refuse_nul(text: str, field: str) -> None:
    """PostgreSQL stores no NUL and no lone surrogate. Raises REQUEST_INVALID."""
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise AppError(
            Code.REQUEST_INVALID,
            f"{field} holds a NUL or half of a surrogate pair; remove it.",
            errors=[{"field": field, "message": "NUL or lone surrogate"}],
        )


def utc(moment: datetime | None, field: str) -> datetime | None:
    """The same time in UTC. Raises REQUEST_INVALID without a zone, which Litestar passes over in a query, and for a
    time that only its zone keeps within the years 1 to 9999."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise _unfit(field, "needs a time zone, as in 2026-01-31T08:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise _unfit(field, "must lie within the years 1 to 9999 of UTC") from None


def _unfit(field: str, message: str) -> AppError:
    return AppError(Code.REQUEST_INVALID, f"{field} {message}.", errors=[{"field": field, "message": message}])


@lru_cache(256)
def _decoder(kind: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind)


def _refuse_nul(value: Any, path: str) -> None:
    if isinstance(value, str):
        refuse_nul(value, path or "body")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _refuse_nul(item, f"{path}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            refuse_nul(str(name), path or "body")
            _refuse_nul(item, f"{path}.{name}" if path else str(name))


def _invalid(message: str) -> AppError:
    """msgspec says ``Expected `int`, got `str` - at `$.filters.k` ``."""
    found = FIELD.match(message)
    what, path = (found["what"], found["path"] or "") if found else (message, "")
    unknown = UNKNOWN.match(what)
    if unknown:
        field = f"{path}.{unknown['name']}" if path else unknown["name"]
        return AppError(
            Code.REQUEST_INVALID,
            f"{field[:200]} is not a field here; see /docs.",
            errors=[{"field": field[:200], "message": "unknown field"}],
        )
    what = what.replace("`", "")
    return AppError(
        Code.REQUEST_INVALID, f"{path or 'body'}: {what}.", errors=[{"field": path or "body", "message": what}]
    )


def _malformed(body: bytes) -> AppError:
    """msgspec names no place when the end is missing, so the slower parser of the standard library looks again."""
    what, at = "not JSON", 0
    try:
        _read_again(body.decode("utf-8"))
        surrogate = _lone_surrogate(body)
        if surrogate is not None:
            what, at = "half of a surrogate pair in a string", surrogate
    except UnicodeDecodeError as error:
        what, at = "not UTF-8", error.start
    except json.JSONDecodeError as error:
        what, at = error.msg, len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
    except RecursionError:
        what, at = "nested too deeply", 0
    line = body.count(b"\n", 0, at) + 1
    column = at - (body.rfind(b"\n", 0, at) + 1) + 1
    place = f"line {line}, column {column} (byte {at})"
    return AppError(
        Code.REQUEST_MALFORMED,
        f"The body is not well-formed JSON: {what} at {place}.",
        errors=[{"field": "body", "message": what, "line": line, "column": column, "byte": at}],
    )


def _read_again(text: str) -> None:
    """Raises JSONDecodeError where `text` ceases to be JSON. Numbers stay text: how large they are isn't asked here."""

    def refuse(name: str) -> None:
        at = next((found.start() for found in CONSTANT.finditer(text) if found["name"]), 0)
        raise json.JSONDecodeError(f"{name} is no number of JSON", text, at)

    json.loads(text, parse_constant=refuse, parse_int=str, parse_float=str)


def _lone_surrogate(body: bytes) -> int | None:
    """Where an escaped surrogate stands without its other half; None where all have theirs."""
    pairs = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u]|\\u[0-9a-fA-F]{4}")
    for found in pairs.finditer(body):
        if len(found[0]) == len(rb"\uD800") and found[0][2:3] in b"dD" and found[0][3:4] in b"89abcdefABCDEF":
            return found.start()
    return None
