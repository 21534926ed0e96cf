"""Marks in streamed answers: every writing, every cut, and only passages that exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.entities.conversations import Passage
from internal.entities.ids import new_id
from internal.entities.parsed import Location
from internal.services.citations import AnswerText
from internal.services.quotes import locate


def passage(number: int) -> Passage:
    return Passage(
        number=number,
        chunk_id=new_id(),
        document_id=new_id(),
        filename=f"{number}.txt",
        text=f"Passage {number}.",
        score=1.0,
        location=Location(),
    )


PASSAGES = [passage(number) for number in range(1, 9)]


def run(*deltas: str) -> AnswerText:
    answer = AnswerText(PASSAGES)
    parts = [answer.feed(delta) for delta in deltas]
    parts.append(answer.finish())
    assert "".join(parts) == answer.text
    return answer


def numbers(answer: AnswerText) -> list[int]:
    return [item.passage.number for item in answer.cited()]


@pytest.mark.parametrize(
    ("raw", "shown", "cited"),
    [
        ("Yes [1].", "Yes [1].", [1]),
        ("Yes [3].", "Yes [1].", [3]),
        ("A [2][1], b [2].", "A [1][2], b [1].", [2, 1]),
        ("A [4, 2].", "A [1][2].", [4, 2]),
        ("A [2-4].", "A [1][2][3].", [2, 3, 4]),
        ("A [^5].", "A [1].", [5]),
        ("退款需要三十天【2】。", "退款需要三十天[1]。", [2]),
        ("退款【2、3】。", "退款[1][2]。", [2, 3]),
        ("A 【2†source】.", "A [1].", [2]),
        ("A ［2］.", "A [1].", [2]),
        ("A [ 2 ].", "A [1].", [2]),
        ("A [3,3].", "A [1].", [3]),
    ],
)
def test_writings(raw: str, shown: str, cited: list[int]) -> None:
    whole, singly = run(raw), run(*raw)
    assert whole.text == singly.text == shown
    assert numbers(whole) == numbers(singly) == cited


def test_marks_of_nothing_are_dropped() -> None:
    answer = run("True [9] and [0] and [2] and [99, 1].")
    assert answer.text == "True  and  and [1] and [2]."
    assert numbers(answer) == [2, 1]


@pytest.mark.parametrize("text", ["a [b] c", "[x", "list[int]", "[]", "[1", "[1, ", "x [2024-01-01T] y", "【注】"])
def test_other_brackets_stay(text: str) -> None:
    assert run(*text).text == text
    assert run(text).cited() == []


def test_what_a_mark_backs() -> None:
    answer = run("Refunds take 30 days [2]. Shipping is free. [3] 运费由我们承担【2】。")
    assert [(item.passage.number, item.claims) for item in answer.cited()] == [
        (2, ("Refunds take 30 days", "运费由我们承担")),
        (3, ("Shipping is free.",)),
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "Dr. Smith, of the U.S. office, approves flights above 900 dollars, e.g. to Tokyo",
        "The filter is of size No. 4 (cf. Fig. 2)",
        "使用 Python 3.11 运行 v1.2 版",
    ],
)
def test_a_statement_is_the_whole_sentence(sentence: str) -> None:
    (cited,) = run(f"Before it. {sentence} [1].").cited()
    assert cited.claims == (sentence,)


def test_a_mark_is_never_sent_in_part() -> None:
    answer = AnswerText(PASSAGES)
    assert answer.feed("Yes [") == "Yes "
    assert answer.feed("2") == ""
    assert answer.feed("]") == "[1]"


@given(
    st.lists(
        st.sampled_from(["[1]", "[9]", "【2】", "[2, 3]", "[", "]", "1", ", ", "text ", "。", "†", "^"]), max_size=15
    )
)
def test_cuts_change_nothing(parts: list[str]) -> None:
    whole = "".join(parts)
    assert run(whole).text == run(*parts).text == run(*whole).text
    assert [item.claims for item in run(whole).cited()] == [item.claims for item in run(*whole).cited()]


def test_sentences_are_located_as_they_stand() -> None:
    text = "One  two.\nOne  two. 三。"
    spans = locate(text, ["One  two.", "One  two.", "altered", "三。"])
    assert [(span.start, text[span.start : span.end]) for span in spans] == [
        (0, "One  two."),
        (10, "One  two."),
        (20, "三。"),
    ]
