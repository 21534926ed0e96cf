"""Chat models over a real socket: what endpoints send, what goes wrong, and what is done about it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from internal.entities.conversations import ChatMessage, Prompt, Usage
from internal.entities.ids import new_id
from internal.providers.keys import KeyRing
from internal.providers.llm import OpenAIChat
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role
from pkg.resilience import CircuitBreaker
from pkg.sections import Ai
from tests.fakes.openai_server import FakeOpenAI, Reply, running_fake

PROMPT = Prompt(
    messages=(ChatMessage("system", "Be brief."), ChatMessage("user", "How long do refunds take?")),
    question="How long do refunds take?",
    searched="How long do refunds take?",
    passages=(),
)
CTX = Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")


@pytest.fixture
async def fake() -> AsyncGenerator[FakeOpenAI]:
    async with running_fake() as found:
        yield found


def settings(fake: FakeOpenAI, **values: object) -> Ai:
    return Ai.model_validate(
        {"base_url": fake.base_url, "api_key": "key-one", "chat_model": "fake-chat", "timeout_seconds": 2.0, **values}
    )


def chat(fake: FakeOpenAI, breaker: CircuitBreaker | None = None, between: float = 1.0, **values: object) -> OpenAIChat:
    return OpenAIChat(settings(fake, **values), breaker=breaker, between_seconds=between, backoff_seconds=0.01)


async def test_pictures_go_beside_the_text_of_their_message_alone(fake: FakeOpenAI) -> None:
    model = chat(fake)
    shown = ChatMessage("user", "What is it?", ("data:image/jpeg;base64,aGVsbG8=",))
    told, usage = await model.complete(CTX, (ChatMessage("system", "Look."), shown), seconds=2)
    await model.close()
    assert told == "Hello."
    assert fake.chats[0].body["messages"] == [
        {"role": "system", "content": "Look."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,aGVsbG8="}},
            ],
        },
    ]
    assert model.estimate(Prompt(messages=(shown,), question="", searched="", passages=()), "").prompt_tokens > 900
    assert usage.prompt_tokens


async def run(model: OpenAIChat) -> tuple[list[str], Usage]:
    pieces = [piece async for piece in model.stream(CTX, PROMPT)]
    await model.close()
    usage = pieces.pop()
    assert isinstance(usage, Usage)
    return [piece for piece in pieces if isinstance(piece, str)], usage


async def failure(model: OpenAIChat) -> tuple[str, AppError]:
    said = ""
    with pytest.raises(AppError) as caught:
        async for piece in model.stream(CTX, PROMPT):
            assert isinstance(piece, str)
            said += piece
    await model.close()
    return said, caught.value


async def test_deltas_come_in_order_and_usage_last(fake: FakeOpenAI) -> None:
    fake.replies.append(Reply(pieces=["Refunds ", "take ", "30 days."]))
    texts, usage = await run(chat(fake))
    assert texts == ["Refunds ", "take ", "30 days."]
    assert usage == Usage(prompt_tokens=7, completion_tokens=3)
    (request,) = fake.chats
    assert request.key == "key-one"
    assert request.body["model"] == "fake-chat"
    assert [message["role"] for message in request.body["messages"]] == ["system", "user"]


async def test_usage_that_is_not_told_is_estimated_and_marked(fake: FakeOpenAI) -> None:
    fake.replies.append(Reply(text="三十天 refund", usage=False))
    _, usage = await run(chat(fake))
    assert usage.estimated
    assert usage.completion_tokens == 3 + 2
    assert usage.prompt_tokens > 5


@pytest.mark.parametrize(
    "reply",
    [
        Reply(pieces=["30 days."], empty_choices_first=True),
        Reply(pieces=["30 days."], role_first=False),
        Reply(pieces=["30 days."], reasoning=["Let me ", "think."]),
        Reply(pieces=["<thi", "nk>hidden [1]</th", "ink>\n\n30 ", "days."]),
        Reply(pieces=["30 days."], refuse_stream_options=True),
        Reply(pieces=["30 days."], finish="length"),
        Reply(pieces=["30 days."], finish=None),
    ],
    ids=["azure", "no role", "reasoning field", "think tags", "no stream_options", "length", "no finish_reason"],
)
async def test_quirks_of_endpoints(fake: FakeOpenAI, reply: Reply) -> None:
    fake.replies += [reply, reply]
    texts, _ = await run(chat(fake))
    assert "".join(texts) == "30 days."


async def test_text_that_only_begins_like_a_thought_is_kept(fake: FakeOpenAI) -> None:
    fake.replies.append(Reply(pieces=["<th"]))
    assert "".join((await run(chat(fake)))[0]) == "<th"


@pytest.mark.parametrize("status", [500, 502, 503, 408])
async def test_a_failing_endpoint_is_tried_again_before_the_first_token(fake: FakeOpenAI, status: int) -> None:
    fake.replies += [Reply(status=status), Reply(status=status), Reply(text="Fine.")]
    texts, _ = await run(chat(fake))
    assert "".join(texts) == "Fine."
    assert len(fake.chats) == 3


async def test_tries_end(fake: FakeOpenAI) -> None:
    fake.default = Reply(status=500)
    _, error = await failure(chat(fake))
    assert error.code is Code.MODEL_UNAVAILABLE
    assert error.retry_after
    assert len(fake.chats) == 4


async def test_retry_after_is_waited_for(fake: FakeOpenAI) -> None:
    fake.replies += [Reply(status=429, retry_after="0.3"), Reply(text="Fine.")]
    loop = asyncio.get_running_loop()
    started = loop.time()
    await run(chat(fake))
    assert loop.time() - started >= 0.3


async def test_a_long_retry_after_is_handed_on(fake: FakeOpenAI) -> None:
    fake.default = Reply(status=429, retry_after="120")
    _, error = await failure(chat(fake))
    assert (error.code, error.retry_after) == (Code.MODEL_UNAVAILABLE, 120.0)
    assert len(fake.chats) == 1


async def test_a_rate_limit_after_a_refusal_is_waited_out_and_not_the_refusal(fake: FakeOpenAI) -> None:
    fake.replies += [Reply(status=401), Reply(status=429, retry_after="0.1"), Reply(text="Fine.")]
    model = chat(fake)
    with pytest.raises(AppError):
        await anext(model.stream(CTX, PROMPT))
    async with asyncio.timeout(5):
        assert "".join((await run(model))[0]) == "Fine."


async def test_a_pause_until_a_refused_key_is_tried_again_is_handed_on(fake: FakeOpenAI) -> None:
    fake.replies += [Reply(status=401), Reply(status=429, retry_after="50")]
    async with asyncio.timeout(5):
        _, error = await failure(chat(fake, api_key="key-bad,key-limited"))
    assert (error.code, error.retry_after) == (Code.MODEL_UNAVAILABLE, 50.0)
    assert [request.key for request in fake.chats] == ["key-bad", "key-limited"]


def test_a_key_that_is_taken_again_rests_for_its_rate_limit_alone() -> None:
    now = [0.0]
    ring = KeyRing(("one", "two"), clock=lambda: now[0])
    ring.refuse("one", 300)
    assert (ring.resting(), ring.ready_in("one"), ring.ready_in("two")) == (1, 300, 0)
    ring.rest("one", 5)
    ring.accept("one")
    assert (ring.resting(), ring.ready_in("one")) == (1, 5)
    now[0] = 6.0
    assert (ring.resting(), ring.ready_in("one")) == (0, 0)


def test_keys_that_are_all_refused_are_asked_again() -> None:
    ring = KeyRing(("one", "two"), clock=lambda: 0.0)
    ring.refuse("one", 300)
    ring.refuse("two", 300)
    ring.rest("two", 5)
    assert (ring.resting(), ring.ready_in("one"), ring.ready_in("two")) == (2, 0, 5)


@pytest.mark.parametrize("status", [429, 503])
async def test_all_tries_together_end_with_the_time_out(fake: FakeOpenAI, status: int) -> None:
    fake.default = Reply(status=status, retry_after="15")
    async with asyncio.timeout(5):
        _, error = await failure(chat(fake, timeout_seconds=1.0))
    assert (error.code, error.retry_after, len(fake.chats)) == (Code.MODEL_UNAVAILABLE, 15.0, 1)


async def test_keys_take_turns_and_a_limited_one_rests(fake: FakeOpenAI) -> None:
    model = chat(fake, api_key="key-one, key-two,key-three")
    for _ in range(3):
        assert [piece async for piece in model.stream(CTX, PROMPT)]
    assert [request.key for request in fake.chats] == ["key-one", "key-two", "key-three"]
    fake.replies.append(Reply(status=429, retry_after="60"))
    for _ in range(3):
        assert [piece async for piece in model.stream(CTX, PROMPT)]
    await model.close()
    assert [request.key for request in fake.chats[3:]] == ["key-one", "key-two", "key-three", "key-two"]


async def test_a_refused_key_is_passed_over(fake: FakeOpenAI) -> None:
    fake.replies += [Reply(status=401), Reply(text="Fine.")]
    texts, _ = await run(chat(fake, api_key="key-bad,key-good"))
    assert "".join(texts) == "Fine."
    assert [request.key for request in fake.chats] == ["key-bad", "key-good"]


async def test_no_key_gets_into_an_error(fake: FakeOpenAI) -> None:
    secret = "sk-verysecretkey12345"
    for status in (401, 400):
        fake.replies.append(Reply(status=status, error={"message": f"Incorrect API key provided: {secret}"}))
        _, error = await failure(chat(fake, api_key=secret))
        assert secret not in f"{error} {error.detail} {error!r}"
    assert error.code is Code.MODEL_REFUSED


async def test_an_unknown_model_is_named(fake: FakeOpenAI) -> None:
    fake.replies.append(Reply(status=404))
    _, error = await failure(chat(fake))
    assert error.code is Code.MODEL_REFUSED
    assert "AI__CHAT_MODEL" in error.detail
    assert len(fake.chats) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(pieces=["Half ", "an ", "answer"], break_after=2),
        Reply(pieces=["Half ", "an ", "answer"], end_after=2),
        Reply(pieces=["Half ", "an ", "answer"], hang_after=2),
        Reply(pieces=["Half ", "an ", "answer"], garbage_after=2),
    ],
    ids=["connection lost", "ended early", "hangs", "garbage"],
)
async def test_nothing_is_repeated_after_the_first_token(fake: FakeOpenAI, reply: Reply) -> None:
    fake.replies.append(reply)
    said, error = await failure(chat(fake, between=0.2))
    assert said == "Half an "
    assert error.code is Code.MODEL_UNAVAILABLE
    assert len(fake.chats) == 1


@pytest.mark.parametrize("reply", [Reply(break_after=0), Reply(garbage_after=0), Reply(end_after=0)])
async def test_an_answer_that_breaks_before_its_first_token_is_tried_again(fake: FakeOpenAI, reply: Reply) -> None:
    fake.replies += [reply, Reply(text="Fine.")]
    assert "".join((await run(chat(fake)))[0]) == "Fine."


async def test_an_endpoint_that_hangs_is_left_in_time(fake: FakeOpenAI) -> None:
    fake.replies.append(Reply(hang_after=0))
    _, error = await failure(chat(fake, timeout_seconds=0.2))
    assert error.code is Code.MODEL_UNAVAILABLE
    await _until(lambda: fake.disconnects == 1)


async def test_a_content_filter_is_a_refusal(fake: FakeOpenAI) -> None:
    fake.replies.append(Reply(pieces=["So "], finish="content_filter"))
    said, error = await failure(chat(fake))
    assert (said, error.code) == ("So ", Code.MODEL_REFUSED)


async def test_the_circuit_opens_and_closes_again(fake: FakeOpenAI) -> None:
    now = [0.0]
    breaker = CircuitBreaker(threshold=4, cooldown=10, clock=lambda: now[0])
    fake.replies += [Reply(status=500)] * 4
    await failure(chat(fake, breaker))
    _, error = await failure(chat(fake, breaker))
    assert error.retry_after == 10
    assert len(fake.chats) == 4
    now[0] = 11.0
    assert "".join((await run(chat(fake, breaker)))[0]) == "Hello."
    assert breaker.open_for == 0


async def test_closing_the_stream_ends_the_call(fake: FakeOpenAI) -> None:
    fake.replies.append(Reply(pieces=["word "] * 1000, seconds_between=0.01))
    model = chat(fake)
    async with aclosing(model.stream(CTX, PROMPT)) as pieces:
        assert await anext(pieces) == "word "
    await _until(lambda: fake.disconnects == 1)
    assert fake.deltas_sent < 100
    await model.close()


async def _until(condition: "object") -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)
