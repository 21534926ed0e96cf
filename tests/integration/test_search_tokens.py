"""A search whose words find little is ordered by tokens. Codes here are of words, as the model's are of pieces."""

import hashlib
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import pytest

from internal.entities.search import SearchRequest
from internal.providers.embedding_wire import Embedded
from internal.providers.embeddings import Kind, OpenAIEmbeddings
from internal.providers.turns import Lane
from internal.services.embedder import Embedder
from internal.services.late_interaction import RERANKED
from internal.services.search import SearchService
from internal.services.terms import TermAnalyser
from pkg.ctxutil import Context
from pkg.sections import Ai
from tests.fakes.openai_server import running_fake
from tests.library import SPACE, Entry, Library, embed, text_hash
from tests.servers import Database


def bits(words: str) -> np.ndarray:
    """One row of 384 bits for each word."""
    rows = [np.frombuffer(hashlib.shake_256(word.encode()).digest(SPACE.dim // 8), np.uint8) for word in words.split()]
    return np.stack(rows)


class CodedEmbeddings(OpenAIEmbeddings):
    """The endpoint's vectors; a query's tokens are its words behind "as:"."""

    @property
    def coded(self) -> bool:
        return True

    async def embed(
        self,
        texts: Sequence[str],
        *,
        kind: Kind,
        lane: Lane,
        deadline: float | None = None,
        searched: bool = False,
        partly: bool = False,
    ) -> Embedded:
        found = await super().embed(texts, kind=kind, lane=lane, deadline=deadline)
        assert (kind, searched) == ("query", True)
        signs = np.unpackbits(bits(texts[0].partition("as:")[2]), axis=1).astype("<f2") * 2 - 1
        return Embedded(found.vectors, found.usage, [signs.tobytes()])


@pytest.fixture(scope="module")
async def library(module_database: Database) -> AsyncGenerator[Library]:
    opened = await Library.open(module_database)
    yield opened
    await opened.close()


@pytest.fixture
async def service(library: Library) -> AsyncGenerator[SearchService]:
    async with running_fake(dimension=SPACE.dim) as fake:
        provider = CodedEmbeddings(Ai(base_url=fake.base_url, embedding_model=SPACE.model), SPACE)
        yield SearchService(library.app, Embedder(provider), TermAnalyser())
        await provider.close()


async def code(library: Library, ctx: Context, entry: Entry, *meanings: str) -> None:
    """Stores codes for the first passages of an entry."""
    async with library.worker.tenant(ctx) as tx:
        await tx.token_codes.add(entry.chunks[: len(meanings)], [bits(meaning).tobytes() for meaning in meanings])


async def found(service: SearchService, ctx: Context, query: str, k: int = 10) -> list[str]:
    return [hit.text for hit in (await service.search(ctx, SearchRequest(query=query, k=k))).items]


async def test_tokens_order_what_words_do_not_tell(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    texts = ["窗户 一", "窗户 二", "窗户 三"]
    entry = await library.add(ctx, texts)
    await code(library, ctx, entry, "door wall", "roof garden", "garden roof tower")
    assert (await found(service, ctx, "qqq as: tower garden"))[0] == "窗户 三"
    assert (await found(service, ctx, "qqq as: wall"))[0] == "窗户 一"
    assert len(await found(service, ctx, "qqq as: wall", k=2)) == 2


async def test_words_that_cover_the_query_decide(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    entry = await library.add(ctx, ["the harbour of Bergen", "a forest", "a lake"])
    await code(library, ctx, entry, "nothing", "harbour bergen", "nothing")
    assert (await found(service, ctx, "harbour of Bergen as: harbour bergen"))[0] == "the harbour of Bergen"


async def test_a_passage_far_behind_is_brought_to_the_front(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    texts = [f"window number {number}" for number in range(RERANKED - 10)]
    query = "zzz as: tower"
    order = np.argsort([-float(embed(query) @ embed(text)) for text in texts])
    entry = await library.add(ctx, texts)
    await code(library, ctx, entry, *("tower" if place == order[-1] else "wall" for place in range(len(texts))))
    assert await found(service, ctx, query, k=3) == [texts[order[-1]], texts[order[0]], texts[order[1]]]


async def test_passages_without_codes_count_as_usual_ones(service: SearchService, library: Library) -> None:
    ctx = await library.tenant()
    query = "zzz as: tower"
    entry = await library.add(ctx, ["first one", "second one", "third one"])
    before = await found(service, ctx, query)
    await code(library, ctx, entry, "wall")
    after = await found(service, ctx, query)
    assert sorted(after) == sorted(before)
    assert [text for text in after if text != "first one"] == [text for text in before if text != "first one"]


async def test_codes_are_the_tenants_own_and_go_with_their_passages(library: Library) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    entry = await library.add(ctx, ["one", "two"])
    await code(library, ctx, entry, "wall", "tower roof")
    async with library.app.tenant(other) as tx:
        assert await tx.token_codes.of_chunks(entry.chunks) == {}
    async with library.app.tenant(ctx) as tx:
        kept = await tx.token_codes.of_chunks(entry.chunks)
    assert [len(kept[chunk]) for chunk in entry.chunks] == [48, 96]
    async with library.worker.tenant(ctx) as tx:
        known = await tx.vectors.reuse(SPACE, [text_hash("one")], coded=True)
        assert known[text_hash("one")].codes == kept[entry.chunks[0]]
        await tx.chunks.remove(entry.generation, limit=10)
    assert await library.owner.fetchval("select count(*) from token_codes where tenant_id = $1", ctx.tenant_id) == 0


async def test_what_has_no_codes_yet_is_embedded_again(library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["written by an older version"])
    async with library.worker.tenant(ctx) as tx:
        assert await tx.vectors.reuse(SPACE, [text_hash("written by an older version")], coded=True) == {}
