"""Answers of the built-in mode with the real embedding model: both languages, across them, and refusals."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from internal.entities.conversations import NOT_IN_DOCUMENTS, Message, Passage
from internal.entities.ids import new_id
from internal.entities.memory import Memory, MemoryKind, Recalled
from internal.entities.parsed import Location
from internal.models.embedding import Embedder, Kind, Work, load
from internal.services.chunking_sentences import sentences
from internal.services.extractive import ExtractiveModel
from internal.services.prompts import build, standalone
from pkg.ctxutil import Context, Role

CTX = Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")

HANDBOOK = (
    "Employees may work from home on two days a week. The team lead agrees to the days in writing. "
    "Whoever works from home is reachable by telephone between ten and fifteen o'clock.",
    "Travel is booked through the travel desk. Trips by train are in second class; a flight needs the consent of the "
    "department. Receipts are handed in within four weeks, or the costs are not paid back.",
    "Annual leave is 28 working days. Up to five days may be carried over into the next year and are to be taken by "
    "31 March. Leave requests go to the team lead two weeks ahead.",
    "The canteen is open from half past eleven to two. On Fridays there is fish. Guests pay with cash at the till.",
)
HANDBOOK_ZH = (
    "员工每周可以在家办公两天，具体日期由组长书面同意。在家办公的员工应在上午十点至下午三点之间保持电话畅通。",
    "出差由差旅部门统一预订。火车票为二等座；乘坐飞机须经部门批准。报销单据应在四周内提交，逾期不予报销。",
    "年假为28个工作日。最多可将五天结转至下一年，并须在3月31日前休完。请假申请应提前两周提交给组长。",
    "食堂开放时间为十一点半至两点。周五供应鱼。访客在收银台用现金付款。",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ExtractiveModel:
    return ExtractiveModel(Real(load(_cache(tmp_path_factory), replicas=1)), sentences)


def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the workers of a session: the conversion takes seconds."""
    return tmp_path_factory.getbasetemp().parent / "embedding-model"


class Real:
    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    async def embed_query(self, ctx: Context, text: str) -> np.ndarray:
        return self._embed([text], Kind.QUERY)[0]

    async def embed_passages(self, ctx: Context, texts: Sequence[str], *, lane: str) -> np.ndarray:
        return self._embed(texts, Kind.PASSAGE)

    def _embed(self, texts: Sequence[str], kind: Kind) -> np.ndarray:
        works = [Work(window.ids) for window in self._embedder.windows(texts, kind)]
        return np.stack([row.vector for row in self._embedder.forward(works)])


async def answer(model: ExtractiveModel, question: str, texts: Sequence[str], history: Sequence[Message] = ()) -> str:
    prompt = build(question, standalone(question, history), passages_of(texts), history)
    return "".join([piece async for piece in model.stream(CTX, prompt) if isinstance(piece, str)])


def passages_of(texts: Sequence[str]) -> tuple[Passage, ...]:
    return tuple(
        Passage(
            number=number,
            chunk_id=new_id(),
            document_id=new_id(),
            filename="handbook",
            text=text,
            score=1.0,
            location=Location(),
        )
        for number, text in enumerate(texts, 1)
    )


TOLD = (
    "My name is Ada Lovelace.",
    "My badge number is 4711.",
    "My office is in Hamburg now.",
    "我的生日是5月3日。",
    "请以后用中文回答。",
    "Our fiscal year runs from April to March.",
)


async def remembered(model: ExtractiveModel, question: str, texts: Sequence[str] = HANDBOOK) -> str:
    """The answer to who told TOLD before."""
    prompt = build(question, question, passages_of(texts), [], Recalled(items=tuple(map(memory_of, TOLD))))
    return "".join([piece async for piece in model.stream(CTX, prompt) if isinstance(piece, str)])


def memory_of(text: str) -> Memory:
    return Memory(
        id=new_id(),
        conversation_id=new_id(),
        kind=MemoryKind.FACT,
        text=text,
        importance=0.7,
        source_id=None,
        created_at=datetime.now(UTC),
    )


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("What is my name?", "Ada Lovelace"),
        ("What is my badge number?", "4711"),
        ("Where is my office?", "Hamburg"),
        ("我的生日是哪天？", "5月3日"),
        ("When does our fiscal year begin?", "April to March"),
    ],
)
async def test_what_the_user_told_answers_questions_of_themselves(
    model: ExtractiveModel, question: str, told: str
) -> None:
    said = await remembered(model, question)
    assert said.startswith(("You told me earlier:", "您之前说过："))
    assert told in said
    assert "[" not in said


async def test_what_the_user_told_answers_nothing_else(model: ExtractiveModel) -> None:
    assert await remembered(model, "What is my shoe size?") == NOT_IN_DOCUMENTS
    assert "28 working days" in await remembered(model, "How many days of annual leave do I have?")


@pytest.mark.parametrize(
    ("question", "texts", "label", "quoted", "mark"),
    [
        ("How many days of annual leave are there?", HANDBOOK, "From your documents:", "28 working days", "[3]"),
        ("Until when must receipts be handed in?", HANDBOOK, "From your documents:", "within four weeks", "[2]"),
        ("How many days a week may I work from home?", HANDBOOK, "From your documents:", "two days a week", "[1]"),
        ("年假有多少天？", HANDBOOK_ZH, "根据您的文档：", "28个工作日", "[3]"),
        ("报销单据要在多久之内提交？", HANDBOOK_ZH, "根据您的文档：", "四周内提交", "[2]"),
        ("每周可以在家办公几天？", HANDBOOK_ZH, "根据您的文档：", "在家办公两天", "[1]"),
        ("每周可以在家办公几天？", HANDBOOK, "根据您的文档：", "two days a week", "[1]"),
        ("Within how many weeks must receipts be handed in?", HANDBOOK_ZH, "From your documents:", "四周内提交", "[2]"),
    ],
)
async def test_the_right_sentence_is_quoted(
    model: ExtractiveModel, question: str, texts: Sequence[str], label: str, quoted: str, mark: str
) -> None:
    text = await answer(model, question, texts)
    assert text.startswith(f"{label}\n\n")
    assert quoted in text
    assert mark in text


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ("Who painted the ceiling of the Sistine Chapel?", HANDBOOK),
        ("What is the boiling point of nitrogen?", HANDBOOK),
        ("Which database does the payment service use?", HANDBOOK),
        ("西斯廷教堂的天顶画是谁画的？", HANDBOOK_ZH),
        ("氮的沸点是多少？", HANDBOOK_ZH),
        ("光合作用发生在植物的哪个部位？", HANDBOOK),
        ("What is the capital of Mongolia?", HANDBOOK_ZH),
    ],
)
async def test_what_the_documents_do_not_hold_is_not_invented(
    model: ExtractiveModel, question: str, texts: Sequence[str]
) -> None:
    assert await answer(model, question, texts) == NOT_IN_DOCUMENTS


@pytest.mark.parametrize(
    ("question", "texts"), [("How many days of annual leave are there?", HANDBOOK), ("年假有多少天？", HANDBOOK_ZH)]
)
async def test_every_sentence_stands_in_its_passage(
    model: ExtractiveModel, question: str, texts: Sequence[str]
) -> None:
    shown = (await answer(model, question, texts)).partition("\n\n")[2]
    parts = [part for part in shown.replace("]", "[").split("[") if part.strip()]
    for sentence, number in zip(parts[::2], parts[1::2], strict=True):
        assert sentence.strip() in texts[int(number) - 1]


COMPANY = (
    "The quarterly revenue of Zorblatt Inc was 42 million dollars in 2031. Employees get 17 vacation days. "
    "Mixed 中英文 text with Zorblatt 公司.",
    "公司规定：员工年假为十五天，病假另计。",
)


def said(role: Literal["user", "assistant"], content: str) -> Message:
    return Message(id=new_id(), role=role, content=content, created_at=datetime.now(UTC))


async def test_each_question_of_a_conversation_gets_its_own_answer(model: ExtractiveModel) -> None:
    history: list[Message] = []
    for question, wanted in [
        ("What was the quarterly revenue of Zorblatt?", "From your documents:\n\nThe quarterly revenue of Zorblatt"),
        ("员工年假有多少天？", "根据您的文档：\n\n公司规定：员工年假为十五天，病假另计。 [2]"),
        ("And how many vacation days?", "From your documents:\n\nEmployees get 17 vacation days. [1]"),
        ("quit", NOT_IN_DOCUMENTS),
        ("Tell me about the vacation days at Zorblatt", "From your documents:\n\n"),
        ("Tell me about the moon landing", NOT_IN_DOCUMENTS),
    ]:
        shown = await answer(model, question, COMPANY, history)
        assert shown.startswith(wanted)
        history += [said("user", question), said("assistant", shown)]
    assert "17 vacation days" in history[-3].content


@pytest.mark.parametrize(
    ("earlier", "question", "texts", "wanted"),
    [
        ("How many days of annual leave can be carried over?", "Until when?", HANDBOOK, "31 March"),
        ("When is the canteen open?", "Who painted it?", HANDBOOK, NOT_IN_DOCUMENTS),
        ("When is the canteen open?", "thanks", HANDBOOK, NOT_IN_DOCUMENTS),
        ("食堂几点开放？", "那访客怎么付款？", HANDBOOK_ZH, "访客在收银台用现金付款"),
        ("食堂几点开放？", "它多少钱？", HANDBOOK_ZH, NOT_IN_DOCUMENTS),
    ],
)
async def test_what_leans_on_the_question_before_it(
    model: ExtractiveModel, earlier: str, question: str, texts: Sequence[str], wanted: str
) -> None:
    assert wanted in await answer(model, question, texts, [said("user", earlier)])
