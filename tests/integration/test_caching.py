"""Remembered searches: as fresh as the database, one tenant's alone, and never in the way."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple
from uuid import UUID

import pytest
from redis.asyncio import Redis

from internal.entities.search import Filters, SearchRequest, SearchResult
from internal.providers.embeddings import OpenAIEmbeddings
from internal.repositories.cache import open_cache
from internal.services.caching import LARGEST_BYTES, CacheKind, Level, SharedLevel, TwoLevelCache
from internal.services.embedder import Embedder
from internal.services.search import SearchService
from internal.services.terms import TermAnalyser
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from pkg.sealing import Sealer
from pkg.sections import Ai
from tests.fakes.openai_server import FakeOpenAI, Reply, running_fake
from tests.library import SPACE, Library
from tests.servers import Database

QUERY = SearchRequest(query="refunds")


@pytest.fixture(scope="module")
async def library(module_database: Database) -> AsyncGenerator[Library]:
    opened = await Library.open(module_database)
    yield opened
    await opened.close()


class Server(NamedTuple):
    """What of a server process searches."""

    caching: TwoLevelCache
    searches: SearchService

    async def ask(self, ctx: Context, request: SearchRequest = QUERY) -> tuple[str, list[str]]:
        found: SearchResult = await self.searches.search(ctx, request)
        return found.cache, [hit.text for hit in found.items]


class House(NamedTuple):
    """Two servers over one library and one Redis."""

    one: Server
    two: Server
    fake: FakeOpenAI
    redis: Redis


@pytest.fixture
async def house(library: Library, redis_url: str) -> AsyncGenerator[House]:
    async with running_fake(dimension=SPACE.dim) as fake, Redis.from_url(redis_url) as redis:
        caches = [open_cache(redis_url) for _ in range(2)]
        provider = OpenAIEmbeddings(Ai(base_url=fake.base_url, embedding_model=SPACE.model), SPACE)
        servers: list[Server] = []
        for cache in caches:
            caching = TwoLevelCache(SharedLevel(cache, Sealer("secret", "cache")))
            caching.start()
            searches = SearchService(library.app, Embedder(provider, caching), TermAnalyser(), caching)
            servers.append(Server(caching, searches))
        yield House(servers[0], servers[1], fake, redis)
        for server in servers:
            await server.caching.close()
        for cache in caches:
            await cache.close()
        await provider.close()


async def test_a_repeated_search_is_remembered_by_every_server(house: House, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds take thirty days", "the weather"])
    first = await house.one.ask(ctx)
    assert first[0] == "miss"
    assert await house.one.ask(ctx) == ("hit", first[1])
    assert await house.two.ask(ctx) == ("hit", first[1]), "through Redis"
    await house.redis.flushall()
    assert await house.one.ask(ctx) == ("hit", first[1]), "from memory, as true as before"
    assert len(house.fake.requests) == 1
    assert (await house.one.ask(ctx, SearchRequest(query="refunds", k=1)))[0] == "miss"
    assert len(house.fake.requests) == 1, "the words are embedded once"


async def test_redis_holds_nothing_readable_and_what_somebody_wrote_there_is_no_answer(
    house: House, library: Library
) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    await library.add(ctx, ["refunds take thirty days"])
    await library.add(other, ["no refunds at all"])
    await house.one.ask(ctx)
    await house.one.ask(other)
    ((first, one), (second, two)) = [
        (key, await house.redis.get(key))
        for tenant in (ctx.tenant_id, other.tenant_id)
        async for key in house.redis.scan_iter(f"t:{tenant}:search:*")
    ]
    assert b"refund" not in one + two
    await house.redis.set(first, two)
    await house.redis.set(second, b"x" * 100)
    assert await house.two.ask(ctx) == ("miss", ["refunds take thirty days"])
    assert await house.two.ask(other) == ("miss", ["no refunds at all"])


Change = Callable[[Library, Context, UUID], Awaitable[object]]


async def _deleted(library: Library, ctx: Context, document: UUID) -> None:
    async with library.app.tenant(ctx) as tx:
        await tx.documents.remove(document)


def written(assignment: str) -> Change:
    async def write(library: Library, ctx: Context, document: UUID) -> None:
        sql = f"update documents set {assignment} where tenant_id = $1 and id = $2"
        assert await library.owner.execute(sql, ctx.tenant_id, document) == "UPDATE 1"

    return write


async def _renamed(library: Library, ctx: Context, document: UUID) -> None:
    await library.owner.execute("update collections set name = 'New' where tenant_id = $1", ctx.tenant_id)


async def _disbanded(library: Library, ctx: Context, document: UUID) -> None:
    await library.owner.execute("delete from collections where tenant_id = $1", ctx.tenant_id)


CHANGES: dict[str, Change] = {
    "another is published": lambda library, ctx, _document: library.add(ctx, ["refunds are cheap"]),
    "deleted": _deleted,
    "renamed": written("filename = 'other.txt'"),
    "made private": written("visibility = 'private'"),
    "tagged": written("tags = '{x}'"),
    "unpublished": written("generation_id = null"),
    "given away": written("owner_id = gen_random_uuid()"),
    "its collection renamed": _renamed,
    "its collection removed": _disbanded,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_after_any_change_the_database_is_asked(house: House, library: Library, change: Change) -> None:
    """Written past the services: what they forget to say, the database says."""
    ctx = await library.tenant()
    entry = await library.add(ctx, ["refunds take thirty days"])
    async with library.app.tenant(ctx) as tx:
        collection = await tx.collections.ensure("Old", announced=True)
    await written(f"collection_id = '{collection}'")(library, ctx, entry.document)
    for server in (house.one, house.two):
        await server.ask(ctx)
        assert (await server.ask(ctx))[0] == "hit"
    await change(library, ctx, entry.document)
    assert (await house.one.ask(ctx))[0] == "miss"
    assert (await house.two.ask(ctx))[0] == "hit", "what the other has just found"


async def test_a_deleted_document_is_never_served_again(house: House, library: Library) -> None:
    ctx = await library.tenant()
    stop = asyncio.Event()
    deleted: set[str] = set()

    async def search(server: Server) -> int:
        count = 0
        while not stop.is_set():
            gone = set(deleted)
            _cache, texts = await server.ask(ctx)
            assert not gone & set(texts)
            count += 1
        return count

    readers = [asyncio.create_task(search(server)) for server in (house.one, house.two) for _ in range(3)]
    for number in range(12):
        text = f"refunds, rule {number}"
        entry = await library.add(ctx, [text])
        while text not in (await house.two.ask(ctx))[1]:
            await asyncio.sleep(0)
        if number % 3 == 0:
            await house.redis.flushall()
        await _deleted(library, ctx, entry.document)
        deleted.add(text)
    stop.set()
    assert min(await asyncio.gather(*readers)) > 3


async def test_tenants_never_share_an_answer(house: House, library: Library) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    await library.add(ctx, ["refunds take thirty days"])
    await library.add(other, ["no refunds at all"])
    for server in (house.one, house.two):
        assert (await server.ask(ctx))[1] == ["refunds take thirty days"]
        assert (await server.ask(other))[1] == ["no refunds at all"]


async def test_readers_share_an_answer_unless_they_own_documents(house: House, library: Library) -> None:
    ctx = await library.tenant()
    reader, second, author = [await library.member(ctx.tenant_id) for _ in range(3)]
    await library.add(ctx, ["refunds take thirty days"])
    await library.add(author, ["my own refunds"], visibility="private")
    assert (await house.one.ask(author))[1].count("my own refunds") == 1
    assert await house.one.ask(reader) == ("miss", ["refunds take thirty days"])
    assert await house.one.ask(second) == ("hit", ["refunds take thirty days"])
    mine = SearchRequest(query="refunds", filters=Filters(mine=True))
    assert await house.one.ask(reader, mine) == ("miss", [])
    assert await house.one.ask(second, mine) == ("miss", [])
    assert await house.one.ask(author, mine) == ("miss", ["my own refunds"])


async def test_who_asks_the_same_at_once_is_answered_by_one_search(house: House, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds take thirty days"])
    answers = await asyncio.gather(*(house.one.ask(ctx) for _ in range(40)))
    assert [state for state, _texts in answers].count("miss") == 1
    assert {tuple(texts) for _state, texts in answers} == {("refunds take thirty days",)}
    assert len(house.fake.requests) == 1


async def test_who_leaves_takes_nobodys_answer_along(house: House, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds take thirty days"])
    house.fake.embedding_replies.append(Reply(seconds_before=0.3))
    first = asyncio.create_task(house.one.ask(ctx))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(house.one.ask(ctx))
    await asyncio.sleep(0.05)
    first.cancel()
    assert await second == ("hit", ["refunds take thirty days"])


async def test_an_error_is_not_kept(house: House, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds take thirty days"])
    house.fake.embedding_replies += [Reply(status=400)]
    with pytest.raises(AppError):
        await house.one.ask(ctx)
    assert await house.one.ask(ctx) == ("miss", ["refunds take thirty days"])


async def test_without_redis_memory_is_all(library: Library) -> None:
    away = open_cache("redis://127.0.0.1:1/0")
    caching = TwoLevelCache(SharedLevel(away, Sealer("secret", "cache")))
    ctx = await library.tenant()
    asked = 0

    async def compute() -> bytes:
        nonlocal asked
        asked += 1
        return b"value"

    for level in (Level.MISS, Level.MEMORY, Level.MEMORY):
        assert await caching.through(ctx, CacheKind.SEARCH, ("a",), compute) == (b"value", level)
    state = await caching.state(ctx)
    assert (asked, state.redis, state.kinds[CacheKind.SEARCH].memory, state.kinds[CacheKind.SEARCH].misses) == (
        1, False, 2, 1,
    )  # fmt: skip
    await away.close()


async def test_counts_of_all_servers_are_added_up(house: House, library: Library) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    await library.add(ctx, ["refunds take thirty days"])
    for server in (house.one, house.one, house.two, house.two):
        await server.ask(ctx)
    await house.one.caching.state(ctx)
    counts = (await house.two.caching.state(ctx)).kinds[CacheKind.SEARCH]
    assert (counts.memory, counts.redis, counts.misses, counts.hit_rate) == (2, 1, 1, 0.75)
    assert (await house.two.caching.state(other)).kinds[CacheKind.SEARCH].hits == 0


async def test_memory_is_bounded_and_what_is_used_stays(library: Library) -> None:
    caching, ctx = TwoLevelCache(None, memory_bytes=20_000), await library.tenant()

    async def ask(name: str, size: int = 1000) -> Level:
        async def compute() -> bytes:
            return bytes(size)

        return (await caching.through(ctx, CacheKind.SEARCH, (name,), compute)).level

    await ask("kept")
    for number in range(100):
        assert await ask(f"other {number}") is Level.MISS
        assert await ask("kept") is Level.MEMORY
    state = await caching.state(ctx)
    assert state.size <= 20_000
    assert state.entries == 20_000 // 1300
    await ask("huge", LARGEST_BYTES + 1)
    assert (await caching.state(ctx)).entries == state.entries


async def test_a_search_that_the_model_refuses_says_so_to_all_who_wait(house: House, library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["refunds take thirty days"])
    house.fake.embedding_replies += [Reply(status=400, seconds_before=0.1)]
    answers = await asyncio.gather(*(house.one.ask(ctx) for _ in range(5)), return_exceptions=True)
    assert {answer.code for answer in answers if isinstance(answer, AppError)} == {Code.MODEL_REFUSED}
    assert len([answer for answer in answers if isinstance(answer, AppError)]) == 5
