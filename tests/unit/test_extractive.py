"""The built-in mode's rules on small vectors; tests/integration/test_chat_extractive.py has the real model."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from internal.entities.conversations import NOT_IN_DOCUMENTS, Passage, Piece, Prompt, Usage
from internal.entities.ids import new_id
from internal.entities.ocr import OcrLine, OcrPage
from internal.entities.parsed import Location
from internal.services.chunking_sentences import sentences
from internal.services.citations import AnswerText
from internal.services.evidence import Candidate, candidates, content_terms, coverage, language, subject
from internal.services.extractive import ExtractiveModel, select
from internal.services.ingest import recognise
from internal.services.places import in_rows
from internal.services.prompts import leans
from internal.services.terms import TermAnalyser
from pkg.ctxutil import Context, Role
from tests.fakes.openai_server import vector_of

CTX = Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")


def passage(number: int, text: str) -> Passage:
    return Passage(
        number=number,
        chunk_id=new_id(),
        document_id=new_id(),
        filename="f.txt",
        text=text,
        score=1 / number,
        location=Location(),
    )


class Words:
    async def embed_query(self, ctx: Context, text: str) -> np.ndarray:
        return vector_of(text, 256)

    async def embed_passages(self, ctx: Context, texts: Sequence[str], *, lane: str) -> np.ndarray:
        return np.stack([vector_of(text, 256) for text in texts])


async def answer(question: str, *texts: str, searched: str = "") -> str:
    passages = tuple(passage(number, text) for number, text in enumerate(texts, 1))
    pieces = [
        piece
        async for piece in ExtractiveModel(Words(), sentences).stream(
            CTX, Prompt(messages=(), question=question, searched=searched or question, passages=passages)
        )
    ]
    assert pieces.pop() == Usage()
    return "".join(piece for piece in pieces if isinstance(piece, str))


@pytest.mark.parametrize(
    ("text", "tongue"),
    [
        ("How long?", "en"),
        ("退款要多久？", "zh"),
        ("DreamHub 支持 PDF 吗", "zh"),
        ("What does 退款 mean in this contract?", "en"),
        ("123", "en"),
        ("", "en"),
    ],
)
def test_language(text: str, tongue: str) -> None:
    assert language(text) == tongue


def test_terms_that_carry_meaning() -> None:
    analyser = TermAnalyser()
    assert content_terms(analyser, "What is the refund period?") == {"refund", "period"}
    assert content_terms(analyser, "退款的期限是多少") == {"退款", "期限"}
    assert content_terms(analyser, "what is it") == frozenset()
    assert content_terms(analyser, "的是") == {"的", "是", "的是"}
    assert coverage(frozenset("ab"), frozenset("bc")) == 0.5
    assert coverage(frozenset(), frozenset("bc")) == 0.0


def test_only_the_best_sentences_of_a_passage_are_looked_at() -> None:
    text = " ".join(f"Sentence number {number} says nothing." for number in range(50)) + " The refund is paid."
    found = candidates(TermAnalyser(), sentences, "When is the refund paid?", [passage(1, text)] * 9)
    assert len(found) == 6 * 12
    assert found[0].text == "The refund is paid."
    assert found[0].coverage == 1.0


def test_sentences_that_say_the_same_are_quoted_once() -> None:
    texts = ["Refunds take thirty days.", "Refunds take thirty days!", "Shipping is never refunded."]
    found = [Candidate(text, passage(number, text), 0, 0.5) for number, text in enumerate(texts, 1)]
    near = np.eye(3, dtype=np.float32)
    near[1] = near[0]
    chosen = select(found, near, np.array([0.50, 0.50, 0.48], dtype=np.float32))
    assert [item.text for item in chosen] == [texts[0], texts[2]]


def test_at_most_four_sentences_in_the_order_of_the_text() -> None:
    where = passage(1, "")
    found = [Candidate(f"A sentence with number {place}.", where, place, 0.0) for place in range(8)]
    relevance = np.array([0.5, 0.5, 0.1, 0.55, 0.5, 0.6, 0.5, 0.5], dtype=np.float32)
    chosen = select(found, np.eye(8, dtype=np.float32), relevance)
    assert [item.place for item in chosen] == [0, 1, 3, 5]


def test_a_question_in_a_document_is_no_answer() -> None:
    texts = ["How long do refunds take?", "They take thirty days from receipt."]
    found = [Candidate(text, passage(1, text), place, 0.5) for place, text in enumerate(texts)]
    level = np.array([0.35, 0.35], dtype=np.float32)
    assert select(found, np.eye(2, dtype=np.float32), level)[0].text == texts[1]


async def test_sentences_are_quoted_marked_and_labelled() -> None:
    text = await answer(
        "how many days do refunds take",
        "Refunds take 30 days after we receive the goods. The sky was blue over the harbour.",
        "Trucks are green and loud in the morning.",
    )
    assert text == "From your documents:\n\nRefunds take 30 days after we receive the goods. [1]"


async def test_each_sentence_has_its_line_so_that_its_mark_backs_it_alone() -> None:
    said = await answer("refunds in days", "Refunds in days: 30\n\nThe sky was blue.", "Refunds in days at most: 40")
    assert said == "From your documents:\n\nRefunds in days at most: 40 [2]\nRefunds in days: 30 [1]"
    text = AnswerText([passage(1, ""), passage(2, "")])
    text.feed(said)
    text.finish()
    assert [item.claims for item in text.cited()] == [("Refunds in days at most: 40",), ("Refunds in days: 30",)]


async def test_nothing_that_fits_is_not_in_the_documents() -> None:
    assert await answer("who won the chess world cup", "Refunds take 30 days. Shipping is free.") == NOT_IN_DOCUMENTS
    assert await answer("who won the chess world cup") == NOT_IN_DOCUMENTS
    assert await answer("who won", "--- 12 ---") == NOT_IN_DOCUMENTS


async def pictured(
    question: str, *texts: str, seen: str = "", clue: str = "", found: Sequence[str] = (), shown: bool = True
) -> str:
    """The answer to a question that is asked with a picture on which `texts` stand, or soon after such a one."""
    read = [msgspec.structs.replace(passage(number, text), attached=True) for number, text in enumerate(texts, 1)]
    passages = (*read, *(passage(number, text) for number, text in enumerate(found, len(read) + 1)))
    prompt = Prompt(
        messages=(),
        question=question,
        searched=question,
        passages=passages,
        seen=seen,
        clue=clue,
        shown=shown,
    )
    pieces = [piece async for piece in ExtractiveModel(Words(), sentences).stream(CTX, prompt)]
    return "".join(piece for piece in pieces if isinstance(piece, str))


SIGN = "Pool rules. Children need a grown-up. The pool closes at nine in the evening."


async def test_who_asks_what_a_picture_says_is_told_all_of_it() -> None:
    said = await pictured("What does the sign say?", SIGN, found=["Signs say what the house rules are."])
    assert said == (
        "In the picture:\n\nPool rules.\nChildren need a grown-up.\nThe pool closes at nine in the evening. [1]"
    )
    assert (await pictured("图片里写了什么？", SIGN, "Mind the step")).endswith("evening. [1]\nMind the step [2]")
    many = [f"Line {n} " + "blah " * 60 for n in range(5)]
    for question in ("What is this?", "What's that about?", "Summarise it", "这是什么？", "它讲了什么？"):
        assert (await pictured(question, SIGN, *many)).partition("\n\n")[2].startswith("Pool rules.")


async def test_of_a_long_text_only_what_answers_is_quoted() -> None:
    said = await pictured("In the picture the pool closes at", SIGN, *[f"Line {n} " + "blah " * 60 for n in range(5)])
    assert said == "In the picture:\n\nThe pool closes at nine in the evening. [1]"


async def test_a_line_of_a_picture_that_answers_comes_before_documents() -> None:
    said = await pictured("the pool closes at nine", SIGN, found=["The pool closes at nine in every house of ours."])
    assert said == "In the picture:\n\nThe pool closes at nine in the evening. [1]"


async def test_documents_are_asked_of_what_is_written_and_the_picture_stands_in_for_them() -> None:
    manual = "Fault four: the filter is blocked. Trucks are green and loud."
    assert await pictured("How is that mended?", "Fault four", clue="Fault four", found=[manual]) == (
        "From your documents:\n\nFault four: the filter is blocked. [2]"
    )
    assert await pictured("How is that mended?", "Fault four", found=["Trucks are green."]) == (
        "In the picture:\n\nFault four [1]"
    )
    assert await pictured("How is that mended?", found=["Trucks are green."]) == NOT_IN_DOCUMENTS


async def test_a_later_question_may_be_about_the_picture_and_may_not() -> None:
    assert "closes at nine" in await pictured("the pool closes at nine", SIGN, shown=False)
    assert await pictured("who won the chess world cup", SIGN, shown=False) == NOT_IN_DOCUMENTS
    found = ["The chess world cup was won by Ada."]
    said = await pictured("who won the chess world cup", SIGN, found=found, shown=False)
    assert said == "From your documents:\n\nThe chess world cup was won by Ada. [2]"
    said = await pictured("what do rules say about the chess world cup", SIGN, found=found, shown=False, seen="A pool.")
    assert said == "From your documents:\n\nThe chess world cup was won by Ada. [2]"


def test_what_stands_beside_each_other_is_read_in_rows() -> None:
    lines = (
        OcrLine("Total", (10, 100, 60, 120), 0.9),
        OcrLine("84.20", (200, 102, 260, 121), 0.9),
        OcrLine("Paid", (10, 130, 60, 150), 0.9),
        OcrLine("cash", (55, 130, 90, 150), 0.9),
        OcrLine("Thanks", (300, 145, 400, 190), 0.9),
    )
    (block,) = recognise(OcrPage(400, 400, list(lines)), number=1)
    read = msgspec.structs.replace(passage(1, block.text), parts=tuple(block.parts))
    assert in_rows(read) == "Total 84.20\nPaid cash\nThanks"
    half = block.text.index("Paid")
    pieces = (
        Piece(chunk_id=new_id(), start=0, end=half, location=block.parts[0].location, parts=tuple(block.parts[:2])),
        Piece(
            chunk_id=new_id(),
            start=half,
            end=len(block.text),
            location=block.parts[2].location,
            parts=tuple(msgspec.structs.replace(part, start=part.start - half) for part in block.parts[2:]),
        ),
    )
    assert in_rows(msgspec.structs.replace(read, parts=(), pieces=pieces)) == "Total 84.20\nPaid cash\nThanks"


async def test_what_was_seen_is_told_without_a_mark() -> None:
    assert await pictured("Which colour is it?", seen="A red\ndoor [3].") == "The picture shows:\n\nA red door (3)."
    said = await pictured("the pool closes at nine", SIGN, seen="A sign.")
    assert said == "The picture shows:\n\nA sign.\nThe pool closes at nine in the evening. [1]"


async def test_brackets_of_a_document_are_not_marks() -> None:
    text = await answer("how long do refunds take", "Refunds take [2]\n 30 days【3】.")
    assert "[2]" not in text
    assert "【3】" not in text
    assert "(2)" in text


@pytest.mark.parametrize(
    "question",
    [
        "Does it cover the screen?",
        "And how many vacation days?",
        "What about the battery?",
        "Why?",
        "How many days?",
        "shipping costs",
        "quit",
        "病假呢？",
        "那收入有多少？",
        "它什么时候开放？",
        "到什么时候？",
        "多少钱？",
    ],
)
def test_fragments_and_questions_that_refer_back_lean(question: str) -> None:
    assert leans(question)


@pytest.mark.parametrize(
    "question",
    [
        "How long do refunds take?",
        "Who pays shipping?",
        "How many vacation days do employees get?",
        "Why was the factory closed?",
        "员工年假有多少天？",
        "年假有多少天？",
        "退款要多久？",
        "公司的收入是多少？",
    ],
)
def test_a_complete_question_does_not_lean_however_short(question: str) -> None:
    assert not leans(question)


@pytest.mark.parametrize(
    ("question", "about"),
    [
        ("Tell me about the vacation days", "the vacation days"),
        ("Could you please explain the refund period?", "the refund period?"),
        ("请介绍一下年假", "年假"),
        ("请假流程是什么？", "请假流程是什么？"),
        ("Showers are where?", "Showers are where?"),
        ("Tell me more", "Tell me more"),
    ],
)
def test_words_that_only_ask_are_left_out(question: str, about: str) -> None:
    assert subject(question) == about


REVENUE = "Zorblatt revenue was 42 million dollars."
VACATION = "Employees get 17 vacation days."


async def test_a_leaning_question_is_answered_and_not_the_one_before_it() -> None:
    earlier = "What was the Zorblatt revenue?"
    texts = (REVENUE, VACATION)
    assert await answer(earlier, *texts) == f"From your documents:\n\n{REVENUE} [1]"
    question = "And vacation days employees get?"
    shown = await answer(question, *texts, searched=f"{earlier} {question}")
    assert shown == f"From your documents:\n\n{VACATION} [2]"


@pytest.mark.parametrize("line", ["quit", "thanks", "Who painted it?", "谢谢"])
async def test_a_line_without_an_answer_does_not_repeat_the_last_one(line: str) -> None:
    assert await answer(line, REVENUE, VACATION, searched=f"What was the Zorblatt revenue? {line}") == NOT_IN_DOCUMENTS


async def test_a_fragment_is_understood_with_the_question_before_it() -> None:
    texts = ("The pump warranty lasts two years. Its colour is green.", "The meeting takes an hour.")
    question, earlier = "How many years?", "Does the pump warranty last"
    assert await answer(question, *texts) == NOT_IN_DOCUMENTS
    shown = await answer(question, *texts, searched=f"{earlier} {question}")
    assert shown == "From your documents:\n\nThe pump warranty lasts two years. [1]"
