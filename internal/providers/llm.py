"""Chat models behind OpenAI's wire format: OpenAI, Azure, vLLM, Ollama, DashScope, DeepSeek and their like."""

import asyncio
import math
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_before_delay

from internal.entities.conversations import Prompt, Usage
from internal.providers.keys import KeyRing
from internal.providers.llm_wire import Chunk, Thoughts, estimate_tokens, read_chunk, refusal_of, retry_after_of
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.config import Ai
from pkg.ctxutil import Context
from pkg.resilience import CircuitBreaker, backoff

ATTEMPTS = 4
CONNECT_SECONDS = 5.0
LONGEST_WAIT = 20.0  # a longer pause is handed to the caller instead of being waited out
BAD_KEY_SECONDS = 300.0
TEMPERATURE = 0.1


class ChatModel(Protocol):
    """Something that answers a prompt in pieces of text; the last item is the usage."""

    @property
    def name(self) -> str:
        """What answers are labelled with."""
        ...

    def stream(self, ctx: Context, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        """Raises MODEL_UNAVAILABLE (try later) or MODEL_REFUSED (it won't answer this). Closing it ends the call."""
        ...

    def estimate(self, prompt: Prompt, said: str) -> Usage:
        """What an answer cost of which `said` was received, where the model had no chance to tell."""
        ...


class _TryAgainError(Exception):
    """A try failed before its first token; `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, error: AppError, wait: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class OpenAIChat:
    """One chat model of an OpenAI-compatible endpoint. Tries are repeated only until the first token."""

    def __init__(
        self,
        settings: Ai,
        *,
        breaker: CircuitBreaker | None = None,
        between_seconds: float | None = None,
        backoff_seconds: float = 0.5,
    ) -> None:
        self.name = settings.chat_model
        self._first_seconds = settings.timeout_seconds
        self._between_seconds = between_seconds or settings.timeout_seconds / 2
        self._backoff_seconds = backoff_seconds
        self._breaker = breaker or CircuitBreaker()
        self._keys = KeyRing(settings.api_keys or ("unused",))  # Ollama and vLLM take any key
        self._client = AsyncOpenAI(
            api_key="unused",
            base_url=settings.base_url,
            organization="",
            project="",
            max_retries=0,
            timeout=openai.Timeout(None, connect=CONNECT_SECONDS),  # waiting for tokens is bounded here
        )
        self._azure = (urlsplit(settings.base_url).hostname or "").endswith(".azure.com")
        self._asks_usage = True
        self._log = logger.get("llm")

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()

    async def stream(self, ctx: Context, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        """The answer's text as it comes, without a model's thoughts, then its usage.

        A model that thinks first gives an empty piece first: from then on the call costs something.
        """
        chunks = await self._open(ctx, prompt)
        said: list[str] = []
        usage: Usage | None = None
        thoughts = Thoughts()
        async with aclosing(chunks):
            async for chunk in chunks:
                usage = chunk.usage or usage
                text = thoughts.feed(chunk.text)
                if text or not said:
                    said.append(text)
                    yield text
        rest = thoughts.finish()
        if rest:
            said.append(rest)
            yield rest
        yield usage or self.estimate(prompt, "".join(said))

    def estimate(self, prompt: Prompt, said: str) -> Usage:
        """An approximate count, marked as such."""
        return Usage(
            prompt_tokens=sum(estimate_tokens(message.content) for message in prompt.messages),
            completion_tokens=estimate_tokens(said),
            estimated=True,
        )

    async def _open(self, ctx: Context, prompt: Prompt) -> AsyncGenerator[Chunk]:
        """Tries until a first chunk is there, for as long as a reader waits for one; answers the chunks from it on."""
        if self._breaker.open_for > 0:
            raise AppError(
                Code.MODEL_UNAVAILABLE,
                "The chat model has been failing and is given a pause; try again shortly.",
                retry_after=self._breaker.open_for,
            )
        seconds = ctx.remaining(self._first_seconds)
        until = asyncio.get_running_loop().time() + seconds
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(seconds),
            wait=self._wait,
            retry=retry_if_exception_type(_TryAgainError),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._attempt(prompt, until)
        except _TryAgainError as error:
            raise error.error from error.__cause__
        raise AppError(Code.INTERNAL, "The chat model was never asked.")

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _TryAgainError) else None
        own = backoff(state.attempt_number, base=self._backoff_seconds, cap=8.0)
        return own if asked is None else asked + random.uniform(0, 0.25 * own)  # noqa: S311 - jitter

    async def _attempt(self, prompt: Prompt, until: float) -> AsyncGenerator[Chunk]:
        """One call; `until` is a time of the event loop's clock."""
        key = self._keys.take()
        try:
            async with asyncio.timeout_at(until):
                chunks = self._chunks(await self._request(prompt, key))
                try:
                    first = await anext(chunks)
                except StopAsyncIteration:
                    raise _broken("The chat model sent an empty answer.") from None
                except BaseException:
                    await chunks.aclose()
                    raise
        except (openai.OpenAIError, AppError, TimeoutError, ValueError) as error:
            raise self._classify(error, key) from error
        self._keys.accept(key)
        self._breaker.succeed()
        return self._rest(first, chunks)

    async def _request(self, prompt: Prompt, key: str) -> Any:
        """Opens the HTTP stream. An endpoint that doesn't know `stream_options` is asked once more without."""
        client = self._client.with_options(api_key=key)
        arguments: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
            "stream": True,
            "temperature": TEMPERATURE,
            "extra_headers": {"api-key": key} if self._azure else None,
        }
        if self._asks_usage:
            try:
                return await client.chat.completions.create(**arguments, stream_options={"include_usage": True})
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if "stream_options" not in str(error):
                    raise
                self._asks_usage = False
        return await client.chat.completions.create(**arguments)

    async def _chunks(self, stream: Any) -> AsyncGenerator[Chunk]:
        """What the endpoint sends, until it ends as it should. Raises MODEL_UNAVAILABLE for half an answer."""
        finished = False
        try:
            async for event in stream:
                chunk = read_chunk(event)
                finished = finished or chunk.finish is not None
                if chunk.finish == "content_filter":
                    raise AppError(Code.MODEL_REFUSED, "The chat model's content filter stopped the answer.")
                if chunk.text or chunk.usage or chunk.thinking:
                    yield chunk
        finally:
            await stream.close()
        if not finished:
            raise _broken("The chat model broke off in the middle of its answer; try again.")

    async def _rest(self, first: Chunk, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
        """From the first chunk on nothing is repeated: a failure ends the answer."""
        async with aclosing(chunks):
            yield first
            while True:
                try:
                    async with asyncio.timeout(self._between_seconds):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                except (openai.OpenAIError, TimeoutError, ValueError) as error:
                    self._breaker.fail()
                    self._log.warning("model broke off", model=self.name, error=type(error).__name__)
                    raise _broken("The chat model broke off in the middle of its answer; try again.") from error
                except AppError as error:
                    if error.code is Code.MODEL_UNAVAILABLE:
                        self._breaker.fail()
                    raise
                yield chunk

    def _classify(self, error: Exception, key: str) -> Exception:
        """What a failure before the first token means: try again, give up for now, or never."""
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        self._log.warning("model call failed", model=self.name, error=type(error).__name__, status=status)
        if status in (401, 403):
            self._keys.refuse(key, BAD_KEY_SECONDS)
            refused = AppError(
                Code.MODEL_UNAVAILABLE,
                "The model endpoint refused the API key; the operator should check AI__API_KEY.",
            )
            return _TryAgainError(refused, 0.0) if self._keys.rested() < len(self._keys) else refused
        if status or isinstance(error, AppError):  # any other answer shows that the key is taken
            self._keys.accept(key)
        if isinstance(error, AppError) and error.code is Code.MODEL_REFUSED:
            return error
        if status == 429:
            wait = retry_after_of(error)
            self._keys.rest(key, wait if wait is not None else self._backoff_seconds)
            return _later("The chat model is at its rate limit; try again shortly.", self._keys.next_in(), wait or 5.0)
        if 400 <= status < 500 and status not in (408, 409):
            return AppError(Code.MODEL_REFUSED, refusal_of(error, self.name, [*self._keys]))
        self._breaker.fail()
        if isinstance(error, TimeoutError):  # as long as a reader waits has been waited already
            return AppError(Code.MODEL_UNAVAILABLE, "The chat model took too long; try again shortly.", retry_after=5.0)
        wait = retry_after_of(error)
        return _later("The chat model doesn't answer; try again shortly.", wait, wait or 5.0)


def _later(detail: str, pause: float | None, retry_after: float) -> Exception:
    """To be tried again after `pause` seconds (None: the usual backoff), or told at once where that is too long."""
    if pause is not None and pause > LONGEST_WAIT:
        return AppError(Code.MODEL_UNAVAILABLE, detail, retry_after=float(math.ceil(pause)))
    return _TryAgainError(AppError(Code.MODEL_UNAVAILABLE, detail, retry_after=retry_after), pause)


def _broken(detail: str) -> AppError:
    return AppError(Code.MODEL_UNAVAILABLE, detail, retry_after=2.0)
