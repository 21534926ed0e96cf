"""Texts to vectors: by the local model process, or by an OpenAI-compatible endpoint; the same wire format for both."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import httpx2
import msgspec
import numpy as np
import openai
from openai import AsyncOpenAI

from internal.entities.search import Space
from internal.providers.embedding_batches import BatchSize, TooBigError, estimate_tokens, excess_of, tokens_of
from internal.providers.embedding_wire import Embedded, codes_of, decode, joined, usage_of
from internal.providers.retries import Answered, Retries
from internal.providers.turns import LANES, Lane
from pkg import logger
from pkg.apperr import AppError, Code, SettingsError
from pkg.sections import Ai

Kind = Literal["query", "passage"]

ATTEMPTS: Mapping[str, int] = {"interactive": 2, "ingest": 5}
CONNECT_SECONDS = 5.0
INTERACTIVE_SECONDS = 15.0
LOCAL_BATCH = 64
LOCAL_COUNTED = 2000
REMOTE_AT_A_TIME = 4
"""Of each lane, so that a query never waits for the batches of a file."""


class EmbeddingProvider(Protocol):
    """Something that embeds texts into one space."""

    @property
    def space(self) -> Space:
        """What the vectors mean, and the table that they belong to."""
        ...

    @property
    def coded(self) -> bool:
        """Whether the model codes tokens for late interaction."""
        ...

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
        """One vector a text, in its order. `deadline` is a `time.monotonic()` value.

        `partly`: where the model goes away midway it answers the vectors of the first texts, which were paid for.

        `searched` are passages that are stored and queries for them: the built-in model's vectors are neutral to
        language then, and come with codes, and can't be compared with its others.

        Raises MODEL_UNAVAILABLE, MODEL_REFUSED, MODEL_BAD_ANSWER.
        """
        ...

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, rather too many than too few."""
        ...


class _Endpoint:
    """Calls of `/v1/embeddings`, tried again as often and as long as the lane's callers can wait for.

    Where it `splits`, a refusal of several texts for their number or length is a TooBigError.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        model: str,
        space: Space,
        *,
        keys: Sequence[str],
        seconds: float,
        splits: bool = False,
    ) -> None:
        self._client = client
        self._model = model
        self._space = space
        self._seconds = seconds
        self._splits = splits
        self.retries = Retries("embedding", model, keys, refusal=self._refusal, backoff_seconds=0.3)

    async def embed(
        self,
        texts: Sequence[str],
        lane: Lane,
        deadline: float | None,
        body: dict[str, Any],
        headers: dict[str, str],
    ) -> Embedded:
        """One request."""

        async def attempt(key: str) -> Answered[Any]:
            embeddings = self._client.with_options(api_key=key).embeddings
            try:
                raw = await embeddings.with_raw_response.create(
                    model=self._model,
                    input=list(texts),
                    encoding_format="base64",
                    extra_body=body or None,
                    extra_headers=headers or None,
                )
            except openai.APIStatusError as error:
                excess = excess_of(error) if self._splits and len(texts) > 1 else None
                if excess is None:
                    raise
                raise TooBigError(excess) from error
            return Answered(raw.parse(), raw.headers)

        seconds = min(self._seconds, INTERACTIVE_SECONDS) if lane == "interactive" else self._seconds
        if deadline is not None:
            seconds = min(seconds, deadline - time.monotonic())
        answer = await self.retries.call(
            attempt, tries=ATTEMPTS[lane], seconds=seconds, lane=lane, tokens=tokens_of(texts)
        )
        vectors = decode(answer, len(texts), self._space.dim)
        return Embedded(vectors, usage_of(answer, texts), codes_of(answer) if body.get("for_search") else [])

    def _refusal(self, error: openai.APIStatusError) -> str:
        if isinstance(error, openai.NotFoundError):
            return f"The endpoint has no embedding model {self._model!r}; check AI__EMBEDDING_MODEL and AI__BASE_URL."
        return f"The embedding model refused the text (HTTP {error.status_code})."


class LocalEmbeddings:
    """multilingual-e5-small in the local model process."""

    def __init__(self, url: str, space: Space, *, seconds: float = 120.0) -> None:
        """`url` is `unix:/path` or `http://host:port`."""
        self._http = _http_client(url, seconds)
        base = str(self._http.base_url).rstrip("/")
        client = AsyncOpenAI(
            api_key="local",
            base_url=f"{base}/v1",
            organization="",
            project="",
            max_retries=0,
            http_client=self._http,
        )
        self._space = space
        self._endpoint = _Endpoint(client, space.model, space, keys=("local",), seconds=seconds)

    @property
    def space(self) -> Space:
        """The built-in model's."""
        return self._space

    @property
    def coded(self) -> bool:
        """It does."""
        return True

    @property
    def retries(self) -> Retries:
        """How its calls fare."""
        return self._endpoint.retries

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
        """In requests of 64 texts one after the other: the process fills its cores with one of them."""
        body = {"input_type": kind, "for_search": searched}
        parts: list[Embedded] = []
        for start in range(0, len(texts), LOCAL_BATCH):
            batch = texts[start : start + LOCAL_BATCH]
            try:
                parts.append(await self._endpoint.embed(batch, lane, deadline, body, {"X-Lane": lane}))
            except AppError as error:
                if not (partly and parts and error.code is Code.MODEL_UNAVAILABLE):
                    raise
                break
        return joined(parts, self._space.dim)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Counted by the model's own tokenizer."""
        counts: list[int] = []
        for start in range(0, len(texts), LOCAL_COUNTED):
            try:
                answer = await self._http.post(
                    "/v1/tokenize", json={"input": list(texts[start : start + LOCAL_COUNTED])}
                )
            except httpx2.HTTPError as error:
                raise _away() from error
            if not answer.is_success:
                raise _away()
            counts.extend(msgspec.json.decode(answer.content, type=_Counts).counts)
        return counts

    async def close(self) -> None:
        """Closes idle connections."""
        await self._http.aclose()


class OpenAIEmbeddings:
    """The embedding model of an OpenAI-compatible endpoint."""

    def __init__(self, settings: Ai, space: Space) -> None:
        self._space = space
        self._client = AsyncOpenAI(
            api_key="unused",
            base_url=settings.base_url,
            organization="",
            project="",
            max_retries=0,
            timeout=openai.Timeout(settings.timeout_seconds, connect=CONNECT_SECONDS),
        )
        self._endpoint = _Endpoint(
            self._client,
            settings.embedding_model,
            space,
            keys=settings.api_keys or ("unused",),  # Ollama and vLLM take any key
            seconds=settings.timeout_seconds,
            splits=True,
        )
        self._size = BatchSize(texts=settings.embedding_batch, tokens=settings.embedding_batch_tokens)
        self._places = {lane: asyncio.Semaphore(REMOTE_AT_A_TIME) for lane in LANES}
        self._log = logger.get("models")

    @property
    def space(self) -> Space:
        """The configured model's."""
        return self._space

    @property
    def coded(self) -> bool:
        """No endpoint tells of single tokens."""
        return False

    @property
    def retries(self) -> Retries:
        """How its calls fare."""
        return self._endpoint.retries

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
        """In batches bounded by count and tokens, up to four at a time; scaled to unit length; never with codes."""
        try:
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(self._end(batch, lane, deadline, partly=partly))
                    for batch in self._size.split(texts)
                ]
        except ExceptionGroup as failures:
            # The others were cancelled; what the first one says is what the caller can act on.
            raise failures.exceptions[0] from None
        ends = [call.result() for call in calls]
        parts: list[Embedded] = []
        for end in ends:
            if isinstance(end, Embedded):
                parts.append(end)
                continue
            if not parts:
                raise end
            break
        return joined(parts, self._space.dim)

    async def _end(
        self, texts: Sequence[str], lane: Lane, deadline: float | None, *, partly: bool
    ) -> Embedded | AppError:
        """A batch's vectors; or, not to cut off the others, that the model is away."""
        try:
            async with self._places[lane]:
                found = await self._call(texts, lane, deadline)
        except AppError as error:
            if not (partly and error.code is Code.MODEL_UNAVAILABLE):
                raise
            return error
        lengths = np.linalg.norm(found.vectors, axis=1, keepdims=True)
        return Embedded(found.vectors / np.maximum(lengths, 1e-12), found.usage)

    async def _call(self, texts: Sequence[str], lane: Lane, deadline: float | None) -> Embedded:
        """In two halves, and so on, where the endpoint finds a batch too big; the next ones are as small at once."""
        try:
            return await self._endpoint.embed(texts, lane, deadline, {}, {})
        except TooBigError as error:
            excess = error.excess
        middle = (len(texts) + 1) // 2
        halves = texts[:middle], texts[middle:]
        self._log.info("embedding batch halved", model=self._space.model, texts=len(texts), too_many=excess)
        parts = [await self._call(batch, lane, deadline) for half in halves for batch in self._size.split(half)]
        self._size.learn(excess, *halves)
        return joined(parts, self._space.dim)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimated: no endpoint counts, and no tokenizer is known for every model."""
        return [estimate_tokens(text) for text in texts]

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()


class _Counts(msgspec.Struct):
    counts: list[int]


def _http_client(url: str, seconds: float) -> httpx2.AsyncClient:
    """The client library's own HTTP client, over a local socket or an address."""
    timeout = httpx2.Timeout(seconds, connect=CONNECT_SECONDS)
    if url.startswith("unix:"):
        transport = httpx2.AsyncHTTPTransport(uds=url.removeprefix("unix:"))
        return httpx2.AsyncClient(transport=transport, base_url="http://models", timeout=timeout)
    if url.startswith(("http://", "https://")):
        return httpx2.AsyncClient(base_url=url.rstrip("/"), timeout=timeout)
    raise SettingsError("MODELS__URL: want unix:/path or http://host:port")


def _away() -> AppError:
    return AppError(Code.MODEL_UNAVAILABLE, "The embedding model isn't ready; try again shortly.", retry_after=2.0)
