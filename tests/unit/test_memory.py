"""What is found worth remembering, and which of it is recalled."""

from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from internal.entities.conversations import Citation, Message, MessageStatus
from internal.entities.ids import new_id
from internal.entities.memory import Candidate, Exchange, Finding, Memory, MemoryKind, SummaryLine
from internal.entities.parsed import Location
from internal.providers.llm_wire import estimate_tokens
from internal.services.memory import RECALL_TOKENS, best, paired
from internal.services.summaries import NEWEST, SUMMARY_TOKENS, RuleSummarizer, found, line, turn, within
from pkg.ctxutil import Context, Role

NOW = datetime(2026, 11, 26, tzinfo=UTC)
CTX = Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")


def exchange(question: str, answer: str = "", *filenames: str) -> Exchange:
    return Exchange(
        id=new_id(),
        answer_id=new_id(),
        question=question,
        answer=answer,
        answered=bool(answer),
        filenames=filenames,
        document_ids=(),
        created_at=NOW,
    )


def told(question: str) -> list[Finding]:
    return [finding for finding in found(exchange(question)) if finding.kind is not MemoryKind.TURN]


@pytest.mark.parametrize(
    ("question", "text", "kind"),
    [
        ("My name is Ada. What does the lease say?", "My name is Ada.", "fact"),
        ("Our fiscal year is April to March", "Our fiscal year is April to March", "fact"),
        ("Please remember that the audit is on 3 May.", "the audit is on 3 May.", "fact"),
        ("I don't like long answers.", "I don't like long answers.", "preference"),
        ("Always answer in English.", "Always answer in English.", "preference"),
        ("我叫张伟，在财务部。这份合同怎么说？", "我叫张伟，在财务部。", "fact"),
        ("请记住：项目代号是海豚", "项目代号是海豚", "fact"),
        ("以后请用中文回答", "以后请用中文回答", "preference"),
        ("我对花生过敏", "我对花生过敏", "fact"),
    ],
)
def test_what_people_tell_of_themselves_is_found(question: str, text: str, kind: str) -> None:
    [finding] = told(question)
    assert (finding.text, finding.kind) == (text, kind)
    assert 0 < finding.importance <= 1


@pytest.mark.parametrize(
    "question",
    ["What is my name?", "Do you remember my name?", "你记得我叫什么吗？", "那第二个呢？", "Who counts the ships?"],
)
def test_a_question_tells_nothing(question: str) -> None:
    assert told(question) == []


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("My favourite colour is blue.", "My favourite colour is green now."),
        ("I live in Paris.", "I've moved to Rome."),
        ("I like coffee", "I don't like coffee anymore."),
        ("我的生日是5月3日。", "我的生日改成5月4日了"),
        ("我喜欢长篇回答", "我不喜欢长篇回答。"),
        ("Call me Bob.", "My name is Robert."),
    ],
)
def test_a_contradiction_is_about_the_same_subject(earlier: str, later: str) -> None:
    subject = told(earlier)[0].subject
    assert subject is not None
    assert told(later)[0].subject == subject


async def test_a_summary_grows_by_what_is_new_and_stays_within_its_size() -> None:
    lines = tuple[SummaryLine, ...]()
    first = exchange("My badge number is 4711.", "Noted.")
    for number in range(300):
        new = first if number == 0 else exchange(f"What does page {number} say of rent?", f"Rent is {number} euros.")
        lines = (await RuleSummarizer().digest(CTX, lines, [new])).lines
    assert sum(estimate_tokens(item.text) for item in lines) <= SUMMARY_TOKENS
    assert [item.text for item in lines][-NEWEST:] == [
        f"What does page {number} say of rent? → Rent is {number} euros." for number in range(300 - NEWEST, 300)
    ]
    assert lines[0].source_id == first.id  # important, however old


def test_the_order_of_a_summary_stays() -> None:
    lines = [SummaryLine(text=f"{number} " + "word " * 100, importance=number % 7 / 10) for number in range(40)]
    numbers = [int(item.text.split()[0]) for item in within(lines)]
    assert numbers == sorted(numbers)


def test_a_line_and_a_turn_name_the_picture_they_are_about() -> None:
    shown = exchange(
        "What is on the photo?", "From your documents:\n\nA red lighthouse. [1]\nIt stands alone.", "beach.jpg"
    )
    assert line(shown) == "What is on the photo? → A red lighthouse. (beach.jpg)"
    assert turn(shown).endswith("(beach.jpg)")


def message(
    role: str, content: str, parent: Message | None = None, before: Message | None = None, **more: MessageStatus
) -> Message:
    """Below `parent`; `before` stands there already."""
    cited = Citation(index=1, chunk_id=new_id(), document_id=new_id(), filename="a.jpg", quote="q", location=Location())
    own = new_id()
    return Message(
        id=own,
        role="user" if role == "user" else "assistant",
        content=content,
        created_at=NOW,
        parent_id=parent.id if parent else None,
        siblings=[before.id, own] if before else [own],
        citations=[cited] if role == "assistant" else [],
        **more,
    )


def test_each_answer_is_an_exchange_and_a_question_that_was_passed_over_is_one() -> None:
    one = message("user", "one")
    first = message("assistant", "first", one)
    second = message("assistant", "second", one, first)
    two = message("user", "two", first)
    three = message("user", "three", two)
    broken = message("assistant", "broken", three, status=MessageStatus.FAILED)
    four = message("user", "four", broken)
    said = [one, first, second, two, three, broken, four]
    exchanges = paired(said, [one, two, three])
    assert [(item.question, item.answer, item.filenames, item.again, item.answer_id) for item in exchanges] == [
        ("one", "first", ("a.jpg",), False, first.id),
        ("one", "second", ("a.jpg",), True, second.id),
        ("two", "", (), False, two.id),
        ("three", "", (), False, broken.id),
    ]
    assert paired(said[:1], []) == []


def test_what_a_question_tells_is_found_once_however_often_it_is_answered() -> None:
    again = msgspec.structs.replace(exchange("My badge number is 4711.", "Noted."), again=True)
    assert [finding.kind for finding in found(again)] == [MemoryKind.TURN]


def candidate(text: str, vector: list[float], *terms: int, importance: float = 0.5, days: float = 0) -> Candidate:
    memory = Memory(
        id=new_id(),
        conversation_id=new_id(),
        kind=MemoryKind.FACT,
        text=text,
        importance=importance,
        source_id=None,
        created_at=NOW - timedelta(days=days),
    )
    return Candidate(memory=memory, terms=frozenset(terms), vector=np.array(vector, np.float32))


NOISE = [candidate(f"noise {number}", [0, 1], 100 + number) for number in range(50)]


def recalled(*items: Candidate) -> list[str]:
    query = np.array([1, 0], np.float32)
    return [memory.text for memory in best([*items, *NOISE], query, [1, 2], NOW)]


def test_what_fits_is_recalled_however_old_and_the_rest_is_not() -> None:
    assert recalled(candidate("old", [1, 0], 1, 2, days=900)) == ["old"]
    assert recalled(candidate("unfit", [0, 1], 7, importance=1)) == []


def test_of_two_that_fit_alike_the_newer_and_the_more_important_come_first() -> None:
    assert recalled(candidate("old", [1, 0], 1, days=400), candidate("new", [1, 0], 1)) == ["new", "old"]
    assert recalled(candidate("minor", [1, 0], 1), candidate("major", [1, 0], 1, importance=1)) == ["major", "minor"]


def test_a_word_or_a_meaning_is_enough() -> None:
    assert set(recalled(candidate("word", [0, 1], 1, 2), candidate("meaning", [1, 0], 9))) == {"word", "meaning"}


def test_an_exchange_is_recalled_for_what_stands_beside_it_in_the_same_sitting() -> None:
    talk, hours = new_id(), 48

    def said(text: str, vector: list[float], *terms: int, ago: float) -> Candidate:
        found = candidate(text, vector, *terms, days=ago / 24)
        memory = msgspec.structs.replace(found.memory, kind=MemoryKind.TURN, conversation_id=talk)
        return msgspec.structs.replace(found, memory=memory)

    named = said("which trip", [1, 0], 1, 2, ago=1)
    answer = said("it rained all week", [0, 1], 7, ago=0.9)
    assert recalled(named, answer) == ["which trip", "it rained all week"]
    assert recalled(named, said("it rained all week", [0, 1], 7, ago=hours)) == ["which trip"]
    elsewhere = msgspec.structs.replace(answer, memory=msgspec.structs.replace(answer.memory, conversation_id=new_id()))
    assert recalled(named, elsewhere) == ["which trip"]


def test_recall_stays_within_its_tokens() -> None:
    many = [candidate(f"{number} " + "word " * 90, [1, 0], 1) for number in range(20)]
    given = recalled(*many)
    assert 0 < sum(map(estimate_tokens, given)) <= RECALL_TOKENS
