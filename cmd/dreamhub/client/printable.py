"""Text of documents, names and servers made harmless for a terminal.

A document may hold escape sequences that rewrite the screen, and characters that turn the reading direction round;
both are shown as their code instead of being obeyed.
"""

import re

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    r"\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"  # invisible, or changing the direction
    r"\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""`text` with tabs and line breaks as they are and other control characters as `\x1b` or `\u202e`."""
    return _UNSAFE.sub(_code, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The same on a single line, for names and errors."""
    return " ".join(printable(text).split())


def _code(match: re.Match[str]) -> str:
    number = ord(match.group())
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
