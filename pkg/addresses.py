"""Addresses in settings: of which form each must be. Whether anybody is there is asked later."""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, SecretStr


def _wanted(form: str, fits: Callable[[SplitResult], bool], *words: str) -> AfterValidator:
    """Passes what is empty, one of `words`, or fits; the ValueError says which form is wanted and never the value."""

    def check(value: str | SecretStr) -> str | SecretStr:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text and text not in words and not _fits(text, fits):
            raise ValueError(f"want {form}")
        return value

    return AfterValidator(check)


def _fits(text: str, fits: Callable[[SplitResult], bool]) -> bool:
    try:
        parts = urlsplit(text)
        return parts.port != 0 and fits(parts)
    except ValueError:  # a port that is no number, half of an IPv6 address
        return False


def _socket(parts: SplitResult) -> bool:
    return parts.scheme == "unix" and parts.path.startswith("/")


def _host(parts: SplitResult, *schemes: str) -> bool:
    return parts.scheme in schemes and bool(parts.hostname)


def _folder(parts: SplitResult) -> bool:
    return parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/")


WebAddress = Annotated[
    str, _wanted("http://host:port/v1 or https://host/v1", lambda parts: _host(parts, "http", "https"))
]
RedisAddress = Annotated[
    SecretStr,
    _wanted(
        "redis://:password@host:port/0, rediss://… or unix:///path",
        lambda parts: parts.scheme in ("redis", "rediss") or _socket(parts),
    ),
]
BlobsAddress = Annotated[
    str,
    _wanted("file:///dir or s3://bucket?endpoint=…&region=…", lambda parts: _folder(parts) or _host(parts, "s3")),
]
ModelsAddress = Annotated[
    str, _wanted("http://host:port or unix:/path", lambda parts: _host(parts, "http", "https") or _socket(parts))
]
ScannerAddress = Annotated[
    str, _wanted("unix:/path, tcp://host:port or off", lambda parts: _host(parts, "tcp") or _socket(parts), "off")
]
