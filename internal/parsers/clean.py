"""Makes any decoded string safe to store and pleasant to quote."""

import re
import unicodedata

_LINE_ENDS = re.compile(r"\r\n?|[\u2028\u2029\x0b\x0c\x85]")
# C0 and C1 controls but tab and newline, lone surrogates, noncharacters, BOM, soft hyphen, and bidi overrides that
# could make a quote read differently from what it says.
_FORBIDDEN = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\ufeff\u00ad\u202a-\u202e\u2066-\u2069]"
)
_SPACES = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f\u205f\u3000]+")
_AROUND_NEWLINE = re.compile(r" *\n *")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean(text: str) -> str:
    """Text without NUL, controls, lone surrogates and soft hyphens, in NFC, with plain line ends."""
    text = _LINE_ENDS.sub("\n", text)
    return unicodedata.normalize("NFC", _FORBIDDEN.sub("", text))


def flow(text: str) -> str:
    """Clean running text: runs of blanks become one, no blanks at line ends, at most one empty line."""
    text = _AROUND_NEWLINE.sub("\n", _SPACES.sub(" ", clean(text)))
    return _BLANK_LINES.sub("\n\n", text).strip()


def one_line(text: str) -> str:
    """Clean text on a single line, for headings, table cells and metadata."""
    return " ".join(clean(text).split())


def is_cjk(char: str) -> bool:
    """True for characters of scripts that are written without spaces, and their punctuation."""
    return (
        "\u3000" <= char <= "\u30ff"
        or "\u3400" <= char <= "\u4dbf"
        or "\u4e00" <= char <= "\u9fff"
        or "\uf900" <= char <= "\ufaff"
        or "\uff00" <= char <= "\uffef"
        or "\U00020000" <= char <= "\U0003ffff"
    )


def join_lines(first: str, second: str) -> str:
    """Joins two lines of one paragraph: no space between Chinese characters, hyphens at line ends resolved."""
    if not first or not second:
        return first + second
    if first[-1] in "\u00ad\x02\ufffe":
        return first[:-1] + second
    if first[-1] == "-" and len(first) > 1 and first[-2].isalpha():
        # "exam-" + "ple" is one word; "Jean-" + "Luc" and "COVID-" + "19" keep their hyphen.
        return (first[:-1] if second[0].islower() else first) + second
    return first + ("" if is_cjk(first[-1]) and is_cjk(second[0]) else " ") + second
