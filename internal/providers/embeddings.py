"""Texts to vectors: by the local model process, or by an OpenAI-compatible endpoint; the same wire format for both."""

import asyncio
import base64
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import httpx2
import msgspec
import numpy as np
import numpy.typing as npt
import openai
from openai import AsyncOpenAI

from internal.entities.conversations import Usage
from internal.entities.search import Space
from internal.providers.retries import Retries
from pkg.apperr import AppError, Code, SettingsError
from pkg.sections import Ai

Kind = Literal["query", "passage"]
Lane = Literal["interactive", "ingest"]
Vectors = npt.NDArray[np.float32]

ATTEMPTS: Mapping[str, int] = {"interactive": 2, "ingest": 5}
CONNECT_SECONDS = 5.0
INTERACTIVE_SECONDS = 15.0
MISFIT_SECONDS = 60.0
"""How soon to look again whether a model of the wrong dimension has been set right."""
LOCAL_BATCH = 64
LOCAL_COUNTED = 2000
REMOTE_BATCH = 128
REMOTE_TOKENS = 32_000
REMOTE_AT_A_TIME = 4
WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


class Embedded(msgspec.Struct, frozen=True):
    """Unit vectors of shape (texts, dim), and the tokens that they took.

    `codes` are those of each text's tokens (see internal/models/token_codes.py); empty where the model has none, or
    none were wanted.
    """

    vectors: Vectors
    usage: Usage
    codes: list[bytes] = []


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
        self, texts: Sequence[str], *, kind: Kind, lane: Lane, deadline: float | None = None, searched: bool = False
    ) -> Embedded:
        """One vector a text, in its order. `deadline` is a `time.monotonic()` value.

        `searched` are passages that are stored and queries for them: the built-in model's vectors are neutral to
        language then, and come with codes, and can't be compared with its others.

        Raises MODEL_UNAVAILABLE, MODEL_REFUSED, MODEL_BAD_ANSWER.
        """
        ...

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, rather too many than too few."""
        ...


class _Endpoint:
    """Calls of `/v1/embeddings`, tried again as often and as long as the lane's callers can wait for."""

    def __init__(self, client: AsyncOpenAI, model: str, space: Space, *, keys: Sequence[str], seconds: float) -> None:
        self._client = client
        self._model = model
        self._space = space
        self._seconds = seconds
        self._retries = Retries("embedding", model, keys, refusal=self._refusal, backoff_seconds=0.3)

    async def embed(
        self,
        texts: Sequence[str],
        lane: Lane,
        deadline: float | None,
        body: dict[str, Any],
        headers: dict[str, str],
    ) -> Embedded:
        """One request."""

        async def attempt(key: str) -> Any:
            return await self._client.with_options(api_key=key).embeddings.create(
                model=self._model,
                input=list(texts),
                encoding_format="base64",
                extra_body=body or None,
                extra_headers=headers or None,
            )

        seconds = min(self._seconds, INTERACTIVE_SECONDS) if lane == "interactive" else self._seconds
        if deadline is not None:
            seconds = min(seconds, deadline - time.monotonic())
        answer = await self._retries.call(attempt, tries=ATTEMPTS[lane], seconds=seconds)
        vectors = _decode(answer, len(texts), self._space.dim)
        return Embedded(vectors, _usage(answer, texts), _codes(answer) if body.get("for_search") else [])

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

    async def embed(
        self, texts: Sequence[str], *, kind: Kind, lane: Lane, deadline: float | None = None, searched: bool = False
    ) -> Embedded:
        """In requests of 64 texts one after the other: the process fills its cores with one of them."""
        body = {"input_type": kind, "for_search": searched}
        parts = [
            await self._endpoint.embed(texts[start : start + LOCAL_BATCH], lane, deadline, body, {"X-Lane": lane})
            for start in range(0, len(texts), LOCAL_BATCH)
        ]
        return _joined(parts, self._space.dim)

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
        )
        self._places = asyncio.Semaphore(REMOTE_AT_A_TIME)

    @property
    def space(self) -> Space:
        """The configured model's."""
        return self._space

    @property
    def coded(self) -> bool:
        """No endpoint tells of single tokens."""
        return False

    async def embed(
        self, texts: Sequence[str], *, kind: Kind, lane: Lane, deadline: float | None = None, searched: bool = False
    ) -> Embedded:
        """In batches bounded by count and tokens, up to four at a time; scaled to unit length; never with codes."""
        try:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(self._call(batch, lane, deadline)) for batch in batches(texts)]
        except ExceptionGroup as failures:
            # The others were cancelled; what the first one says is what the caller can act on.
            raise failures.exceptions[0] from None
        return _joined([call.result() for call in calls], self._space.dim)

    async def _call(self, texts: Sequence[str], lane: Lane, deadline: float | None) -> Embedded:
        async with self._places:
            found = await self._endpoint.embed(texts, lane, deadline, {}, {})
        lengths = np.linalg.norm(found.vectors, axis=1, keepdims=True)
        return Embedded(found.vectors / np.maximum(lengths, 1e-12), found.usage)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimated: no endpoint counts, and no tokenizer is known for every model."""
        return [estimate_tokens(text) for text in texts]

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()


class _Counts(msgspec.Struct):
    counts: list[int]


def estimate_tokens(text: str) -> int:
    """Rather too many: one for each wide character, one for three others."""
    wide = len(WIDE.findall(text))
    return wide + -(-(len(text) - wide) // 3)


def batches(texts: Sequence[str]) -> list[list[str]]:
    """Texts in order, in batches of at most 128 texts and about 32,000 tokens; a longer text is a batch of its own."""
    made: list[list[str]] = []
    room = 0
    for text in texts:
        cost = estimate_tokens(text)
        if not made or len(made[-1]) == REMOTE_BATCH or cost > room:
            made.append([])
            room = REMOTE_TOKENS
        made[-1].append(text)
        room -= cost
    return made


def _joined(parts: Sequence[Embedded], dim: int) -> Embedded:
    """What several requests brought, as if it had been one."""
    vectors = [part.vectors for part in parts] or [np.empty((0, dim), np.float32)]
    usage = Usage(
        prompt_tokens=sum(part.usage.prompt_tokens for part in parts),
        estimated=any(part.usage.estimated for part in parts),
    )
    return Embedded(np.concatenate(vectors), usage, [code for part in parts for code in part.codes])


def _usage(answer: Any, texts: Sequence[str]) -> Usage:
    """What the endpoint says that it counted; some say nothing, or nonsense."""
    tokens = getattr(getattr(answer, "usage", None), "prompt_tokens", None)
    if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
        return Usage(prompt_tokens=tokens)
    return Usage(prompt_tokens=sum(map(estimate_tokens, texts)), estimated=True)


def _codes(answer: Any) -> list[bytes]:
    """In the order of the texts. `_decode` has looked at the rest of the answer."""
    items = sorted(answer.data, key=lambda item: item.index)
    try:
        return [base64.b64decode(item.token_codes) for item in items]
    except (AttributeError, TypeError, ValueError) as error:
        raise AppError(Code.MODEL_BAD_ANSWER, "The embedding model sent no token codes; is it an older one?") from error


def _decode(answer: Any, count: int, dim: int) -> Vectors:
    """Vectors in the order of the texts; some endpoints ignore `base64` and send numbers."""
    try:
        items = sorted(answer.data, key=lambda item: item.index)
        rows = [
            np.frombuffer(base64.b64decode(item.embedding), "<f4")
            if isinstance(item.embedding, str)
            else np.asarray(item.embedding, np.float32)
            for item in items
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise AppError(Code.MODEL_BAD_ANSWER, "The embedding model sent something else than embeddings.") from error
    if len(rows) != count:
        raise AppError(Code.MODEL_BAD_ANSWER, f"The embedding model sent {len(rows)} embeddings for {count} texts.")
    widths = {row.shape[0] for row in rows}
    if widths != {dim}:
        # A setting is at fault, not the text: tasks are held until it is mended instead of using up their tries.
        raise AppError(
            Code.MODEL_UNAVAILABLE,
            f"The embedding model sends {', '.join(map(str, sorted(widths)))} dimensions where AI__EMBEDDING_DIM says"
            f" {dim}; the operator should set AI__EMBEDDING_DIM to the model's dimension.",
            retry_after=MISFIT_SECONDS,
        )
    vectors = np.stack(rows).astype(np.float32, copy=False)
    if not np.isfinite(vectors).all():
        raise AppError(Code.MODEL_BAD_ANSWER, "The embedding model sent values that are not numbers.")
    return vectors


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
