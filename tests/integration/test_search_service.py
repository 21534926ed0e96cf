"""The search service on a real database and an embedding endpoint over a real socket."""

from collections.abc import AsyncGenerator

import pytest

from internal.entities.search import SearchMode, SearchRequest
from internal.providers.embeddings import OpenAIEmbeddings
from internal.services.embedder import Embedder
from internal.services.search import SearchService
from internal.services.terms import TermAnalyser
from pkg.apperr import AppError, Code
from pkg.sections import Ai
from tests.fakes.openai_server import FakeOpenAI, Reply, running_fake
from tests.library import SPACE, Library
from tests.servers import Database


@pytest.fixture(scope="module")
async def library(module_database: Database) -> AsyncGenerator[Library]:
    opened = await Library.open(module_database)
    yield opened
    await opened.close()


@pytest.fixture
async def fake() -> AsyncGenerator[FakeOpenAI]:
    async with running_fake(dimension=SPACE.dim) as found:
        yield found


@pytest.fixture
async def service(library: Library, fake: FakeOpenAI) -> AsyncGenerator[SearchService]:
    settings = Ai(base_url=fake.base_url, embedding_model=SPACE.model, timeout_seconds=2.0)
    provider = OpenAIEmbeddings(settings, SPACE)
    yield SearchService(library.app, Embedder(provider), TermAnalyser())
    await provider.close()


async def test_a_search_finds_and_tells_how_long_it_took(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds take thirty days", "the weather"])
    for mode in SearchMode:
        result = await service.search(ctx, SearchRequest(query="refunds", mode=mode, k=1))
        assert [hit.text for hit in result.items] == ["refunds take thirty days"]
        assert result.took_ms > 0
        assert result.cache == "miss"


async def test_scores_of_both_lanes_lie_between_none_and_one(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds take thirty days"])
    single = (await service.search(ctx, SearchRequest(query="refunds"))).items
    assert [hit.score for hit in single] == [0.5]
    await library.add(ctx, ["the weather", "a refund of fees", "ships"])
    scores = [hit.score for hit in (await service.search(ctx, SearchRequest(query="refunds"))).items]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < 0.5 < scores[0] < 1


async def test_keyword_search_asks_no_model(service: SearchService, library: Library, fake: FakeOpenAI) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds"])
    fake.embedding_replies.append(Reply(status=500))
    assert (await service.search(ctx, SearchRequest(query="refund", mode=SearchMode.KEYWORD))).items
    assert fake.requests == []


async def test_an_empty_query_finds_nothing(service: SearchService, library: Library, fake: FakeOpenAI) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds"])
    for mode in SearchMode:
        assert (await service.search(ctx, SearchRequest(query=" \n ", mode=mode))).items == []
    assert fake.requests == []


@pytest.mark.parametrize("k", [0, -1, 101])
async def test_k_is_bounded(service: SearchService, library: Library, k: int) -> None:
    with pytest.raises(AppError) as caught:
        await service.search(await library.tenant(), SearchRequest(query="x", k=k))
    assert caught.value.code is Code.REQUEST_INVALID


async def test_a_model_that_is_away_is_told(service: SearchService, library: Library, fake: FakeOpenAI) -> None:
    ctx = await library.tenant()
    fake.embedding_replies += [Reply(status=503)] * 5
    with pytest.raises(AppError) as caught:
        await service.search(ctx, SearchRequest(query="refunds"))
    assert caught.value.code is Code.MODEL_UNAVAILABLE


@pytest.mark.parametrize("mode", [SearchMode.HYBRID, SearchMode.KEYWORD])
async def test_who_asks_in_the_words_of_a_text_gets_that_text(
    service: SearchService, library: Library, mode: SearchMode
) -> None:
    """A passage that has them all comes before shorter ones that have the rarest of them again and again."""
    ctx = await library.tenant()
    others = ["付款付款付款", "退还退还退还", "预付款的预付款", "三十天三十天", "退款 退款"] * 4
    rest = "合同期限为一年，双方另有约定的除外。" * 8
    wanted = f"{rest}供应商须在三十天内退还全部预付款。{rest}"
    await library.add(ctx, [f"{text}{number}" for number, text in enumerate(others)])
    await library.add(ctx, [wanted])
    for phrase in ("三十天内退还全部预付款", "退还全部預付款", "三十天内"):
        found = (await service.search(ctx, SearchRequest(query=phrase, mode=mode, k=5))).items
        assert found[0].text == wanted, phrase
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


async def test_what_was_said_comes_later_where_diversity_is_asked(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds take thirty days", "refunds take thirty days only", "refunds are for members"])
    for mode in SearchMode:
        usual = [hit.text for hit in (await service.search(ctx, SearchRequest(query="refunds take", mode=mode))).items]
        assert usual[2] == "refunds are for members"
        request = SearchRequest(query="refunds take", mode=mode, k=2, diversity=0.7)
        assert [hit.text for hit in (await service.search(ctx, request)).items] == [usual[0], usual[2]]
    assert (await service.search(await library.tenant(), SearchRequest(query="refunds", diversity=1.0))).items == []


async def test_passages_are_read_with_their_neighbours_where_that_is_asked(
    service: SearchService, library: Library
) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["one before", "refunds take thirty days", "one after", "two after"])
    await library.add(ctx, ["another refund"])
    usual = (await service.search(ctx, SearchRequest(query="refunds", k=2))).items
    assert {hit.passage for hit in usual} == {None}
    read = (await service.search(ctx, SearchRequest(query="refunds", k=2, neighbours=1))).items
    assert [hit.chunk_id for hit in read] == [hit.chunk_id for hit in usual]
    assert {hit.text: hit.passage for hit in read} == {
        "refunds take thirty days": "one before\nrefunds take thirty days\none after",
        "another refund": "another refund",
    }
    nothing = SearchRequest(query="refunds", mode=SearchMode.KEYWORD, neighbours=1)
    assert (await service.search(await library.tenant(), nothing)).items == []


async def test_a_passage_on_two_pages_is_found_on_the_one_that_has_the_words(
    service: SearchService, library: Library
) -> None:
    ctx = await library.tenant()
    text = "The end of the notes. Inventories were 42 million."
    entry = await library.add(ctx, [text, "ships"])
    told = f'[[0, {{"page": 6}}], [{text.index("Inv")}, {{"page": 7, "heading": "Balance"}}]]'
    await library.owner.execute("update chunks set page = 6, parts = $2::json where id = $1", entry.chunks[0], told)
    for query, page in (("inventories", 7), ("end of the notes", 6)):
        (hit,) = (await service.search(ctx, SearchRequest(query=query, k=1))).items
        assert (hit.chunk_id, hit.location.page) == (entry.chunks[0], page)
