"""A model that orders passages by how well they answer a question, behind an endpoint as Cohere's or Jina's."""

import time
from collections.abc import Sequence
from typing import Any

import httpx2
import msgspec
import openai
from openai import AsyncOpenAI

from internal.providers.retries import Answered, Retries
from pkg.apperr import AppError, Code
from pkg.sections import Ai

TRIES = 2
SECONDS = 5.0
"""A person waits, and the search has an order of its own."""
CONNECT_SECONDS = 2.0


class _Result(msgspec.Struct, frozen=True):
    """One passage's. Cohere, Jina, vLLM and Voyage say `relevance_score`, TEI says `score`."""

    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Results(msgspec.Struct, frozen=True):
    results: list[_Result]


class RerankEndpoint:
    """`POST` of model, query and documents to `AI__RERANK_URL`; of the answer only `results` is looked at."""

    def __init__(self, settings: Ai) -> None:
        self._url = settings.rerank_url
        self._model = settings.rerank_model
        self._client = AsyncOpenAI(
            api_key="unused",
            base_url=settings.rerank_url,
            organization="",
            project="",
            max_retries=0,
            timeout=openai.Timeout(SECONDS, connect=CONNECT_SECONDS),
        )
        keys = settings.rerank_keys or ("unused",)
        self.retries = Retries("rerank", self._model, keys, refusal=self._refusal, backoff_seconds=0.2)

    @property
    def name(self) -> str:
        """The model's."""
        return self._model

    async def scores(self, query: str, texts: Sequence[str], *, deadline: float | None = None) -> dict[int, float]:
        """How well texts answer, by their place; at least one, and perhaps not all.

        `deadline` is a `time.monotonic()` value. Raises MODEL_UNAVAILABLE, MODEL_REFUSED, MODEL_BAD_ANSWER.
        """
        body = {"model": self._model, "query": query, "documents": list(texts), "top_n": len(texts)}

        async def attempt(key: str) -> Answered[Any]:
            client = self._client.with_options(api_key=key)
            response = await client.post(self._url, cast_to=httpx2.Response, body=body)
            return Answered(response.json(), response.headers)

        seconds = SECONDS if deadline is None else min(SECONDS, deadline - time.monotonic())
        return _read(await self.retries.call(attempt, tries=TRIES, seconds=seconds), len(texts))

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()

    def _refusal(self, error: openai.APIStatusError) -> str:
        if isinstance(error, openai.NotFoundError):
            return f"There is no reranking model {self._model!r} at AI__RERANK_URL; check both."
        return f"The reranking model refused the passages (HTTP {error.status_code})."


def _read(answer: Any, count: int) -> dict[int, float]:
    try:
        found = msgspec.convert(answer, list[_Result] if isinstance(answer, list) else _Results)
    except msgspec.ValidationError as error:
        raise _bad("sent something else than results") from error
    given = {
        item.index: item.relevance_score if item.relevance_score is not None else item.score
        for item in (found if isinstance(found, list) else found.results)
    }
    scores = {place: score for place, score in given.items() if score is not None}
    if not scores or len(scores) != len(given) or not scores.keys() <= set(range(count)):
        raise _bad("sent results without scores, or of passages that it wasn't asked of")
    return scores


def _bad(what: str) -> AppError:
    return AppError(Code.MODEL_BAD_ANSWER, f"The reranking model {what}.")
