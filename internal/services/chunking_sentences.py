"""Where sentences end in Chinese and English, and where a text may be cut at all."""

import re
import unicodedata
from collections.abc import Iterator

_CLOSERS = "\"'”’」』）)]】》〉»›"
# A terminator with whatever closes after it; a line end always ends a sentence.
_END = re.compile(rf"(?:[。！？!?…；]+|\.+)[{re.escape(_CLOSERS)}]*|\n+")
_ABBREVIATIONS = frozenset(
    """
    mr mrs ms dr prof sr jr st vs etc e.g i.e cf al fig figs no nos vol vols ed eds pp p ch sec eq eqs ref refs dept inc
    ltd co corp approx est min max gen col lt sgt capt rev hon gov sen rep ave blvd rd jan feb mar apr jun jul aug sep
    sept oct nov dec mon tue wed thu fri sat sun u.s u.k u.n a.m p.m ph.d
    """.split()
)
_WORD_BEFORE = re.compile(r"[\w.]+\Z")
MAX_FLAGS = 512  # halves of flags that are looked at in a row; even
_ZWJ = "\u200d"
_REGIONAL = ("\U0001f1e6", "\U0001f1ff")
_SKIN = ("\U0001f3fb", "\U0001f3ff")
_TAGS = ("\U000e0020", "\U000e007f")


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, without the blanks around them."""
    return [text[start:end] for start, end in spans(text)]


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each sentence; between them there are only blanks."""
    start = 0
    for match in _END.finditer(text):
        if match.end() <= start or not _is_end(text, match):
            continue
        yield from _trimmed(text, start, match.end())
        start = match.end()
    yield from _trimmed(text, start, len(text))


def can_cut(text: str, index: int) -> bool:
    """True when no grapheme (an emoji family, a flag, a letter with its accents) spans `index`."""
    if index <= 0 or index >= len(text):
        return True
    before, after = text[index - 1], text[index]
    if _ZWJ in (before, after) or (before == "\r" and after == "\n"):
        return False
    if unicodedata.category(after) in ("Mn", "Me", "Mc"):
        return False
    if _SKIN[0] <= after <= _SKIN[1] or _TAGS[0] <= after <= _TAGS[1]:
        return False
    if _hangul(before, after):
        return False
    if _is_regional(before) and _is_regional(after):
        first = index
        while first > max(0, index - MAX_FLAGS) and _is_regional(text[first - 1]):
            first -= 1
        return (index - first) % 2 == 0
    return True


def _is_end(text: str, match: re.Match[str]) -> bool:
    """Tells a full stop from the points in 3.14, e.g., U.S., J. Smith and file.txt."""
    mark = text[match.start()]
    if mark != ".":
        # An English mark inside a word or an address isn't an end: "Yahoo!Mail", "?q=1".
        return mark not in "!?" or match.end() == len(text) or not _is_ascii_word(text[match.end()])
    if match.end() == len(text):
        return True
    following = text[match.end()]
    if not following.isspace():
        # "完了.下一句": a point before a Chinese character.
        return "\u4e00" <= following <= "\u9fff" and not text[match.start() - 1 : match.start()].isdigit()
    if following == "\n":
        return True
    word = _WORD_BEFORE.search(text, max(0, match.start() - 20), match.start())
    last = word[0].lower() if word else ""
    rest = text[match.end() : match.end() + 8].lstrip()
    if match[0] == "." and (last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i")):
        return False
    return not rest[:1].islower()


def _is_ascii_word(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char in "=&/_-")


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end


def _is_regional(char: str) -> bool:
    return _REGIONAL[0] <= char <= _REGIONAL[1]


def _hangul(before: str, after: str) -> bool:
    """Korean syllables written as their letters."""
    vowel_or_tail = "\u1160" <= after <= "\u11ff"
    return vowel_or_tail and ("\u1100" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3")
