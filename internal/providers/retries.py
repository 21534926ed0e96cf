"""When a call of an OpenAI-compatible endpoint is tried again, with which key, and when to give up. One set of rules.

A rate limit, a failure of the endpoint, and an answer that breaks off before its first piece are tried again, within
one bound on the time of all tries. A refused key is passed over, a refused request is not repeated.
"""

import asyncio
import email.utils
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_before_delay

from internal.providers.keys import KeyRing
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.resilience import CircuitBreaker, backoff

LONGEST_WAIT = 20.0  # a longer pause is handed to the caller instead of being waited out
LONGEST_ASKED = 86_400.0  # of what an endpoint may ask for
BAD_KEY_SECONDS = 300.0
COME_AGAIN_SECONDS = 5.0

T = TypeVar("T")
Refusal = Callable[[openai.APIStatusError], str]
"""What to tell a user of a request that the endpoint won't serve."""


class _TryAgainError(Exception):
    """A try failed in a way that may pass; `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, error: AppError, wait: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class Retries:
    """The calls of one model: its keys in turn, pauses between tries, and a circuit breaker."""

    def __init__(
        self,
        kind: str,
        model: str,
        keys: Sequence[str],
        *,
        refusal: Refusal,
        breaker: CircuitBreaker | None = None,
        backoff_seconds: float = 0.5,
    ) -> None:
        """`kind` is what the model is to people: chat, embedding."""
        self._kind = kind
        self._model = model
        self._keys = KeyRing(keys)
        self._refusal = refusal
        self._breaker = breaker or CircuitBreaker()
        self._backoff_seconds = backoff_seconds
        self._log = logger.get("models")

    async def call(self, attempt: Callable[[str], Awaitable[T]], *, tries: int, seconds: float) -> T:
        """What `attempt` answers, which gets a key and is begun at most `tries` times; ends after `seconds` in all.

        Raises MODEL_UNAVAILABLE (try later) or MODEL_REFUSED, and any other error of `attempt` as it comes.
        """
        if self._breaker.open_for > 0:
            raise self._unavailable("has been failing and is given a pause; try again shortly.", self._breaker.open_for)
        if seconds <= 0:
            raise self._unavailable("was not asked: the time for it is over.", COME_AGAIN_SECONDS)
        until = asyncio.get_running_loop().time() + seconds
        retrying = AsyncRetrying(
            stop=stop_after_attempt(tries) | stop_before_delay(seconds),
            wait=self._wait,
            retry=retry_if_exception_type(_TryAgainError),
            reraise=True,
        )
        try:
            return await retrying(self._try, attempt, until)
        except _TryAgainError as error:
            raise error.error from error.__cause__

    def broke_off(self, error: Exception) -> None:
        """A call that had been answered failed later, too late to be tried again."""
        self._breaker.fail()
        self._log.warning("model broke off", model=self._model, error=type(error).__name__)

    async def _try(self, attempt: Callable[[str], Awaitable[T]], until: float) -> T:
        key = self._keys.take()
        try:
            async with asyncio.timeout_at(until):
                answer = await attempt(key)
        except (openai.OpenAIError, AppError, TimeoutError, ValueError) as error:
            raise self._classify(error, key) from error
        self._keys.accept(key)
        self._breaker.succeed()
        return answer

    def _classify(self, error: Exception, key: str) -> Exception:
        """What a failure means: try again, give up for now, or never."""
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        self._log.warning("model call failed", model=self._model, error=type(error).__name__, status=status)
        if status in (401, 403):
            return self._refused(key)
        if status or isinstance(error, AppError):  # any other answer shows that the key is taken
            self._keys.accept(key)
        if isinstance(error, AppError) and error.code is not Code.MODEL_UNAVAILABLE:
            return error
        if status == 429:
            wait = retry_after_of(error)
            self._keys.rest(key, self._backoff_seconds if wait is None else wait)
            return self._later("is at its rate limit; try again shortly.", self._keys.next_in(), wait)
        if isinstance(error, openai.APIStatusError) and 400 <= status < 500 and status not in (408, 409):
            return AppError(Code.MODEL_REFUSED, self._refusal(error))
        self._breaker.fail()
        if isinstance(error, TimeoutError):  # all the time there is has passed
            return self._unavailable("took too long; try again shortly.", COME_AGAIN_SECONDS)
        wait = retry_after_of(error)
        return self._later("doesn't answer; try again shortly.", wait, wait)

    def _refused(self, key: str) -> Exception:
        """The endpoint doesn't take this key: another one is tried at once, if there is one."""
        self._keys.refuse(key, BAD_KEY_SECONDS)
        refused = AppError(
            Code.MODEL_UNAVAILABLE,
            f"The {self._kind} endpoint refused the API key; the operator should check AI__API_KEY.",
        )
        return _TryAgainError(refused, 0.0) if self._keys.rested() < len(self._keys) else refused

    def _later(self, said: str, pause: float | None, retry_after: float | None) -> Exception:
        """To be tried again after `pause` seconds (None: the usual backoff), or told at once where that is too long."""
        if pause is not None and pause > LONGEST_WAIT:
            return self._unavailable(said, float(math.ceil(pause)))
        return _TryAgainError(self._unavailable(said, retry_after or COME_AGAIN_SECONDS), pause)

    def _unavailable(self, said: str, retry_after: float) -> AppError:
        return AppError(Code.MODEL_UNAVAILABLE, f"The {self._kind} model {said}", retry_after=retry_after)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _TryAgainError) else None
        own = backoff(state.attempt_number, base=self._backoff_seconds, cap=8.0)
        return own if asked is None else asked + random.uniform(0, 0.25 * own)  # noqa: S311 - jitter


def retry_after_of(error: object) -> float | None:
    """Seconds that the endpoint asked to wait, as a number or as a date by its own clock; None where it didn't."""
    if not isinstance(error, openai.APIStatusError):
        return None
    headers = error.response.headers
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", value):
        return min(float(value), LONGEST_ASKED)
    then = _seconds_of(value)
    if then is None:
        return None
    now = _seconds_of(headers.get("date", ""))
    return min(max(0.0, then - (time.time() if now is None else now)), LONGEST_ASKED)


def _seconds_of(date: str) -> float | None:
    """An HTTP date as seconds since 1970, None for anything else."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
