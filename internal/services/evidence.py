"""How well retrieved passages answer a question, judged without a model that writes.

E5's cosines lie in a narrow band (about .75 to .9) that shifts with the language. So question and sentences are first
centred on neutral sentences of their own language (removing a language's mean: Libovický et al., How
Language-Neutral is Multilingual BERT?, 2019), which also makes cosines across languages comparable: questions that
the documents answer and questions on other subjects part with an AUC of .95 instead of .81 there.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from internal.entities.conversations import Passage
from internal.services.terms import TermAnalyser

Vectors = npt.NDArray[np.float32]
Sentences = Callable[[str], list[str]]
Neutral = Mapping[str, Vectors]

MOST_PASSAGES = 6
SENTENCES_A_PASSAGE = 12
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
LETTER = re.compile(r"[^\W\d_]")
FUNCTION_CHARACTERS = frozenset("的了是在和与有什么哪谁多少如何怎样为几吗呢于其被对些个及由以将中之这那它他她我你们")

BACKGROUND = {
    "en": (
        "The meeting starts at nine in the main hall.",
        "Please keep the receipt for your records.",
        "The river flows from the mountains to the sea.",
        "She bought two loaves of bread and some cheese.",
        "The engine is cooled by water.",
        "Results are shown in the table below.",
        "Members elect the chair every two years.",
        "The patient was given the drug for six weeks.",
        "The function returns an empty list.",
        "Prices rose slightly in the third quarter.",
        "He was born in a small village and later moved to the city.",
        "Press the button to start the machine.",
        "All rights and duties pass to the buyer.",
        "The bird builds its nest in trees.",
        "Our team won the match by one goal.",
        "The new law applies from next year.",
    ),
    "zh": (
        "会议上午九点在大厅开始。",
        "请保留收据以备查验。",
        "河水从山上流向大海。",
        "她买了两个面包和一些奶酪。",
        "发动机用水冷却。",
        "结果见下表。",
        "成员每两年选举一次主席。",
        "患者服药六周。",
        "该函数返回一个空列表。",
        "第三季度价格略有上涨。",
        "他出生在一个小村庄，后来搬到城市。",
        "按下按钮启动机器。",
        "一切权利和义务转移给买方。",
        "这种鸟在树上筑巢。",
        "我们队以一球之差赢得比赛。",
        "新法律自明年起施行。",
    ),
}


REQUEST = re.compile(
    r"^(?:please\s+)?(?:(?:can|could|would|will)\s+you\s+)?(?:please\s+)?"
    r"(?:(?:tell|show|give|remind)\s+(?:me|us)|explain|describe|summari[sz]e|i\s+(?:want|would\s+like)\s+to\s+know)\b"
    r"(?:\s+(?:everything|something|anything|more|all)\b)?(?:\s+(?:about|on)\b)?\s*"
    r"|^请?[你您]?(?:告诉我|给我介绍|(?:介绍|说明|解释)一下)(?:一下)?(?:关于)?",
    re.IGNORECASE,
)
LONGEST_TITLE = 40
MOST_TITLE_WORDS = 5
SAYS_SOMETHING = re.compile(r"[\d.!?:;。！？：；，,=|零〇一二三四五六七八九十百千万]")


BAR = {"en": 18.3, "zh": 13.8}
"""What the evidence must outweigh among MANY passages, by the language of question and passages."""
FEW, MANY = 4, 300
NAMESAKE = 8.0
"""What weighs against an answer where none of the FIRST passages has the numbers of the question: they are on another
year, another part, another model of the same."""
FIRST = 3
DIGITS = re.compile(r"\d+")
COUNT = re.compile(r"(?<!\d)\d{1,2}\s+(?:[a-z]+\s+)?[a-z]{3,}s\b|(?<!\d)\d{1,2}\s*[个条种项步点位名家次]")
"""How many of something are asked for; nobody writes "3 reasons" above three reasons."""
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
SHORT_YEAR = re.compile(r"(?:\bFY\s?|['\u2019])(\d\d)(?!\d)", re.IGNORECASE)
YEARS = re.compile(r"(?<![\d-])((?:19|20)\d\d)\s?[-\u2013/]\s?(\d\d)(?![\d-])")
PIVOT = 70
"""A year of two digits is one of the last century from this on."""
DATE = re.compile(
    r"((?:19|20)\d\d)[-/.]\d{1,2}[-/.]\d{1,2}(?!\d)"
    r"|((?:19|20)\d\d)\s*年\s*\d{1,2}\s*月(?:\s*\d{1,2}\s*[日号])?"
)
HAN_YEAR = re.compile(r"[〇零一二三四五六七八九]{4}(?=年)")
HAN_ORDINAL = re.compile(r"(?<=第)[一二三四五六七八九](?![十百千])")
HAN_DIGITS = str.maketrans("〇零一二三四五六七八九", "00123456789")


class Candidate(msgspec.Struct, frozen=True):
    """A sentence that may answer: its place in the passage, and the share of the question's terms that it has."""

    text: str
    passage: Passage
    place: int
    coverage: float


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What speaks for an answer: the best centred cosine, how far it stands above the rest, and common terms.

    `asked_in` is the language of the question. `namesake` says that it has numbers that the first passages haven't.
    """

    relevance: float
    above_rest: float
    sentence_coverage: float
    passage_coverage: float
    crosses_languages: bool
    asked_in: str = "en"
    namesake: bool = False

    def confidence(self, extent: int, coverage: float) -> float:
        """Log-odds that the passages, the best of `extent`, answer a question that stands alone.

        `coverage` is the share of the question's terms that the best one has, the rarer the heavier (see the search).
        It tells much, and the more passages there are, the less does a likeness mean that the best of them has by
        chance; but among a few nobody knows which words are rare. So it is one fit among MANY, on public questions,
        each once among passages that answer it and once among as many (160 to 430) that answer others of its set: rgb
        in English refuses .87 of the latter and .06 of the former, in Chinese .96 and .03, docqa_zh, whose questions
        are on few subjects, .82 and .14; another among FEW; and between them what lies between. A namesake weighs
        against all of it: with it rgb in English, asked through the API, refuses .92 and .10, without it .80 and .09.
        """
        if self.crosses_languages:  # no words in common: the cosines alone decide, and less surely
            return 13.0 * self.relevance + 30.0 * self.above_rest - 10.9
        words = 10.9 * coverage + 1.5 * self.sentence_coverage + 3.4 * self.passage_coverage
        among_many = 4.8 * self.relevance + 12.2 * self.above_rest + words - BAR[self.asked_in]
        among_many -= NAMESAKE * self.namesake
        share = math.log(min(max(extent, FEW), MANY) / FEW) / math.log(MANY / FEW)
        return share * among_many + (1 - share) * self.plausibility()

    def plausibility(self) -> float:
        """The same among FEW, and for what is more than half expected to answer: the user's own words, and questions
        that lean on the ones before them."""
        if self.crosses_languages:
            return self.confidence(FEW, 0.0)
        covered = self.sentence_coverage + self.passage_coverage
        return 5.4 * self.relevance + 16.8 * self.above_rest + 3.0 * covered - 10.2


def language(text: str) -> str:
    """`zh` when Chinese characters are a fair part of the letters, else `en`."""
    letters = len(LETTER.findall(text))
    return "zh" if letters and len(HAN.findall(text)) >= 0.2 * letters else "en"


def content_terms(analyser: TermAnalyser, text: str) -> frozenset[str]:
    """The terms that carry meaning: words, and pairs of Chinese characters without function characters."""
    found = analyser.terms(text)
    kept = frozenset(
        term for term in found if not HAN.match(term) or (len(term) == 2 and FUNCTION_CHARACTERS.isdisjoint(term))
    )
    return kept or frozenset(found)


def subject(question: str) -> str:
    """What is asked for, without the words that only ask, as in "Tell me about"; they stand in no answer."""
    return REQUEST.sub("", question.strip(), count=1) or question


def coverage(wanted: frozenset[str], terms: frozenset[str]) -> float:
    """Share of the wanted terms that are there; 0 when nothing is wanted."""
    return len(wanted & terms) / len(wanted) if wanted else 0.0


def candidates(analyser: TermAnalyser, split: Sentences, question: str, passages: Sequence[Passage]) -> list[Candidate]:
    """The sentences worth embedding: of each of the best passages those with most of the question's terms."""
    wanted = content_terms(analyser, question)
    found: list[Candidate] = []
    for passage in passages[:MOST_PASSAGES]:
        mine = [
            Candidate(text.strip(), passage, place, coverage(wanted, content_terms(analyser, text)))
            for place, text in enumerate(split(passage.text))
            if LETTER.search(text) and not is_title(text)
        ]
        mine.sort(key=lambda item: (-item.coverage, item.place))
        found += mine[:SENTENCES_A_PASSAGE]
    return found


def is_title(text: str) -> bool:
    """A short line without an end mark or a number: it names what follows, and answers nothing itself."""
    bare = text.strip()
    return len(bare) <= LONGEST_TITLE and not SAYS_SOMETHING.search(bare) and len(bare.split()) <= MOST_TITLE_WORDS


def centred(vectors: Vectors, mean: Vectors) -> Vectors:
    """Unit vectors around a language's mean; any leading shape."""
    moved = vectors - mean
    return moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-6)


def relevances(query: Vectors, asked_in: str, vectors: Vectors, written_in: Sequence[str], neutral: Neutral) -> Vectors:
    """Centred cosines of shape (texts,). `neutral` has the vectors of BACKGROUND for every language that occurs."""
    means = {tongue: rows.mean(axis=0) for tongue, rows in neutral.items()}
    around = np.stack([means[tongue] for tongue in written_in])
    return centred(vectors, around) @ centred(query, means[asked_in])


def weigh(
    analyser: TermAnalyser,
    question: str,
    found: Sequence[Candidate],
    relevance: Vectors,
    background: Vectors,
) -> Evidence:
    """Judges `found`, whose centred cosines are `relevance`; `background` are those of neutral sentences in the
    language of the best one. Both have one dimension; `found` isn't empty."""
    best = int(np.argmax(relevance))
    wanted = content_terms(analyser, question)
    passages = {item.passage.number: item.passage.text for item in found}
    return Evidence(
        relevance=float(relevance[best]),
        # The background counts among the rest, or a short document, all of it apt, would stand out from nothing.
        above_rest=float(relevance[best] - np.concatenate([relevance, background]).mean()),
        sentence_coverage=max(item.coverage for item in found),
        passage_coverage=max(coverage(wanted, content_terms(analyser, text)) for text in passages.values()),
        crosses_languages=language(question) != language(found[best].text),
        asked_in=language(question),
        namesake=_is_namesake(question, [item.passage for item in found]),
    )


def _is_namesake(question: str, passages: Sequence[Passage]) -> bool:
    """Whether none of the first passages has every number of the question, in its text, its heading or its name."""
    # A month has a name and a number: of a date only the year is wanted.
    asked = DATE.sub(r" \1\2 ", unicodedata.normalize("NFKC", question))
    wanted = numbers(COUNT.sub(" ", asked))
    first = {item.number: item for item in passages if item.number <= FIRST}
    told = (f"{item.filename} {item.location.heading or ''} {item.text}" for item in first.values())
    return bool(wanted) and not any(wanted <= numbers(text) for text in told)


def numbers(text: str) -> frozenset[str]:
    """What of it is written in digits, without leading zeros; years of two digits ("FY21", "2020-21") as the whole
    years that they stand for, Chinese years and ordinals as digits."""
    flat = THOUSANDS.sub("", unicodedata.normalize("NFKC", text))
    flat = HAN_ORDINAL.sub(_digits, HAN_YEAR.sub(_digits, flat))
    flat = SHORT_YEAR.sub(lambda found: f" {_whole_year(found[1])} ", YEARS.sub(_both_years, flat))
    return frozenset(found.lstrip("0") or "0" for found in DIGITS.findall(flat))


def _digits(found: re.Match[str]) -> str:
    return found[0].translate(HAN_DIGITS)


def _both_years(found: re.Match[str]) -> str:
    """The last year of a range is one after the first; what isn't is a month or something else."""
    first, last = int(found[1]), int(found[1][:2] + found[2])
    last += 100 if last < first and found[2] == "00" else 0
    return f"{first} {last}" if (last > first and int(found[2]) > 12) or last == first + 1 else found[0]


def _whole_year(short: str) -> str:
    return ("19" if int(short) >= PIVOT else "20") + short
