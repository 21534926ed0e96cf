"""What may stand in names that people give: files, tags, collections, keys, conversations, tenants."""

import unicodedata

from pkg.apperr import AppError, Code

MAX_FILENAME = 255
MAX_TAGS = 50
MAX_NAME = 100
"""Of tags and collections."""
MAX_TITLE = 200
"""Of keys, conversations and tenants."""
# Right-to-left overrides and zero-width marks make a name look like another one (invoice_fdp.exe).
DECEIVING = frozenset("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")


def check_filename(given: str) -> str:
    """The last part of a path, as data only. Raises FILE_NAME_INVALID for control characters and empty names."""
    _refuse_control(given, Code.FILE_NAME_INVALID, "file name")
    last = given.replace("\\", "/").rsplit("/", 1)[-1].strip()
    name = shown(last)
    if not name.strip(". "):
        raise AppError(Code.FILE_NAME_INVALID, "The file has no name; give it one.")
    if len(name) > MAX_FILENAME:
        raise AppError(Code.FILE_NAME_INVALID, f"The file name is longer than {MAX_FILENAME} characters; shorten it.")
    return name


def shown(text: str) -> str:
    """Marks that make a name look like another one, as escapes."""
    return "".join(f"\\u{ord(char):04x}" if char in DECEIVING else char for char in text)


def printable(name: str) -> str:
    """A name that was refused, fit to be shown: what isn't printable as escapes, cut at MAX_FILENAME."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in name)[:MAX_FILENAME]


def check_tags(tags: list[str]) -> list[str]:
    """Trimmed, without repeats, in the order given. Raises REQUEST_INVALID."""
    if len(tags) > MAX_TAGS:
        raise AppError(Code.REQUEST_INVALID, f"A document has at most {MAX_TAGS} tags.")
    return list(dict.fromkeys(check_name(tag, "tag") for tag in tags))


def check_name(text: str, what: str, *, shortest: int = 1, longest: int = MAX_NAME) -> str:
    """Trimmed. Raises REQUEST_INVALID, which calls the name `what`."""
    _refuse_control(text, Code.REQUEST_INVALID, what)
    trimmed = text.strip()
    if not shortest <= len(trimmed) <= longest:
        raise AppError(Code.REQUEST_INVALID, f"A {what} has {shortest} to {longest} characters.")
    return trimmed


def _refuse_control(text: str, code: Code, what: str) -> None:
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise AppError(code, f"The {what} holds control characters; remove them.")
