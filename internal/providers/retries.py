"""When a call of an OpenAI-compatible endpoint is tried again, with which key, and when to give up. One set of rules.

A rate limit, a failure of the endpoint, and an answer that breaks off before its first piece are tried again, within
one bound on the time of all tries. A refused key is passed over, a refused request is not repeated. What would be
refused for a rate limit isn't sent: it waits for its turn.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_before_delay

from internal.providers.limit_headers import retry_after_of, told_by
from internal.providers.turns import Clock, Lane, LoopClock, NoTurnError, Turn, Turns
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.resilience import CircuitBreaker, backoff

LONGEST_WAIT = 20.0  # a longer pause of an endpoint that fails is handed to the caller instead of being waited out
WAIT_SHARE = 0.75
"""Of a call's time that it may wait for its turn; the rest is the endpoint's to answer in."""
BAD_KEY_SECONDS = 300.0
QUOTA_SECONDS = 600.0
COME_AGAIN_SECONDS = 5.0
LIMITED = "is at its rate limit; try again shortly."

T = TypeVar("T")
Refusal = Callable[[openai.APIStatusError], str]
"""What to tell a user of a request that the endpoint won't serve."""


class Answered(NamedTuple, Generic[T]):
    """What an endpoint answered, and the headers that it came with."""

    value: T
    headers: Mapping[str, str]


class _TryAgainError(Exception):
    """A try failed in a way that may pass; `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, error: AppError, wait: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


class Retries:
    """The calls of one model: their turns and keys, pauses between tries, and a circuit breaker."""

    def __init__(
        self,
        kind: str,
        model: str,
        keys: Sequence[str],
        *,
        refusal: Refusal,
        breaker: CircuitBreaker | None = None,
        backoff_seconds: float = 0.5,
        clock: Clock | None = None,
    ) -> None:
        """`kind` is what the model is to people: chat, embedding."""
        self.kind = kind
        self.model = model
        self.refused = 0
        """How many calls the endpoint has refused for its rate limit, or a used-up quota."""
        self._clock = clock or LoopClock()
        self.turns = Turns(keys, clock=self._clock)
        self._keys = self.turns.keys
        self._refusal = refusal
        self._breaker = breaker or CircuitBreaker()
        self._backoff_seconds = backoff_seconds
        self._log = logger.get("models")

    async def call(
        self,
        attempt: Callable[[str], Awaitable[Answered[T]]],
        *,
        tries: int,
        seconds: float,
        lane: Lane = "interactive",
        tokens: int = 0,
        patience: float = math.inf,
    ) -> T:
        """What `attempt` answers, which gets a key and is begun at most `tries` times; ends after `seconds` in all.

        `tokens` is about what it takes of a limit, `patience` how many of the seconds it may wait for its turn where
        that is less than three quarters. Raises MODEL_UNAVAILABLE (try later; at once where the turn would come too
        late) or MODEL_REFUSED, and any other error of `attempt` as it comes.
        """
        if self._breaker.open_for > 0:
            raise self._unavailable("has been failing and is given a pause; try again shortly.", self._breaker.open_for)
        if seconds <= 0:
            raise self._unavailable("was not asked: the time for it is over.", COME_AGAIN_SECONDS)
        began = self._clock.time()
        latest = began + min(patience, seconds * WAIT_SHARE)
        retrying = AsyncRetrying(
            stop=stop_after_attempt(tries) | stop_before_delay(seconds),
            wait=self._wait,
            retry=retry_if_exception_type(_TryAgainError),
            reraise=True,
        )

        hopeful = lane == "interactive"

        async def once() -> T:
            nonlocal hopeful
            patient, hopeful = not hopeful, False
            try:
                async with self.turns.turn(lane, tokens, latest, patient=patient) as turn:
                    return await self._try(attempt, turn, began + seconds)
            except NoTurnError as error:
                raise self._unavailable(LIMITED, float(math.ceil(error.wait))) from None

        try:
            return await retrying(once)
        except _TryAgainError as error:
            raise error.error from error.__cause__

    def broke_off(self, error: Exception) -> None:
        """A call that had been answered failed later, too late to be tried again."""
        self._breaker.fail()
        self._log.warning("model broke off", model=self.model, error=type(error).__name__)

    async def _try(self, attempt: Callable[[str], Awaitable[Answered[T]]], turn: Turn, until: float) -> T:
        try:
            async with asyncio.timeout(until - self._clock.time()):
                answer = await attempt(turn.key)
        except (openai.OpenAIError, AppError, TimeoutError, ValueError) as error:
            raise self._classify(error, turn) from error
        turn.succeed(told_by(answer.headers))
        self._keys.accept(turn.key)
        self._breaker.succeed()
        return answer.value

    def _classify(self, error: Exception, turn: Turn) -> Exception:
        """What a failure means: try again, give up for now, or never."""
        key = turn.key
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        self._log.warning(
            "model call failed",
            model=self.model,
            error=type(error).__name__,
            status=status,
            key_index=self._keys.index(key),
        )
        if status in (401, 403):
            return self._refused(key)
        if status or isinstance(error, AppError):  # any other answer shows that the key is taken
            self._keys.accept(key)
        if isinstance(error, AppError) and error.code is not Code.MODEL_UNAVAILABLE:
            return error
        if isinstance(error, openai.APIStatusError) and status == 429:
            return self._limited(error, turn)
        if isinstance(error, openai.APIStatusError) and 400 <= status < 500 and status not in (408, 409):
            return AppError(Code.MODEL_REFUSED, self._refusal(error))
        self._breaker.fail()
        if isinstance(error, TimeoutError):  # all the time there is has passed
            return self._unavailable("took too long; try again shortly.", COME_AGAIN_SECONDS)
        wait = retry_after_of(error.response.headers) if isinstance(error, openai.APIStatusError) else None
        return self._later("doesn't answer; try again shortly.", wait, wait)

    def _limited(self, error: openai.APIStatusError, turn: Turn) -> Exception:
        """Too much for now: the key rests, and the next try waits for its turn. The endpoint works, so the circuit
        stays closed."""
        self.refused += 1
        asked = retry_after_of(error.response.headers)
        if quota_is_used_up(error):
            turn.end()
            self._keys.rest(turn.key, max(QUOTA_SECONDS, asked or 0.0))
        else:
            turn.refuse(told_by(error.response.headers))
            self._keys.rest(turn.key, self._backoff_seconds if asked is None else asked)
        return _TryAgainError(self._unavailable(LIMITED, asked or COME_AGAIN_SECONDS), 0.0)

    def _refused(self, key: str) -> Exception:
        """The endpoint doesn't take this key: another one is tried at once, if there is one."""
        self._keys.refuse(key, BAD_KEY_SECONDS)
        refused = AppError(
            Code.MODEL_UNAVAILABLE,
            f"The {self.kind} endpoint refused the API key; the operator should check AI__API_KEY.",
        )
        return _TryAgainError(refused, 0.0) if self._keys.resting() < len(self._keys) else refused

    def _later(self, said: str, pause: float | None, retry_after: float | None) -> Exception:
        """To be tried again after `pause` seconds (None: the usual backoff), or told at once where that is too long."""
        if pause is not None and pause > LONGEST_WAIT:
            return self._unavailable(said, float(math.ceil(pause)))
        return _TryAgainError(self._unavailable(said, retry_after or COME_AGAIN_SECONDS), pause)

    def _unavailable(self, said: str, retry_after: float) -> AppError:
        return AppError(Code.MODEL_UNAVAILABLE, f"The {self.kind} model {said}", retry_after=retry_after)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _TryAgainError) else None
        own = backoff(state.attempt_number, base=self._backoff_seconds, cap=8.0)
        return own if asked is None else asked + random.uniform(0, 0.25 * own)  # noqa: S311 - jitter


def quota_is_used_up(error: openai.APIStatusError) -> bool:
    """Whether a 429 is about the account's credit, which doesn't come back soon.

    OpenAI says so by the code or the type `insufficient_quota` (Error codes, "429 - You exceeded your current quota").
    DashScope says the same of a limit by the minute, with a link to `#token-limit`.
    """
    return "insufficient_quota" in (error.code, error.type) and "#token-limit" not in str(error)
