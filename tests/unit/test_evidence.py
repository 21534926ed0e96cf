"""When the evidence for an answer is enough."""

import msgspec
import numpy as np
import pytest

from internal.entities.conversations import Passage
from internal.entities.ids import new_id
from internal.entities.parsed import Location
from internal.services.evidence import FEW, MANY, Candidate, Evidence, numbers, weigh
from internal.services.late_interaction import likeness
from internal.services.terms import TermAnalyser


def evidence(*, crosses: bool = False, asked_in: str = "en", relevance: float = 0.56) -> Evidence:
    return Evidence(
        relevance=relevance,
        above_rest=0.46,
        sentence_coverage=0.75,
        passage_coverage=0.75,
        crosses_languages=crosses,
        asked_in=asked_in,
    )


def test_what_is_the_best_of_many_has_to_say_more() -> None:
    values = [evidence().confidence(extent, 0.3) for extent in (0, FEW, 20, 100, MANY, 100_000)]
    assert values[0] == values[1] > values[2] > values[3] > values[4] == values[5]
    assert values[0] > 0 > values[5]


@pytest.mark.parametrize("asked_in", ["en", "zh"])
def test_more_of_each_kind_of_evidence_says_more(asked_in: str) -> None:
    usual = evidence(asked_in=asked_in).confidence(MANY, 0.3)
    assert evidence(asked_in=asked_in, relevance=0.6).confidence(MANY, 0.3) > usual
    assert evidence(asked_in=asked_in).confidence(MANY, 0.4) > usual
    assert evidence(asked_in=asked_in).confidence(FEW, 0.4) == evidence(asked_in=asked_in).confidence(FEW, 0.3)
    assert evidence(relevance=0.6).plausibility() > evidence().plausibility()


def test_across_languages_the_number_of_passages_does_not_count() -> None:
    assert evidence(crosses=True).confidence(FEW, 0.1) == evidence(crosses=True).confidence(MANY, 0.9)
    assert evidence(crosses=True).confidence(MANY, 0.5) == evidence(crosses=True).plausibility()


def test_likeness_is_the_mean_of_the_best_cosines() -> None:
    signs = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 1, -1, 1, -1]], np.float32)
    codes = np.packbits(signs > 0, axis=1).tobytes()
    assert likeness(signs, codes) == pytest.approx(1.0)
    assert likeness(-signs[:1], codes) == pytest.approx(0.0)  # the second is orthogonal to it, the first its opposite
    assert likeness(np.concatenate([3 * signs[:1], -signs[:1]]), codes) == pytest.approx(0.75)
    assert likeness(signs, b"") == 0.0
    assert likeness(np.zeros((0, 8), np.float32), codes) == 0.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Revenue of 2021: 1,250,000 in 12 months", {"2021", "1250000", "12"}),
        ("二〇二一年第３季度", {"2021", "3"}),
        ("FY21 and FY 22", {"2021", "2022"}),
        ("FY99, '98 and \u201921", {"1999", "1998", "2021"}),
        ("the season 2020-21", {"2020", "2021"}),
        ("the season 1999-00", {"1999", "2000"}),
        ("2019-03-05", {"2019", "3", "5"}),
        ("2019/03", {"2019", "3"}),
        ("第三季度", {"3"}),
        ("nothing to count", set()),
    ],
)
def test_numbers_are_read_in_every_notation(text: str, found: set[str]) -> None:
    assert numbers(text) == found


def judged(question: str, *texts: str, filename: str = "f.txt", heading: str | None = None) -> bool:
    passages = [
        Passage(
            number=number,
            chunk_id=new_id(),
            document_id=new_id(),
            filename=filename,
            text=text,
            score=1.0,
            location=Location(heading=heading),
        )
        for number, text in enumerate(texts, 1)
    ]
    found = [Candidate(item.text, item, 0, 0.5) for item in passages]
    cosines = np.linspace(0.5, 0.4, len(found), dtype=np.float32)
    return weigh(TermAnalyser(), question, found, cosines, cosines).namesake


def test_passages_on_another_year_are_no_answer() -> None:
    asked = "Who won the women's singles in 2019?"
    assert judged(asked, "In 2018 the women's singles were won by Angelique Kerber.")
    assert not judged(asked, "In 2018 it was Kerber.", "In 2019 the women's singles were won by Simona Halep.")
    assert judged(asked, *["In 2018 it was Kerber."] * 3, "In 2019 it was Halep.")
    assert not judged(asked, "Winners: Simona Halep.", filename="Wimbledon 2019.pdf")
    assert not judged(asked, "Winners: Simona Halep.", heading="Wimbledon > 2019")
    assert not judged("Who won the women's singles?", "In 2018 it was Kerber.")
    for question, text in (
        ("Revenue in FY21?", "Revenue of 2021 rose."),
        ("Who won the season 2020-21?", "The season 2020-2021 was won by Ajax."),
        ("Who won in ’98?", "In 1998 France won."),
        ("2021年第3季度收入是多少？", "二〇二一年第三季度收入下降。"),
        ("What happened on March 5, 2019?", "2019-03-05: the ship sank."),
        ("What happened on 2019-03-05?", "On March 5, 2019, the ship sank."),
    ):
        assert not judged(question, text), question
    for counted in ("What are the 3 main reasons?", "Name 10 ships of the harbour", "列出3个原因"):
        assert not judged(counted, "The reasons are wind and rain.")
    usual, other = evidence(), msgspec.structs.replace(evidence(), namesake=True)
    assert other.confidence(MANY, 0.9) < 0 < usual.confidence(MANY, 0.9)
    assert other.confidence(FEW, 0.9) == usual.confidence(FEW, 0.9)
