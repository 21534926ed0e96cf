"""When calls of model endpoints are tried again: the same rules for chat and embeddings, over a real socket."""

import asyncio
import email.utils
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest

from internal.entities.conversations import ChatMessage, Prompt, Usage
from internal.entities.ids import new_id
from internal.entities.search import Space
from internal.providers.embeddings import OpenAIEmbeddings
from internal.providers.llm import OpenAIChat
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role
from pkg.sections import Ai
from tests.fakes.openai_server import FakeOpenAI, Reply, running_fake

SPACE = Space("fake-embedding", "1", 32, 1)
PROMPT = Prompt(messages=(ChatMessage("user", "Why?"),), question="Why?", searched="Why?", passages=())
KINDS = ("chat", "embedding")


class Caller:
    """One kind of model behind the fake, asked for one short answer."""

    def __init__(self, kind: str, fake: FakeOpenAI, base_url: str, **values: object) -> None:
        self.replies = fake.replies if kind == "chat" else fake.embedding_replies
        self._fake = fake
        settings = Ai.model_validate(
            {
                "base_url": base_url,
                "api_key": "one",
                "chat_model": "fake-chat",
                "embedding_model": SPACE.model,
                "timeout_seconds": 5.0,
                **values,
            }
        )
        self._model = OpenAIChat(settings) if kind == "chat" else OpenAIEmbeddings(settings, SPACE)

    @property
    def keys(self) -> list[str]:
        """The key of each request so far."""
        return [request.key for request in self._fake.requests]

    async def ask(self, seconds: float | None = None) -> None:
        """Raises whatever the model raises; `seconds` until the context's deadline."""
        deadline = None if seconds is None else time.monotonic() + seconds
        if isinstance(self._model, OpenAIEmbeddings):
            await self._model.embed(["text"], kind="passage", lane="ingest", deadline=deadline)
            return
        ctx = Context(
            tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t", deadline=deadline
        )
        assert any(isinstance(piece, Usage) for piece in [piece async for piece in self._model.stream(ctx, PROMPT)])

    async def refused(self, seconds: float | None = None) -> AppError:
        with pytest.raises(AppError) as caught:
            async with asyncio.timeout(15):
                await self.ask(seconds)
        return caught.value

    async def close(self) -> None:
        await self._model.close()


Make = Callable[..., Caller]


@pytest.fixture(params=KINDS)
async def make(request: pytest.FixtureRequest) -> AsyncGenerator[Make]:
    """Makes callers of one kind; every test runs for each."""
    made: list[Caller] = []
    async with running_fake(dimension=SPACE.dim) as fake:

        def caller(base_url: str = "", **values: object) -> Caller:
            made.append(Caller(request.param, fake, base_url or fake.base_url, **values))
            return made[-1]

        yield caller
        for one in made:
            await one.close()


@pytest.mark.parametrize(
    "faults",
    [
        [Reply(status=500)],
        [Reply(status=502), Reply(status=503)],
        [Reply(status=503, retry_after="0.1")],
        [Reply(status=429)],
        [Reply(status=429, retry_after="0.1")],
        [Reply(status=408)],
        [Reply(break_after=0)],
        [Reply(garbage_after=0)],
    ],
    ids=["500", "502 and 503", "503 with a pause", "429", "429 with a pause", "408", "connection lost", "garbage"],
)
async def test_what_may_pass_is_tried_again(make: Make, faults: Sequence[Reply]) -> None:
    caller = make()
    caller.replies += faults
    await caller.ask()
    assert len(caller.keys) == len(faults) + 1


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_refused_request_is_not_repeated(make: Make, status: int) -> None:
    caller = make()
    caller.replies.append(Reply(status=status))
    assert (await caller.refused()).code is Code.MODEL_REFUSED
    assert len(caller.keys) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_long_pause_is_handed_on(make: Make, status: int, form: str) -> None:
    caller = make()
    asked = "120" if form == "seconds" else email.utils.formatdate(time.time() + 120, usegmt=True)
    caller.replies.append(Reply(status=status, retry_after=asked))
    error = await caller.refused()
    assert error.code is Code.MODEL_UNAVAILABLE
    assert error.retry_after is not None
    assert 20 < error.retry_after <= 120
    assert len(caller.keys) == 1


@pytest.mark.parametrize("asked", ["soon", "-1", "9" * 400, "Mon, 99 Foo 2026", email.utils.formatdate(0, usegmt=True)])
async def test_a_strange_pause_does_no_harm(make: Make, asked: str) -> None:
    caller = make()
    caller.replies.append(Reply(status=429, retry_after=asked))
    await caller.ask()
    assert len(caller.keys) == 2


async def test_a_limited_key_rests_and_a_refused_one_is_passed_over(make: Make) -> None:
    caller = make(api_key="limited,refused,good")
    caller.replies += [Reply(status=429, retry_after="60"), Reply(status=401)]
    for _ in range(3):
        await caller.ask()
    assert caller.keys == ["limited", "refused", "good", "good", "good"]


async def test_without_a_key_that_is_taken_it_ends_at_once(make: Make) -> None:
    caller = make(api_key="one,two")
    caller.replies += [Reply(status=401), Reply(status=403)]
    error = await caller.refused()
    assert error.code is Code.MODEL_UNAVAILABLE
    assert "AI__API_KEY" in error.detail
    assert caller.keys == ["one", "two"]


async def test_a_refused_connection_is_a_passing_fault(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    caller = make(f"http://127.0.0.1:{port}/v1")
    error = await caller.refused(2.0)
    assert error.code is Code.MODEL_UNAVAILABLE
    assert error.retry_after


@pytest.mark.parametrize("bound", ["setting", "deadline"])
async def test_an_endpoint_that_hangs_is_left_in_time(make: Make, bound: str) -> None:
    caller = make(timeout_seconds=0.3) if bound == "setting" else make(timeout_seconds=60)
    caller.replies.append(Reply(hang_after=0))
    assert (await caller.refused(0.3 if bound == "deadline" else None)).code is Code.MODEL_UNAVAILABLE
    assert len(caller.keys) == 1


@pytest.mark.parametrize("bound", ["setting", "deadline"])
async def test_all_tries_together_end_in_time(make: Make, bound: str) -> None:
    caller = make(timeout_seconds=1.0) if bound == "setting" else make(timeout_seconds=60)
    caller.replies += [Reply(status=503, retry_after="15")] * 10
    error = await caller.refused(1.0 if bound == "deadline" else None)
    assert (error.code, error.retry_after) == (Code.MODEL_UNAVAILABLE, 15.0)
    assert len(caller.keys) == 1  # the next try would have come too late


async def test_nobody_is_asked_after_the_deadline(make: Make) -> None:
    caller = make()
    for _ in range(10):  # and the endpoint isn't blamed for it
        assert (await caller.refused(-1.0)).code is Code.MODEL_UNAVAILABLE
    assert caller.keys == []
    await caller.ask()


async def test_tries_end(make: Make) -> None:
    caller = make(timeout_seconds=60)
    caller.replies += [Reply(status=500, retry_after="0")] * 20
    assert (await caller.refused()).code is Code.MODEL_UNAVAILABLE
    assert len(caller.keys) in (4, 5)


QUOTA = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}


async def test_a_key_whose_quota_is_used_up_rests_for_long(make: Make) -> None:
    caller = make(api_key="empty,full")
    caller.replies.append(Reply(status=429, error=QUOTA, retry_after="1"))
    for _ in range(3):
        await caller.ask()
    assert caller.keys == ["empty", "full", "full", "full"]


async def test_when_all_quotas_are_used_up_it_is_said_how_long(make: Make) -> None:
    caller = make(api_key="one,two")
    caller.replies += [Reply(status=429, error=QUOTA), Reply(status=429, error={**QUOTA, "code": None})]
    error = await caller.refused()
    assert (error.code, error.retry_after) == (Code.MODEL_UNAVAILABLE, 600.0)
    assert caller.keys == ["one", "two"]
    assert (await caller.refused()).retry_after == 600.0
    assert caller.keys == ["one", "two"]  # nobody is asked in vain


async def test_a_quota_by_the_minute_passes_soon(make: Make) -> None:
    caller = make()
    text = "Allocated quota exceeded. For details, see: https://help.aliyun.com/zh/model-studio/error-code#token-limit"
    caller.replies.append(Reply(status=429, error={**QUOTA, "message": text}))
    await caller.ask()
    assert len(caller.keys) == 2


async def test_a_pause_in_milliseconds_is_kept(make: Make) -> None:
    caller = make()
    caller.replies.append(Reply(status=429, headers={"retry-after-ms": "90000", "Retry-After": "1"}))
    error = await caller.refused()
    assert (error.code, error.retry_after) == (Code.MODEL_UNAVAILABLE, 90.0)
    assert len(caller.keys) == 1


async def test_what_an_endpoint_tells_is_kept_to_before_it_refuses_again(make: Make) -> None:
    caller = make()
    told = {"limit": "1", "remaining": "0", "reset": "1m30s"}
    headers = {f"x-ratelimit-{name}-tokens": value for name, value in told.items()}
    caller.replies.append(Reply(status=429, headers={**headers, "retry-after-ms": "0"}))
    error = await caller.refused()
    assert error.code is Code.MODEL_UNAVAILABLE
    assert error.retry_after is not None
    assert 5 < error.retry_after <= 90
    assert len(caller.keys) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "0"},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"},
        {"x-ratelimit-remaining-requests": "0" * 50, "x-ratelimit-reset-requests": "9" * 50},
        {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "-1m", "retry-after-ms": "never"},
    ],
)
async def test_strange_headers_do_no_harm(make: Make, headers: dict[str, str]) -> None:
    caller = make()
    caller.replies.append(Reply(status=429, headers={**headers, "Retry-After": "0"}))
    await caller.ask()
    assert len(caller.keys) == 2


async def test_a_rate_limit_does_not_open_the_circuit(make: Make) -> None:
    caller = make()
    caller.replies += [Reply(status=500), Reply(status=500), Reply(status=500), Reply(status=500, retry_after="30")]
    await caller.refused()  # four failures: the fifth would open it
    caller.replies.append(Reply(status=429, retry_after="30"))
    await caller.refused()
    asked = len(caller.keys)
    error = await caller.refused()
    assert "rate limit" in error.detail  # and not a pause that it was given
    assert len(caller.keys) == asked
