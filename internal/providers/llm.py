"""Chat models behind OpenAI's wire format: OpenAI, Azure, vLLM, Ollama, DashScope, DeepSeek and their like."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI

from internal.entities.conversations import ChatMessage, Prompt, Usage
from internal.providers.llm_wire import (
    Chunk,
    Thoughts,
    estimate_tokens,
    read_chunk,
    refusal_of,
    said_done,
    watch_end,
)
from internal.providers.retries import WAIT_SHARE, Answered, Retries
from internal.providers.turns import Lane
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from pkg.resilience import CircuitBreaker
from pkg.sections import Ai

ATTEMPTS = 4
CONNECT_SECONDS = 5.0
TEMPERATURE = 0.1
IMAGE_TOKENS = 1000
"""About what a picture of a megapixel costs: 765 to 1,105 with OpenAI (170 for each tile of 512 pixels, and 85)."""


class ChatModel(Protocol):
    """Something that answers a prompt in pieces of text; the last item is the usage."""

    @property
    def name(self) -> str:
        """What answers are labelled with."""
        ...

    @property
    def reads_on(self) -> bool:
        """Whether it answers better if it is told what stands around a passage, too."""
        ...

    def stream(self, ctx: Context, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        """Raises MODEL_UNAVAILABLE (try later) or MODEL_REFUSED (it won't answer this). Closing it ends the call."""
        ...

    def estimate(self, prompt: Prompt, said: str) -> Usage:
        """What an answer cost of which `said` was received, where the model had no chance to tell."""
        ...


class Writer(Protocol):
    """Something that answers short orders of the product's own, all at once."""

    @property
    def name(self) -> str:
        """What its cost is booked under."""
        ...

    async def complete(self, ctx: Context, messages: tuple[ChatMessage, ...], *, seconds: float) -> tuple[str, Usage]:
        """The whole answer and what it took. Raises MODEL_UNAVAILABLE, also after `seconds`, or MODEL_REFUSED."""
        ...


class OpenAIChat:
    """One chat model of an OpenAI-compatible endpoint. Tries are repeated only until the first token."""

    reads_on = True

    def __init__(
        self,
        settings: Ai,
        *,
        breaker: CircuitBreaker | None = None,
        between_seconds: float | None = None,
        backoff_seconds: float = 0.5,
        lane: Lane = "interactive",
        kind: str = "chat",
    ) -> None:
        """`lane` tells whether people wait for its answers, or tasks; `kind` is what metrics call it."""
        self.name = settings.chat_model
        self._lane: Lane = lane
        self._first_seconds = settings.timeout_seconds
        self._between_seconds = between_seconds or settings.timeout_seconds / 2
        keys = settings.api_keys or ("unused",)  # Ollama and vLLM take any key
        self.retries = Retries(
            kind,
            self.name,
            keys,
            refusal=lambda error: refusal_of(error, self.name, keys),
            breaker=breaker,
            backoff_seconds=backoff_seconds,
        )
        self._client = AsyncOpenAI(
            api_key="unused",
            base_url=settings.base_url,
            organization="",
            project="",
            max_retries=0,
            timeout=openai.Timeout(None, connect=CONNECT_SECONDS),  # waiting for tokens is bounded here
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [watch_end]}),
        )
        self._azure = (urlsplit(settings.base_url).hostname or "").endswith(".azure.com")
        self._asks_usage = True

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()

    def stream(self, ctx: Context, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        """The answer's text as it comes, without a model's thoughts, then its usage.

        A model that thinks first gives an empty piece first: from then on the call costs something.
        """
        return self._pieces(ctx, prompt, math.inf)

    async def _pieces(self, ctx: Context, prompt: Prompt, patience: float) -> AsyncGenerator[str | Usage]:
        chunks = await self._open(ctx, prompt, patience)
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

    async def complete(self, ctx: Context, messages: tuple[ChatMessage, ...], *, seconds: float) -> tuple[str, Usage]:
        """The whole answer and what it took. Raises MODEL_UNAVAILABLE, also after `seconds`, or MODEL_REFUSED."""
        said, usage = list[str](), Usage()
        prompt = Prompt(messages=messages, question="", searched="", passages=())
        try:
            async with (
                asyncio.timeout(seconds),
                aclosing(self._pieces(ctx, prompt, seconds * WAIT_SHARE)) as pieces,
            ):
                async for piece in pieces:
                    if isinstance(piece, Usage):
                        usage = piece
                    else:
                        said.append(piece)
        except TimeoutError:
            raise _broken(f"The chat model took longer than {seconds:g} s.") from None
        return "".join(said), usage

    def estimate(self, prompt: Prompt, said: str) -> Usage:
        """An approximate count, marked as such."""
        return Usage(
            prompt_tokens=_tokens(prompt),
            completion_tokens=estimate_tokens(said),
            estimated=True,
        )

    async def _open(self, ctx: Context, prompt: Prompt, patience: float) -> AsyncGenerator[Chunk]:
        """Tries until a first chunk is there, for as long as a reader waits for one; answers the chunks from it on."""

        async def attempt(key: str) -> Answered[AsyncGenerator[Chunk]]:
            stream = await self._request(prompt, key)
            chunks = self._chunks(stream)
            try:
                first = await anext(chunks)
            except StopAsyncIteration:
                raise _broken("The chat model sent an empty answer.") from None
            except BaseException:
                await chunks.aclose()
                raise
            return Answered(self._rest(first, chunks), stream.response.headers)

        seconds = min(self._first_seconds, ctx.remaining(self._first_seconds))
        return await self.retries.call(
            attempt, tries=ATTEMPTS, seconds=seconds, lane=self._lane, tokens=_tokens(prompt), patience=patience
        )

    async def _request(self, prompt: Prompt, key: str) -> Any:
        """Opens the HTTP stream. An endpoint that doesn't know `stream_options` is asked once more without."""
        client = self._client.with_options(api_key=key)
        arguments: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": message.role, "content": _content(message)} for message in prompt.messages],
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
        if not (finished or said_done(stream.response)):
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
                    self.retries.broke_off(error)
                    raise _broken("The chat model broke off in the middle of its answer; try again.") from error
                except AppError as error:
                    if error.code is Code.MODEL_UNAVAILABLE:
                        self.retries.broke_off(error)
                    raise
                yield chunk


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    """The text alone where there is no picture: not every endpoint takes a list of parts."""
    if not message.images:
        return message.content
    pictures = [{"type": "image_url", "image_url": {"url": image}} for image in message.images]
    return [{"type": "text", "text": message.content}, *pictures]


def _tokens(prompt: Prompt) -> int:
    return sum(estimate_tokens(message.content) + IMAGE_TOKENS * len(message.images) for message in prompt.messages)


def _broken(detail: str) -> AppError:
    return AppError(Code.MODEL_UNAVAILABLE, detail, retry_after=2.0)
