"""What an endpoint's response headers tell of its rate limits. Each is optional, and none is trusted far.

OpenAI documents `x-ratelimit-limit-…`, `-remaining-…` and `-reset-…` for `requests` and `tokens`, the last as "1s" or
"6m0s" (Rate limits, "Rate limits in headers"). Azure sends the same, its reset as whole seconds, and -1 for what it
doesn't count (openai-dotnet issue 838). `retry-after-ms` is Azure's, and known to OpenAI's client libraries.
"""

import email.utils
import re
import time
from collections.abc import Mapping

import msgspec

LONGEST_ASKED = 86_400.0
"""Seconds, of what an endpoint may ask for when it refuses a call."""
LONGEST_RESET = 120.0
"""Seconds, of what is believed of a reset ahead of any refusal: a wrong header costs no more than that at a time."""

COUNT = re.compile(r"\d{1,12}", re.ASCII)
NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)
SPAN = re.compile(
    r"(?=\d)(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?", re.ASCII
)


class Allowance(msgspec.Struct, frozen=True):
    """Of requests or of tokens: how many there may be, how many are left, and seconds until all are there again."""

    limit: int
    left: int
    reset: float


class Told(msgspec.Struct, frozen=True):
    """What a response told; None for what it didn't, or not in a form that makes sense."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


def told_by(headers: Mapping[str, str]) -> Told:
    """Reads the headers of any response; names are in lower case, or the mapping doesn't mind."""
    return Told(_allowance(headers, "requests"), _allowance(headers, "tokens"))


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asked to wait, as a number or as a date by its own clock; None where it didn't."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if NUMBER.fullmatch(milliseconds):
        return min(float(milliseconds) / 1000, LONGEST_ASKED)
    value = headers.get("retry-after", "").strip()
    if NUMBER.fullmatch(value):
        return min(float(value), LONGEST_ASKED)
    then = _date(value)
    if then is None:
        return None
    now = _date(headers.get("date", ""))
    return min(max(0.0, then - (time.time() if now is None else now)), LONGEST_ASKED)


def span(text: str) -> float | None:
    """Seconds of "1m30s", "250ms", "6m0s", "1h2m" or a plain number of seconds; None for anything else."""
    text = text.strip()
    if NUMBER.fullmatch(text):
        return float(text)
    found = SPAN.fullmatch(text)
    if found is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _allowance(headers: Mapping[str, str], what: str) -> Allowance | None:
    """None unless what is left and the reset are told: without a reset nobody knows how long to wait."""
    left = _count(headers.get(f"x-ratelimit-remaining-{what}", ""))
    reset = span(headers.get(f"x-ratelimit-reset-{what}", ""))
    if left is None or reset is None:
        return None
    limit = _count(headers.get(f"x-ratelimit-limit-{what}", "")) or max(left, 1)
    return Allowance(limit, min(left, limit), min(reset, LONGEST_RESET))


def _count(text: str) -> int | None:
    text = text.strip()
    return int(text) if COUNT.fullmatch(text) else None


def _date(text: str) -> float | None:
    """An HTTP date as seconds since 1970, None for anything else."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
