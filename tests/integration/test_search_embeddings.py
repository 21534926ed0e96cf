"""Embedding providers over a real socket: batches, keys, refusals, and what an endpoint may get wrong."""

import asyncio
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from internal.entities.ids import new_id
from internal.entities.search import Space
from internal.providers.embeddings import LocalEmbeddings, OpenAIEmbeddings, batches, estimate_tokens
from internal.services.embedder import Embedder
from pkg.apperr import TRANSIENT, AppError, Code, SettingsError
from pkg.ctxutil import Context, Role
from pkg.sections import Ai
from tests.fakes.openai_server import FakeOpenAI, Reply, running_fake, vector_of

CTX = Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")
SPACE = Space("fake-embedding", "1", 32, 1)


@pytest.fixture
async def fake() -> AsyncGenerator[FakeOpenAI]:
    async with running_fake(dimension=SPACE.dim) as found:
        yield found


def remote(fake: FakeOpenAI, space: Space = SPACE, **values: object) -> OpenAIEmbeddings:
    given = {"base_url": fake.base_url, "api_key": "one", "embedding_model": space.model, "timeout_seconds": 2.0}
    return OpenAIEmbeddings(Ai.model_validate({**given, **values}), space)


async def failure(provider: OpenAIEmbeddings, lane: str = "ingest") -> AppError:
    with pytest.raises(AppError) as caught:
        await provider.embed(["text"], kind="passage", lane=lane)  # type: ignore[arg-type]
    await provider.close()
    return caught.value


async def test_vectors_come_in_the_order_of_the_texts(fake: FakeOpenAI) -> None:
    provider = remote(fake)
    texts = [f"text number {n}" for n in range(300)]
    vectors = (await provider.embed(texts, kind="passage", lane="ingest")).vectors
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, [vector_of(text, SPACE.dim) for text in texts], atol=1e-5)
    assert [len(request.body["input"]) for request in fake.requests] == [128, 128, 44]
    assert (await provider.embed([], kind="query", lane="ingest")).vectors.shape == (0, SPACE.dim)
    await provider.close()


async def test_a_rate_limit_moves_on_to_the_next_key(fake: FakeOpenAI) -> None:
    fake.embedding_replies.append(Reply(status=429, retry_after="30"))
    provider = remote(fake, api_key="one,two")
    await provider.embed(["text"], kind="query", lane="interactive")
    await provider.embed(["text"], kind="query", lane="interactive")
    assert [request.key for request in fake.requests] == ["one", "two", "two"]
    await provider.close()


async def test_a_long_rate_limit_is_handed_on(fake: FakeOpenAI) -> None:
    fake.embedding_replies.append(Reply(status=429, retry_after="90"))
    error = await failure(remote(fake))
    assert (error.code, error.retry_after, len(fake.requests)) == (Code.MODEL_UNAVAILABLE, 90.0, 1)


async def test_a_rate_limit_after_a_refusal_is_waited_out_and_not_the_refusal(fake: FakeOpenAI) -> None:
    fake.embedding_replies += [Reply(status=401), Reply(status=429, retry_after="0.1")]
    provider = remote(fake)
    with pytest.raises(AppError, match="AI__API_KEY"):
        await provider.embed(["text"], kind="query", lane="interactive")
    async with asyncio.timeout(5):
        assert (await provider.embed(["text"], kind="query", lane="interactive")).vectors.shape == (1, SPACE.dim)
    await provider.close()


async def test_a_pause_until_a_refused_key_is_tried_again_is_handed_on(fake: FakeOpenAI) -> None:
    fake.embedding_replies += [Reply(status=401), Reply(status=429, retry_after="50")]
    async with asyncio.timeout(5):
        error = await failure(remote(fake, api_key="one,two"), lane="interactive")
    assert (error.code, error.retry_after) == (Code.MODEL_UNAVAILABLE, 50.0)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("lane", ["interactive", "ingest"])
async def test_all_tries_together_end_with_the_time_out(fake: FakeOpenAI, status: int, lane: str) -> None:
    fake.embedding_replies += [Reply(status=status, retry_after="15")] * 5
    async with asyncio.timeout(5):
        error = await failure(remote(fake), lane=lane)
    assert (error.code, error.retry_after, len(fake.requests)) == (Code.MODEL_UNAVAILABLE, 15.0, 1)


async def test_a_passing_fault_is_tried_again(fake: FakeOpenAI) -> None:
    fake.embedding_replies += [Reply(status=500), Reply(status=503)]
    provider = remote(fake)
    assert (await provider.embed(["text"], kind="passage", lane="ingest")).vectors.shape == (1, SPACE.dim)
    assert len(fake.requests) == 3
    await provider.close()


async def test_a_lasting_fault_opens_the_circuit(fake: FakeOpenAI) -> None:
    fake.embedding_replies += [Reply(status=500)] * 20
    provider = remote(fake)
    for _ in range(3):
        with pytest.raises(AppError) as caught:
            await provider.embed(["text"], kind="query", lane="interactive")
        assert caught.value.code is Code.MODEL_UNAVAILABLE
    asked = len(fake.requests)
    error = await failure(provider, lane="interactive")
    assert error.code is Code.MODEL_UNAVAILABLE
    assert error.retry_after is not None
    assert len(fake.requests) == asked


@pytest.mark.parametrize(("status", "code"), [(400, Code.MODEL_REFUSED), (404, Code.MODEL_REFUSED)])
async def test_a_refusal_is_not_tried_again(fake: FakeOpenAI, status: int, code: Code) -> None:
    fake.embedding_replies += [Reply(status=status)]
    error = await failure(remote(fake))
    assert (error.code, len(fake.requests)) == (code, 1)


async def test_a_bad_key_is_named(fake: FakeOpenAI) -> None:
    fake.embedding_replies += [Reply(status=401)]
    error = await failure(remote(fake))
    assert error.code is Code.MODEL_UNAVAILABLE
    assert "AI__API_KEY" in error.detail


async def test_a_wrong_dimension_names_the_setting(fake: FakeOpenAI) -> None:
    error = await failure(remote(fake, Space("fake-embedding", "1", 64, 1)))
    assert error.code in TRANSIENT  # tasks are held until the setting is mended
    assert error.retry_after
    assert all(part in error.detail for part in ("AI__EMBEDDING_DIM", "32", "64"))
    assert len(fake.requests) == 1


async def test_the_local_process_is_told_kind_and_lane(fake: FakeOpenAI) -> None:
    provider = LocalEmbeddings(fake.base_url.removesuffix("/v1"), SPACE)
    await provider.embed(["q"], kind="query", lane="interactive")
    await provider.embed(["p"] * 70, kind="passage", lane="ingest")
    await provider.close()
    asked = [(r.body["input_type"], r.headers["x-lane"], len(r.body["input"])) for r in fake.requests]
    assert asked == [("query", "interactive", 1), ("passage", "ingest", 64), ("passage", "ingest", 6)]


async def test_a_local_process_that_is_away_is_a_passing_fault() -> None:
    provider = LocalEmbeddings("unix:/nonexistent/models.sock", SPACE)
    for call in (provider.embed(["q"], kind="query", lane="interactive"), provider.count_tokens(["q"])):
        with pytest.raises(AppError) as caught:
            await call
        assert caught.value.code is Code.MODEL_UNAVAILABLE
    await provider.close()
    with pytest.raises(SettingsError, match="MODELS__URL"):
        LocalEmbeddings("models.sock", SPACE)


async def test_a_query_is_embedded_once_for_each_tenant(fake: FakeOpenAI) -> None:
    provider = remote(fake)
    embedder = Embedder(provider)
    first = await embedder.embed_query(CTX, "what")
    assert np.array_equal(first, await embedder.embed_query(CTX, "what"))
    assert not first.flags.writeable
    assert len(fake.requests) == 1
    other = Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")
    await embedder.embed_query(other, "what")
    assert len(fake.requests) == 2
    await provider.close()


def test_batches_are_bounded_by_count_and_tokens() -> None:
    assert [len(batch) for batch in batches(["a"] * 129)] == [128, 1]
    assert [len(batch) for batch in batches(["汉" * 20_000] * 3)] == [1, 1, 1]
    assert [len(batch) for batch in batches(["汉" * 10_000] * 4)] == [3, 1]
    assert batches([]) == []


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("汉字", 2), ("abcdef", 2), ("abcdefg", 3), ("汉abc", 2)])
def test_tokens_are_estimated_high(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens
