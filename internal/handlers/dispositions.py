"""Content-Disposition of a form's part: the field's name and the file's, in whatever encoding the client chose."""

import re
from urllib.parse import unquote_to_bytes

from multipart import parse_content_disposition

RAW = "latin-1"
"""Read so, every byte is a character of the same number, and no header fails before its encoding is known."""
TRIED = ("utf-8", "gb18030")
"""What clients send without saying so; Chinese Windows programs the latter. Latin-1, which takes anything, is last."""
EXTENDED_CHARSETS = {"utf-8": "utf-8", "iso-8859-1": "latin-1"}
EXTENDED = re.compile(r'"(?:[^"\\]|\\.)*"|;\s*filename\*\s*=\s*"?(?P<value>[^";\s]+)', re.IGNORECASE)
"""A quoted string, which is passed over, or `filename*`."""


def names_of(header: str) -> tuple[str, str]:
    """The names of the field and of the file, "" for what isn't there, from a header that was read as RAW.

    Of two names for the file the extended one (RFC 8187) wins: the other is for clients that can't read it.
    """
    text = _decoded(header.encode(RAW))
    _, field, filename = parse_content_disposition(text)
    return field or "", _extended(text) or filename or ""


def _decoded(raw: bytes) -> str:
    for charset in TRIED:
        try:
            return raw.decode(charset)
        except UnicodeDecodeError:
            continue
    return raw.decode(RAW)


def _extended(text: str) -> str | None:
    """The name of `filename*=charset'language'percent-encoded`; None for one that can't be read, as RFC 6266 wants."""
    value = next((found["value"] for found in EXTENDED.finditer(text) if found["value"]), "")
    charset, *rest = value.split("'", 2)
    known = EXTENDED_CHARSETS.get(charset.lower())
    if known is None or len(rest) != 2:
        return None
    try:
        return unquote_to_bytes(rest[1]).decode(known)
    except UnicodeDecodeError:
        return None
