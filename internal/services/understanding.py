"""What a query asks for besides its meaning: exact words in quotation marks, files by their names, dates.

No model is asked. What isn't recognised is only searched for as it stands.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import TypeVar
from uuid import UUID

import msgspec
import numpy as np

from internal.entities.search import SearchHit
from internal.services.terms import TOKEN, fold, is_unspaced

T = TypeVar("T")

MOST_PHRASES = 4
MOST_NAMES = 4
MOST_DAYS = 2
LONGEST_NAME = 200
SHORTEST_TITLE = 2

QUOTED = re.compile(r'"([^"\n]{2,300})"|“([^“”\n]{2,300})”|「([^「」\n]{2,300})」|『([^『』\n]{2,300})』')
TITLED = re.compile(r"《([^《》\n]{1,200})》")
# What documents are uploaded as; a word such as "Node.js" names no file of ours.
ENDING = re.compile(
    r"\.(?:pdf|docx?|pptx?|xlsx?|odt|ods|odp|epub|html?|md|markdown|txt|csv|tsv|json|xml|eml|msg|rtf|pages|vtt|srt"
    r"|png|jpe?g|gif|webp|tiff?|bmp|heic|mp3|wav|m4a|ogg|flac|aac|mp4|mov|mkv|webm|avi|zip)(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
IN_NAME = re.compile(r"[\w-]")

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH_NAMES = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
NAMED_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
YEAR = r"((?:19|20)\d\d)"
HAN_DIGITS = "〇零一二三四五六七八九"
HAN_YEAR = rf"([{HAN_DIGITS}]{{4}}|(?:19|20)\d\d)"
HAN_NUMBER = r"(\d{1,2}|[一二三四五六七八九十]{1,3})"
NUMERIC = re.compile(rf"(?<![\d.-]){YEAR}([-/.])(\d{{1,2}})\2(\d{{1,2}})(?![\d-])|(?<![\d.-]){YEAR}-(\d\d)(?![\d-])")
CHINESE = re.compile(rf"(?<!\d){HAN_YEAR}\s*年\s*{HAN_NUMBER}\s*月(?:\s*{HAN_NUMBER}\s*[日号])?")
MONTH_FIRST = re.compile(rf"\b{NAMED_MONTH}(?:\s+(\d{{1,2}})(?:st|nd|rd|th)?)?(?:\s*,\s*|\s+){YEAR}\b", re.IGNORECASE)
DAY_FIRST = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{NAMED_MONTH},?\s+{YEAR}\b", re.IGNORECASE)


class Day(msgspec.Struct, frozen=True, order=True):
    """A day, or with `day` 0 a whole month."""

    year: int
    month: int
    day: int = 0

    def covers(self, other: "Day") -> bool:
        """Whether the other lies in it."""
        return (self.year, self.month) == (other.year, other.month) and self.day in (0, other.day)

    @property
    def written(self) -> tuple[str, ...]:
        """How documents write it: Chinese, ISO 8601, English."""
        name = MONTH_NAMES[self.month - 1]
        if not self.day:
            return f"{self.year}年{self.month}月", f"{self.year}-{self.month:02}", f"{name} {self.year}"
        return (
            f"{self.year}年{self.month}月{self.day}日",
            f"{self.year}-{self.month:02}-{self.day:02}",
            f"{name} {self.day}, {self.year}",
        )


class Wanted(msgspec.Struct, frozen=True):
    """What passages have to satisfy to come first: `phrases` to hold word for word, `days` to tell of.

    `files` are the query's words up to the ending of a file name, whose end is that name; `titles` stand in names. Both
    are in lower case, in compatible forms and as the query has them: a file may be called either.
    """

    phrases: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    days: tuple[Day, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.phrases or self.files or self.titles or self.days)


def understand(query: str) -> Wanted:
    """What the query asks for, as far as its form shows it."""
    text = unicodedata.normalize("NFKC", query)
    quoted = ["".join(groups) for groups in QUOTED.findall(query)]
    titles = _first((title for title in TITLED.findall(query) if len(plain(title)) >= SHORTEST_TITLE), MOST_NAMES)
    return Wanted(
        phrases=_first((phrase.strip() for phrase in quoted if flat(phrase) and not _is_file(phrase)), MOST_PHRASES),
        files=tuple(dict.fromkeys((*_files(text), *_files(query)))),
        titles=tuple(dict.fromkeys((*map(plain, titles), *(title.strip().lower() for title in titles)))),
        days=_first(dates(text), MOST_DAYS),
    )


def _files(query: str) -> tuple[str, ...]:
    """The words up to the ending of each file's name."""
    return _first((query[: match.end()].lower()[-LONGEST_NAME:] for match in ENDING.finditer(query)), MOST_NAMES)


def plain(name: str) -> str:
    """A file's name or title as such are compared: compatible forms and case made alike."""
    return unicodedata.normalize("NFKC", name).strip().lower()


def meant(wanted: Wanted, filenames: Mapping[UUID, str]) -> frozenset[UUID]:
    """The documents that the query names. A title stands in the name; of names that end a query's words the longest
    counts, as of "report 2023.pdf" the file "2023.pdf" isn't meant if there is the other."""
    known = {document: plain(name) for document, name in filenames.items()}
    found = {document for document, name in known.items() for title in wanted.titles if title in name}
    for words in wanted.files:
        fitting = {document: len(name) for document, name in known.items() if _ends_with(words, name)}
        longest = max(fitting.values(), default=0)
        found.update(document for document, length in fitting.items() if length == longest)
    return frozenset(found)


def _ends_with(words: str, name: str) -> bool:
    """Whether the words end with the name, which doesn't begin within one of them; Chinese has no blanks to tell."""
    ahead = words[: -len(name)][-1:] if words.endswith(name) else ""
    return words.endswith(name) and not (ahead.isascii() and IN_NAME.match(ahead) and IN_NAME.match(name[0]))


def dates(text: str) -> list[Day]:
    """Days and months that a text tells of, in the order of their kinds; 05/03/2024 is told by none of them, for it is
    a day in May to some and in March to others."""
    found: list[Day | None] = []
    for year, _, month, day, other_year, other_month in NUMERIC.findall(text):
        found.append(_day(year or other_year, month or other_month, day or "0"))
    found += [_day(year, month, day or "0") for year, month, day in CHINESE.findall(text)]
    found += [_day(year, name, day) for day, name, year in DAY_FIRST.findall(text)]
    # "5 March 2024" holds "March 2024", too.
    found += [_day(year, name, day or "0") for name, day, year in MONTH_FIRST.findall(DAY_FIRST.sub(" ", text))]
    return list(dict.fromkeys(day for day in found if day is not None))


def flat(text: str) -> str:
    """The words of a text, each between blanks; every character of a script without spaces counts as one.

    So a phrase is held by a text if the flat form of the one stands in that of the other, whatever the punctuation,
    the width, the case and the kind of Chinese characters.
    """
    parts: list[str] = []
    for token in TOKEN.findall(fold(text)):
        parts.extend(token if is_unspaced(token[0]) else (token,))
    return f" {' '.join(parts)} " if parts else ""


def holding(phrase: str, hits: Sequence[SearchHit]) -> list[SearchHit]:
    """The hits whose text holds the phrase."""
    wanted = flat(phrase)
    return [hit for hit in hits if wanted in flat(hit.text)]


def in_notations(query: str, wanted: Wanted) -> list[str]:
    """The query's dates as other documents write them, each with the rest of the query."""
    rest = unicodedata.normalize("NFKC", query)
    for pattern in (NUMERIC, CHINESE, DAY_FIRST, MONTH_FIRST):
        rest = pattern.sub(" ", rest)
    return [f"{' '.join(rest.split())} {form}".strip() for day in wanted.days for form in day.written]


def told(wanted: Wanted, text: str) -> bool:
    """Whether a passage tells of a day that is asked for."""
    return any(day.covers(other) for other in dates(unicodedata.normalize("NFKC", text)) for day in wanted.days)


def better(hits: Sequence[SearchHit], others: Sequence[SearchHit]) -> list[SearchHit]:
    """The hits of two wordings of one question, each as the better one found it, best first."""
    best: dict[UUID, SearchHit] = {}
    for hit in (*hits, *others):
        if hit.chunk_id not in best or hit.score > best[hit.chunk_id].score:
            best[hit.chunk_id] = hit
    return sorted(best.values(), key=lambda hit: -hit.score)


def in_tiers(
    wanted: Wanted, hits: Sequence[SearchHit], further: Sequence[Sequence[SearchHit]], named: frozenset[UUID]
) -> list[SearchHit]:
    """`hits` in tiers by how many of the phrases they hold and whether their document is of `named`, highest first.

    Of `further`, which were found by other words, those are added that are in a tier, behind its others. The scores of
    a tier lie above those of the next, from 0 to 1 in all, in so far as they did before.
    """
    phrases = [flat(phrase) for phrase in wanted.phrases]
    tiers: dict[int, list[SearchHit]] = {}
    known: set[UUID] = set()
    for place, some in enumerate((hits, *further)):
        for hit in some:
            text = flat(hit.text) if phrases else ""
            tier = sum(phrase in text for phrase in phrases) + (hit.document_id in named)
            if hit.chunk_id in known or (place and not tier):
                continue
            known.add(hit.chunk_id)
            tiers.setdefault(tier, []).append(hit)
    if not any(tiers):
        return list(hits)
    highest, greatest = max(tiers), max((1.0, *(hit.score for hit in hits)))
    made: list[SearchHit] = []
    for tier in sorted(tiers, reverse=True):
        # Those that were found by other words have scores of other words: what counts is the order.
        scores = np.minimum.accumulate([min(1.0, max(0.0, hit.score / greatest)) for hit in tiers[tier]]).tolist()
        made += [
            msgspec.structs.replace(hit, score=(tier + score) / (highest + 1))
            for hit, score in zip(tiers[tier], scores, strict=True)
        ]
    return made


def _first(found: Iterable[T], most: int) -> tuple[T, ...]:
    """The first of each kind."""
    return tuple(dict.fromkeys(found))[:most]


def _is_file(phrase: str) -> bool:
    return ENDING.search(phrase) is not None


def _day(year: str, month: str, day: str) -> Day | None:
    """None for a day that no calendar has."""
    found = Day(_number(year), _number(month), _number(day))
    try:
        date(found.year, found.month, found.day or 1)
    except ValueError:
        return None
    return found


def _number(written: str) -> int:
    """Of digits, of Chinese digits (a year) or numerals up to 99, or of the name of a month."""
    if written.isdecimal():
        return int(written)
    if written[:3].lower() in MONTHS:
        return MONTHS.index(written[:3].lower()) + 1
    if len(written) == 4 and "十" not in written:
        return int("".join(str(max(0, HAN_DIGITS.index(digit) - 1)) for digit in written))
    tens, _, ones = written.rpartition("十")
    value = HAN_DIGITS.index(ones) - 1 if ones else 0
    if "十" in written:
        value += 10 * (HAN_DIGITS.index(tens) - 1 if tens else 1)
    return value
