"""Embeddings through endpoints that limit their rate: nothing is lost, and they seldom have to say no."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from internal.entities.search import Space
from internal.handlers.model_metrics import ModelMetrics
from internal.providers.embeddings import OpenAIEmbeddings
from internal.providers.model_calls import ModelCalls
from pkg.apperr import AppError, Code
from pkg.sections import Ai
from tests.fakes.limits import RateLimit
from tests.fakes.openai_server import FakeOpenAI, Reply, running_fake

SPACE = Space("fake-embedding", "1", 32, 1)
CALLS = 200
HANDFUL = 12


@pytest.fixture
async def fake() -> AsyncGenerator[FakeOpenAI]:
    async with running_fake(dimension=SPACE.dim) as found:
        yield found


def remote(fake: FakeOpenAI, **values: object) -> OpenAIEmbeddings:
    given = {"base_url": fake.base_url, "api_key": "one", "embedding_model": SPACE.model, **values}
    return OpenAIEmbeddings(Ai.model_validate(given), SPACE)


async def embed_all(provider: OpenAIEmbeddings) -> None:
    texts = [f"text {number}" for number in range(CALLS)]
    found = await asyncio.gather(*(provider.embed([text], kind="passage", lane="ingest") for text in texts))
    assert [each.vectors.shape for each in found] == [(1, SPACE.dim)] * CALLS


@pytest.mark.parametrize("headers", [True, False], ids=["told", "untold"])
async def test_a_limit_is_learned_and_nothing_is_lost(fake: FakeOpenAI, *, headers: bool) -> None:
    fake.limit = RateLimit(requests=20, seconds=0.25, headers=headers)
    provider = remote(fake)
    await embed_all(provider)
    assert sorted(fake.embedded_texts) == sorted(f"text {number}" for number in range(CALLS))
    assert fake.limit.refused.total() <= HANDFUL
    assert provider.retries.refused == fake.limit.refused.total()
    assert provider.retries.turns.counts["ingest"].waits > 0
    await provider.close()


async def test_keys_share_the_load(fake: FakeOpenAI) -> None:
    fake.limit = RateLimit(requests=20, seconds=0.25)
    provider = remote(fake, api_key="one,two")
    await embed_all(provider)
    assert fake.limit.refused.total() <= 2 * HANDFUL
    assert min(fake.limit.served["one"], fake.limit.served["two"]) >= CALLS / 4
    await provider.close()


async def test_an_endpoint_without_limits_is_not_slowed(fake: FakeOpenAI) -> None:
    provider = remote(fake)
    await embed_all(provider)
    counts = provider.retries.turns.counts
    assert {lane: (count.waits, count.given_up) for lane, count in counts.items()} == {
        "interactive": (0, 0),
        "ingest": (0, 0),
    }
    await provider.close()


async def test_a_query_passes_the_batches_that_wait(fake: FakeOpenAI) -> None:
    fake.limit = RateLimit(requests=4, seconds=0.5)
    provider = remote(fake)
    batches = asyncio.gather(
        *(provider.embed([f"text {number}"], kind="passage", lane="ingest") for number in range(20))
    )
    while fake.limit.served["one"] < 4:
        await asyncio.sleep(0.01)
    await provider.embed(["query"], kind="query", lane="interactive")
    assert fake.embedded_texts.index("query") <= 10  # of 21
    await batches
    await provider.close()


async def test_a_turn_too_far_off_is_handed_on_at_once(fake: FakeOpenAI) -> None:
    headers = {"x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0"}
    fake.embedding_replies.append(Reply(status=429, headers={**headers, "x-ratelimit-reset-requests": "1m30s"}))
    provider = remote(fake)
    async with asyncio.timeout(20):
        with pytest.raises(AppError) as caught:
            await provider.embed(["text"], kind="query", lane="interactive")
    assert caught.value.code is Code.MODEL_UNAVAILABLE
    assert caught.value.retry_after is not None
    assert 30 < caught.value.retry_after <= 90
    assert len(fake.requests) == 1
    await provider.close()


async def test_metrics_tell_what_an_operator_needs_and_no_key(fake: FakeOpenAI) -> None:
    fake.embedding_replies += [Reply(status=429, retry_after="60"), Reply(status=429, retry_after="60")]
    provider = remote(fake, api_key="sk-secret-one,sk-secret-two,sk-secret-three")
    calls = ModelCalls()
    calls.add(provider.retries)
    registry = CollectorRegistry(auto_describe=True)
    registry.register(ModelMetrics(calls))
    await provider.embed(["text"], kind="passage", lane="ingest")
    with pytest.raises(AppError):
        fake.embedding_replies.append(Reply(status=429, retry_after="60"))
        await provider.embed(["text"], kind="query", lane="interactive")
    told = generate_latest(registry).decode()
    name, model = 'kind="embedding",model="fake-embedding"', 'model="fake-embedding"'
    for line in (
        f"model_calls_limited_total{{{name}}} 3.0",
        f"model_keys{{{name}}} 3.0",
        f"model_keys_resting{{{name}}} 3.0",
        f'model_calls_given_up_total{{kind="embedding",lane="interactive",{model}}} 1.0',
        f'model_calls_given_up_total{{kind="embedding",lane="ingest",{model}}} 0.0',
    ):
        assert line in told, told
    assert "secret" not in told
    await provider.close()
