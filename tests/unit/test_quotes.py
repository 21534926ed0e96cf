"""Whether a passage bears a statement out."""

from collections.abc import Sequence

import numpy as np
import pytest

from internal.entities.conversations import Passage
from internal.entities.ids import new_id
from internal.entities.parsed import Location
from internal.services.chunking_sentences import sentences
from internal.services.citations import AnswerText
from internal.services.quotes import Checked, Quoter, Support
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role
from tests.fakes.openai_server import vector_of

CTX = Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")
TEXT = "Refunds are paid within 30 days. The customer keeps the receipt. Shipping costs are not refunded."


class Words:
    """Embeds by words in common; what it was asked stays, and where it is away it says so."""

    def __init__(self, *, away: Code | None = None) -> None:
        self.asked: list[str] = []
        self.away = away

    async def embed_query(self, ctx: Context, text: str) -> np.ndarray:
        raise AssertionError("statements are no questions")

    async def embed_passages(self, ctx: Context, texts: Sequence[str], *, lane: str) -> np.ndarray:
        if self.away:
            raise AppError(self.away, "away")
        self.asked += texts
        return np.stack([vector_of(text, 256) for text in texts])


async def check(said: str, *texts: str, embedder: Words | None = None, calibrated: bool = True) -> Checked:
    answer = AnswerText([passage(number, text) for number, text in enumerate(texts or (TEXT,), 1)])
    answer.feed(said)
    answer.finish()
    return await Quoter(embedder or Words(), sentences, calibrated=calibrated).check(CTX, answer)


def passage(number: int, text: str) -> Passage:
    return Passage(
        number=number,
        chunk_id=new_id(),
        document_id=new_id(),
        filename="f.txt",
        text=text,
        score=1.0,
        location=Location(),
    )


def support(*, terms: int = 6, shared: float = 0.5, strange: bool = False, crosses: bool = False) -> Support:
    return Support(terms=terms, shared=shared, strange_number=strange, crosses_languages=crosses)


@pytest.mark.parametrize(
    ("evidence", "cosine", "holds"),
    [
        (support(), 0.31, True),
        (support(), 0.29, False),
        (support(strange=True), 0.45, False),
        (support(strange=True), 0.51, True),
        (support(shared=0.7), None, True),
        (support(shared=0.7, strange=True), 0.3, False),
        (support(terms=2, shared=0.0), 0.0, True),
        (support(shared=0.2), None, True),
        (support(shared=0.1), None, False),
        (support(shared=0.0, crosses=True), None, True),
        (support(shared=0.0, crosses=True), 0.38, True),
        (support(shared=0.0, crosses=True), 0.37, False),
    ],
)
def test_what_words_and_meaning_say_together(evidence: Support, cosine: float | None, *, holds: bool) -> None:
    assert evidence.holds(cosine) is holds


async def test_a_statement_in_the_words_of_its_passage_asks_no_model() -> None:
    embedder = Words(away=Code.MODEL_UNAVAILABLE)
    found = await check("Shipping costs are not refunded [1]. Refunds are paid in 30 days [1].", embedder=embedder)
    assert (found.dropped, len(found.citations)) == (0, 1)


async def test_of_a_group_of_marks_those_that_hold_stay() -> None:
    other = "Cats sleep for fifteen hours each night."
    found = await check("Refunds of the customer are paid within 30 days [2][1].", TEXT, other)
    assert found.content == "Refunds of the customer are paid within 30 days [2]."
    assert [(item.index, item.quote) for item in found.citations] == [(2, "Refunds are paid within 30 days.")]


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("code", [Code.MODEL_UNAVAILABLE, Code.MODEL_REFUSED, Code.MODEL_BAD_ANSWER])
async def test_where_the_model_does_not_answer_words_decide(code: Code, *, calibrated: bool) -> None:
    said = "Penguins march across frozen plains [1]. A customer keeps some paper of the shop [1]."
    found = await check(said, embedder=Words(away=code), calibrated=calibrated)
    assert found.content == "Penguins march across frozen plains. A customer keeps some paper of the shop [1]."


async def test_cosines_of_other_models_decide_nothing() -> None:
    """A Chinese statement on an English passage has no words in common with it."""
    found = await check("企鹅在南极的平原上行走 [1]。", calibrated=False)
    assert found.dropped == 0
    assert (await check("企鹅在南极的平原上行走 [1]。")).dropped == 1


async def test_numbers_that_were_no_marks_stay() -> None:
    found = await check("Refunds are paid within 30 days [1]. In [2024] penguins march across plains [1].")
    assert found.content == "Refunds are paid within 30 days [1]. In [2024] penguins march across plains."
