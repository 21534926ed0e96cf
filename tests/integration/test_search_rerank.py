"""A reranking model behind an endpoint: it has the last word, and nobody waits for one that is ill."""

from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple

import pytest
from pydantic import SecretStr

from internal.entities.search import SearchMode, SearchRequest
from internal.providers.embeddings import OpenAIEmbeddings
from internal.providers.rerank import RerankEndpoint
from internal.services.caching import TwoLevelCache
from internal.services.embedder import Embedder
from internal.services.search import RERANKED, SearchService
from internal.services.terms import TermAnalyser
from pkg.ctxutil import Context
from pkg.sections import Ai
from tests.fakes.openai_server import FakeOpenAI, Reply, running_fake
from tests.library import SPACE, Library
from tests.servers import Database

TEXTS = [f"refunds, rule {number}" for number in range(8)]


class Desk(NamedTuple):
    """A search over a tenant of eight rules, and the endpoint that orders what it finds."""

    fake: FakeOpenAI
    searches: SearchService
    ctx: Context

    async def ask(self, *, k: int = 3, mode: SearchMode = SearchMode.HYBRID) -> tuple[str, list[str], list[float]]:
        found = await self.searches.search(self.ctx, SearchRequest(query="refunds", k=k, mode=mode))
        return found.cache, [hit.text for hit in found.items], [hit.score for hit in found.items]


@pytest.fixture(scope="module")
async def library(module_database: Database) -> AsyncGenerator[Library]:
    opened = await Library.open(module_database)
    yield opened
    await opened.close()


@pytest.fixture
async def desk(library: Library) -> AsyncGenerator[Desk]:
    async with running_fake(dimension=SPACE.dim) as fake:
        settings = Ai(
            base_url=fake.base_url,
            embedding_model=SPACE.model,
            rerank_url=f"{fake.base_url}/rerank",
            rerank_model="judge",
            rerank_api_key=SecretStr("its-own"),
        )
        provider, reranker = OpenAIEmbeddings(settings, SPACE), RerankEndpoint(settings)
        caching = TwoLevelCache(None)
        searches = SearchService(library.app, Embedder(provider, caching), TermAnalyser(), caching, reranker)
        ctx = await library.tenant()
        await library.add(ctx, TEXTS)
        yield Desk(fake, searches, ctx)
        await caching.close()
        await reranker.close()
        await provider.close()


def by_number(_query: str, documents: list[str]) -> dict[str, Any]:
    """The higher the rule's number the better; told in an order of its own."""
    results = [{"index": n, "relevance_score": int(text[-1]) / 10} for n, text in enumerate(documents)]
    return {"id": "x", "results": results[::-1], "meta": {"billed_units": {"search_units": 1}}}


async def test_the_model_has_the_last_word(desk: Desk) -> None:
    desk.fake.rerank = by_number
    assert await desk.ask() == ("miss", [TEXTS[7], TEXTS[6], TEXTS[5]], [0.7, 0.6, 0.5])
    (asked,) = [request for request in desk.fake.requests if request.path.endswith("/rerank")]
    assert (asked.key, asked.body["model"], asked.body["query"]) == ("its-own", "judge", "refunds")
    assert sorted(asked.body["documents"]) == TEXTS
    assert len(asked.body["documents"]) <= RERANKED
    assert (await desk.ask())[0] == "hit"
    assert (await desk.ask(mode=SearchMode.VECTOR))[1][0] == TEXTS[7]
    words = await desk.ask(mode=SearchMode.KEYWORD)
    assert len([request for request in desk.fake.requests if request.path.endswith("/rerank")]) == 2
    assert len(words[1]) == 3


async def test_the_model_is_asked_once_however_a_date_may_be_written(desk: Desk) -> None:
    desk.fake.rerank = by_number
    found = await desk.searches.search(desk.ctx, SearchRequest(query="refunds of 5 March 2024 or 2024年6月", k=3))
    assert [hit.text for hit in found.items] == [TEXTS[7], TEXTS[6], TEXTS[5]]
    (asked,) = [request for request in desk.fake.requests if request.path.endswith("/rerank")]
    assert sorted(asked.body["documents"]) == TEXTS


ANSWERS: dict[str, tuple[Callable[[str, list[str]], Any], list[str]]] = {
    "a bare list with scores": (
        lambda _query, texts: [{"index": n, "score": int(text[-1]) / 10} for n, text in enumerate(texts)],
        TEXTS[:4:-1],
    ),
    "log-odds": (
        lambda _query, texts: {
            "results": [{"index": n, "relevance_score": int(text[-1]) * 3 - 9} for n, text in enumerate(texts)]
        },
        TEXTS[:4:-1],
    ),
    "only the best": (
        lambda _query, texts: {"results": [{"index": texts.index(TEXTS[4]), "relevance_score": 0.9}]},
        [TEXTS[4]],
    ),
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.values(), ids=ANSWERS)
async def test_answers_of_other_endpoints_are_understood(
    desk: Desk, answer: Callable[[str, list[str]], Any], expected: list[str]
) -> None:
    desk.fake.rerank = answer
    _cache, texts, scores = await desk.ask()
    assert texts[: len(expected)] == expected
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


BAD: dict[str, Any] = {
    "nothing": {},
    "no scores": {"results": [{"index": 0}]},
    "a passage too many": {"results": [{"index": 99, "relevance_score": 1.0}]},
    "text": {"results": [{"index": "first", "relevance_score": "high"}]},
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
async def test_nonsense_leaves_the_order_as_it_was_and_is_not_remembered(desk: Desk, body: Any) -> None:
    usual = (await desk.ask())[1]
    desk.fake.rerank = lambda _query, _texts: body
    found = await desk.ask(k=4)
    assert (found[0], found[1][:3]) == ("miss", usual)
    desk.fake.rerank = by_number
    assert (await desk.ask(k=4))[:2] == ("miss", TEXTS[:3:-1])
    assert (await desk.ask(k=4))[0] == "hit"


async def test_an_endpoint_that_is_ill_is_left_alone(desk: Desk) -> None:
    desk.fake.rerank_replies += [Reply(status=503)] * 100
    for k in range(1, 9):
        assert len((await desk.ask(k=k))[1]) == k
    asked = len([request for request in desk.fake.requests if request.path.endswith("/rerank")])
    assert asked < 12, "the circuit opened"
