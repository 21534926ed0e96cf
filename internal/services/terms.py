"""Turns text into the terms that keyword search counts, for English, Chinese and whatever else is mixed with them.

Words are folded (NFKC, case, accents) and stemmed as English; stop words are left out. Scripts that put no spaces
between words give their characters and their adjacent pairs, so that any substring of a sentence finds it. Traditional
characters count as simplified ones, one by one: what that makes alike (後 and 后) is alike in texts and queries.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from functools import cache, lru_cache
from itertools import pairwise
from uuid import UUID

import opencc
import Stemmer

from internal.entities.search import TERM_SPACE, ChunkTerms, QueryTerms

MOST_TERMS = 16_000
"""Non-zero elements that a sparse vector holds."""
MOST_QUERY_TERMS = 256
LONGEST_WORD = 64

# Han, kana, Hangul, Thai, Lao, Burmese, Khmer: written without spaces, or with spaces that don't part words.
UNSPACED = (
    "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3040-\u30ff\uac00-\ud7af\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
TOKEN = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+(?:'[^\W_{UNSPACED}]+)?")
# 2,450 or 1,234,567.89: what stands between the commas are words of their own, and the number without them is one too.
GROUPED = re.compile(r"(?<!\d)(?<!\d[.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
FIRST_UNSPACED = "\u0e00"
DROPPED_MARKS = dict.fromkeys(range(0x300, 0x370)) | {0x2019: "'"}

STOP_WORDS = frozenset(
    """
    a an and are as at be been but by can could did do does for from had has have he her his how i if in into is
    it its me my no not of on or our she should so such than that the their them then there these they this to us
    was we were what when where which who whom whose why will with would you your
    """.split()
)


# Where a traditional character may stand: the unified ideographs with their extensions A to E.
IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x2EBE1))


@cache
def _simplified() -> dict[int, str]:
    """Each of 4,600 traditional characters and the simplified one for it, by OpenCC's table of characters."""
    characters = [chr(code) for start, end in IDEOGRAPHS for code in range(start, end)]
    # A line each, so that no two of them are read as a word.
    found = opencc.OpenCC("t2s").convert("\n".join(characters)).split("\n")
    return {ord(one): other for one, other in zip(characters, found, strict=True) if one != other}


def fold(text: str) -> str:
    """Compatible forms, case, accents and Chinese characters made alike; full-width and half-width letters too."""
    if text.isascii():
        return text.lower()
    bare = unicodedata.normalize("NFKD", text).translate(DROPPED_MARKS)
    return unicodedata.normalize("NFC", bare).casefold().translate(_simplified())


class TermAnalyser:
    """Analyses texts and queries alike. One for each thread: the stemmer isn't shared."""

    def __init__(self) -> None:
        self._stem = lru_cache(maxsize=50_000)(Stemmer.Stemmer("english", 0).stemWord)

    def terms(self, text: str) -> list[str]:
        """Every term, repeated as often as it stands in the text: numbers without their commas, then all in order."""
        folded = fold(text)
        found = [number.replace(",", "") for number in GROUPED.findall(folded)] if "," in folded else []
        for match in TOKEN.finditer(folded):
            token = match.group()
            if token >= FIRST_UNSPACED and is_unspaced(token[0]):
                found.extend(token)
                found.extend(map("".join, pairwise(token)))
            elif token not in STOP_WORDS:
                found.append(self._stem(token[:LONGEST_WORD]) if token.isascii() else token[:LONGEST_WORD])
        return found

    def passage(self, tenant_id: UUID, chunk_id: UUID, text: str) -> ChunkTerms:
        """What the index keeps of a passage; of too many different terms the most frequent."""
        names = self.terms(text)
        counts = _numbered(tenant_id, Counter(names))
        kept = dict(sorted(counts.items(), key=lambda item: -item[1])[:MOST_TERMS])
        ordered = sorted(kept)
        return ChunkTerms(chunk_id=chunk_id, terms=ordered, counts=[kept[term] for term in ordered], length=len(names))

    def query(self, tenant_id: UUID, text: str) -> QueryTerms:
        """What a query asks for; of too many different terms the most frequent."""
        counts = _numbered(tenant_id, Counter(self.terms(text)))
        kept = dict(sorted(counts.items(), key=lambda item: -item[1])[:MOST_QUERY_TERMS])
        return QueryTerms(terms=list(kept), counts=list(kept.values()))


def is_unspaced(character: str) -> bool:
    """Whether it is of a script that puts no spaces between words."""
    return re.match(f"[{UNSPACED}]", character) is not None


def _numbered(tenant_id: UUID, counts: Counter[str]) -> dict[int, int]:
    """Counts by number. The tenant is part of the hash, so that no posting list is shared between tenants."""
    numbered: dict[int, int] = {}
    for name, count in counts.items():
        number = _number(tenant_id, name)
        numbered[number] = numbered.get(number, 0) + count
    return numbered


@lru_cache(maxsize=200_000)
def _number(tenant_id: UUID, name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=tenant_id.bytes).digest()
    return int.from_bytes(digest, "big") % TERM_SPACE + 1
