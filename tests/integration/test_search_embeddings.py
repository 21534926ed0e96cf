"""Embedding providers over a real socket: batches, keys, refusals, and what an endpoint may get wrong."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np
import pytest

from internal.entities.ids import new_id
from internal.entities.search import Space
from internal.providers.embedding_batches import BatchSize, estimate_tokens
from internal.providers.embeddings import LocalEmbeddings, OpenAIEmbeddings
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


def at_most(texts: int, status: int, body: dict[str, Any]) -> Callable[[list[str]], tuple[int, dict[str, Any]] | None]:
    """An endpoint that takes no more texts at a time, and says so with this."""
    return lambda given: (status, body) if len(given) > texts else None


def said(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


TOO_BIG = [
    (
        400,
        said(
            "<400> InternalError.Algo.InvalidParameter: Value error, batch size is invalid, it should not be larger"
            " than 10.: input.contents",
            "InvalidParameter",
        ),
    ),
    (413, {"message": "batch size 100 > maximum allowed batch size 32", "code": 413, "type": "Validation"}),
    (422, {"message": "input batch size 136 > maximum allowed batch size 64", "code": 20042}),
    (400, said("Too many inputs. The max number of inputs is 16.  We hope to increase the number")),
    (400, {"object": "error", "message": "Too many inputs in request, split into more batches.", "code": "3210"}),
    (400, said("Requested 309209 tokens, max 300000 tokens per request", "max_tokens_per_request")),
    (400, said("Too many tokens in batch. Max is 16384 got 17555")),
    (400, {"object": "error", "message": "Too many tokens overall, split into more batches.", "code": "3210"}),
    (400, said("This model's maximum context length is 8192 tokens, however you requested 8610 tokens")),
    (400, said("too long", "context_length_exceeded")),
    (413, said("Request Entity Too Large")),
    (413, {}),
]


@pytest.mark.parametrize(("status", "body"), TOO_BIG)
async def test_a_batch_that_is_too_big_is_halved_and_the_size_remembered(
    fake: FakeOpenAI, status: int, body: dict[str, Any]
) -> None:
    fake.too_big = at_most(20, status, body)
    provider = remote(fake)
    texts = [f"text {n:03}" for n in range(100)]
    vectors = (await provider.embed(texts, kind="passage", lane="ingest")).vectors
    assert np.allclose(vectors, [vector_of(text, SPACE.dim) for text in texts], atol=1e-5)
    assert sorted(fake.embedded_texts) == texts  # each was paid for once
    before = len(fake.requests)
    await provider.embed(texts, kind="passage", lane="ingest")
    sizes = [len(request.body["input"]) for request in fake.requests[before:]]
    assert sum(sizes) == 100
    assert max(sizes) <= 20
    await provider.close()


@pytest.mark.parametrize(("status", "body"), TOO_BIG)
async def test_a_single_text_that_is_too_long_is_refused_and_nothing_is_learned(
    fake: FakeOpenAI, status: int, body: dict[str, Any]
) -> None:
    fake.too_big = lambda texts: (status, body) if any("long" in text for text in texts) else None
    provider = remote(fake)
    texts = ["short"] * 60 + ["long"]
    with pytest.raises(AppError) as caught:
        await provider.embed(texts, kind="passage", lane="ingest")
    assert caught.value.code is Code.MODEL_REFUSED
    fake.requests.clear()
    await provider.embed(["short"] * 61, kind="passage", lane="ingest")
    assert [len(request.body["input"]) for request in fake.requests] == [61]
    await provider.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, said("Invalid value for input")),
        (400, said("The batch size is a mystery")),
        (401, said("Too many inputs. The max number of inputs is 16.")),
        (404, said("maximum context length is 8192 tokens")),
        (400, {"error": "maximum context length is many tokens"}),
        (400, {"error": {"message": ["Too many tokens in batch"]}}),
    ],
)
async def test_another_refusal_is_not_taken_for_a_batch_that_is_too_big(
    fake: FakeOpenAI, status: int, body: dict[str, Any]
) -> None:
    fake.too_big = at_most(1, status, body)
    provider = remote(fake)
    with pytest.raises(AppError):
        await provider.embed(["one", "two"], kind="passage", lane="ingest")
    assert len(fake.requests) == 1
    await provider.close()


async def test_the_settings_bound_a_batch(fake: FakeOpenAI) -> None:
    provider = remote(fake, embedding_batch=10, embedding_batch_tokens=100)
    await provider.embed(["a"] * 25, kind="passage", lane="ingest")
    await provider.embed(["b" * 150] * 4, kind="passage", lane="ingest")
    sizes = [(request.body["input"][0][0], len(request.body["input"])) for request in fake.requests]
    assert sorted(sizes) == [("a", 5), ("a", 10), ("a", 10), ("b", 2), ("b", 2)]
    await provider.close()


async def test_what_was_paid_for_is_kept_where_the_model_goes_away_midway(fake: FakeOpenAI) -> None:
    served: list[str] = []

    def serve(texts: list[str]) -> tuple[int, dict[str, Any]] | None:
        served.append(texts[0])
        return (503, said("overloaded")) if len(served) > 3 else None

    fake.too_big = serve
    provider = remote(fake, embedding_batch=2, timeout_seconds=1.0)
    texts = [f"text {n}" for n in range(12)]
    found = await provider.embed(texts, kind="passage", lane="ingest", partly=True)
    assert 2 <= len(found.vectors) <= 6
    assert np.allclose(found.vectors, [vector_of(text, SPACE.dim) for text in texts[: len(found.vectors)]], atol=1e-5)
    with pytest.raises(AppError) as caught:
        await provider.embed(texts, kind="passage", lane="ingest", partly=True)
    assert caught.value.code is Code.MODEL_UNAVAILABLE
    await provider.close()


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
    split = BatchSize(texts=128, tokens=32_000).split
    assert [len(batch) for batch in split(["a"] * 129)] == [128, 1]
    assert [len(batch) for batch in split(["汉" * 20_000] * 3)] == [1, 1, 1]
    assert [len(batch) for batch in split(["汉" * 10_000] * 4)] == [3, 1]
    assert split([]) == []


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("汉字", 2), ("abcdef", 2), ("abcdefg", 3), ("汉abc", 2)])
def test_tokens_are_estimated_high(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


async def test_who_has_no_use_for_a_part_is_told_that_the_model_went_away(fake: FakeOpenAI) -> None:
    """A conversation's memories are written together."""
    provider = remote(fake, embedding_batch=1, timeout_seconds=0.5)
    fake.embedding_replies += [Reply(), *[Reply(status=503)] * 20]
    with pytest.raises(AppError) as caught:
        await Embedder(provider).embed_batch(CTX, ["one", "two", "three"])
    assert caught.value.code is Code.MODEL_UNAVAILABLE
    await provider.close()
