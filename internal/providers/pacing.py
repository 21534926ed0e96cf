"""How fast one key of an endpoint may be used: learned from what the endpoint tells and refuses, never set.

Nothing is held back until there is a reason: a header that tells what is left, or a refusal (HTTP 429).
"""

import math
from collections import deque

from internal.providers.limit_headers import LONGEST_RESET, Allowance, Told

OBSERVED_SECONDS = 10.0
SHORTEST_SPAN = 0.25
"""Seconds over which a rate is observed, at most and at least."""
LOWEST_RATE = 1 / 60
"""Requests a second: after however many refusals one a minute is tried."""
RECOVERY_SECONDS = 60.0
"""How long a halved rate takes to grow back."""
FORGOTTEN_AT = 4.0
"""Times the rate that was refused: a limit that has grown so far holds nothing back any more."""
STEPS_SECONDS = 600.0
"""How long it is remembered that an endpoint gives everything back at once, and nothing before."""


class Level:
    """What is left of requests, or of tokens, by what the last response told and what was begun since.

    Between two responses it is taken to flow back evenly, as in a bucket. A refusal in spite of that shows an
    endpoint that counts in windows instead: for some minutes the patient then wait for the end of the window.
    """

    def __init__(self) -> None:
        self._limit = math.inf
        self._left = math.inf
        self._at = 0.0
        self._full_at = 0.0
        self._a_second = 0.0
        self._period = 1.0
        self._steps_until = 0.0

    @property
    def known(self) -> bool:
        """Whether a response has told of it."""
        return self._limit < math.inf

    def tell(self, told: Allowance | None, flying: float, now: float) -> None:
        """Takes what a response told. `flying` are those of calls under way, which it may not have counted yet."""
        if told is None:
            self._limit = self._left = math.inf
            return
        self._limit, self._at, self._full_at = float(told.limit), now, now + told.reset
        self._left = told.left - flying
        self._period = min(LONGEST_RESET, max(1.0, told.reset, self._period))
        if told.left < told.limit and told.reset > 0:
            self._a_second = (told.limit - told.left) / told.reset
        elif not self._a_second:
            self._a_second = told.limit / 60

    def surprise(self, now: float) -> None:
        """A call was refused that should have had room."""
        self._steps_until = now + STEPS_SECONDS

    def take(self, amount: float, now: float) -> None:
        """A call begins."""
        if self.known:
            self._flow(now)
            self._left -= amount

    def left(self, now: float) -> float:
        """What may be used now; infinite where nothing is known."""
        if self.known:
            self._flow(now)
        return self._left

    def wait(self, amount: float, ahead: float, now: float, *, patient: bool) -> float:
        """Seconds until `amount` can be taken after `ahead`, 0 for at once. More than there can be counts as all."""
        if not self.known:
            return 0.0
        self._flow(now)
        wanted = min(amount, self._limit) + ahead
        if wanted <= self._left:
            return 0.0
        full = max(0.0, self._full_at - now)
        pause = full
        if not (patient and now < self._steps_until):
            flowed = (min(wanted, self._limit) - self._left) / max(self._a_second, self._limit / LONGEST_RESET)
            pause = min(full, max(0.0, flowed - (now - self._at)))
        return pause + max(0.0, wanted - self._limit) * self._period / self._limit

    def _flow(self, now: float) -> None:
        if now >= self._full_at:
            self._left, self._at = self._limit, now
            self._full_at = now + self._period
        elif now >= self._steps_until:
            self._left = min(self._limit, self._left + self._a_second * (now - self._at))
            self._at = now


class Rate:
    """Requests a second where no header tells: additive increase, multiplicative decrease.

    A refusal halves it, successes give the lost half back within a minute, and go on from there (Chiu and Jain,
    Analysis of the Increase and Decrease Algorithms for Congestion Avoidance, Computer Networks and ISDN Systems 17,
    1989). Calls are spaced, so that none of the limit is used up in one burst.
    """

    def __init__(self) -> None:
        self._begun: deque[float] = deque(maxlen=1000)
        self._a_second = math.inf
        self._refused_at = math.inf
        self._halved_at = -math.inf
        self._raised_at = 0.0
        self._next_at = 0.0

    @property
    def a_second(self) -> float:
        """Infinite until there was a refusal."""
        return self._a_second

    def take(self, now: float) -> None:
        """A call begins."""
        self._begun.append(now)
        if self._a_second < math.inf:
            self._next_at = max(now, self._next_at) + 1 / self._a_second

    def wait(self, ahead: int, now: float) -> float:
        """Seconds until a call may begin after `ahead` others."""
        return 0.0 if self._a_second == math.inf else max(0.0, self._next_at - now) + ahead / self._a_second

    def refuse(self, begun: float, now: float) -> None:
        """A call that began then was refused: those of one burst count once."""
        if begun < self._halved_at:
            return
        self._refused_at = min(self._a_second, self._observed(now))
        self._a_second = max(LOWEST_RATE, self._refused_at / 2)
        self._halved_at = self._raised_at = now
        self._next_at = now + 1 / self._a_second

    def succeed(self, now: float) -> None:
        """A call was answered."""
        if self._a_second == math.inf:
            return
        share = min(1.0, max(0.0, now - self._raised_at) / RECOVERY_SECONDS)
        self._a_second += self._refused_at / 2 * share
        self._raised_at = now
        if self._a_second >= FORGOTTEN_AT * self._refused_at:
            self._a_second = math.inf

    def _observed(self, now: float) -> float:
        while self._begun and self._begun[0] < now - OBSERVED_SECONDS:
            self._begun.popleft()
        first = self._begun[0] if self._begun else now
        return max(1, len(self._begun)) / max(SHORTEST_SPAN, now - first)


class Pace:
    """One key's: requests and tokens as headers tell them, and the rate that refusals teach."""

    def __init__(self) -> None:
        self._requests = Level()
        self._tokens = Level()
        self._rate = Rate()
        self._calls = 0
        self._flying_tokens = 0

    def wait(self, tokens: int, now: float, *, ahead: int = 0, tokens_ahead: int = 0, patient: bool = True) -> float:
        """Seconds until a call of so many tokens may begin, after `ahead` others with `tokens_ahead` together."""
        return max(
            self._rate.wait(ahead, now),
            self._requests.wait(1, ahead, now, patient=patient),
            self._tokens.wait(tokens, tokens_ahead, now, patient=patient),
        )

    def room(self, tokens: int, now: float) -> float:
        """How many calls of so many tokens the key is known to have left; infinite where nothing is known."""
        if not (self._requests.known or self._tokens.known):
            return math.inf if self._rate.a_second == math.inf else self._rate.a_second
        return min(self._requests.left(now), self._tokens.left(now) / max(1, tokens))

    def begin(self, tokens: int, now: float) -> None:
        """A call is sent."""
        self._requests.take(1, now)
        self._tokens.take(tokens, now)
        self._rate.take(now)
        self._calls += 1
        self._flying_tokens += tokens

    def end(self, tokens: int) -> None:
        """It was answered, failed or was given up. To be told before `succeed` and `refuse`."""
        self._calls -= 1
        self._flying_tokens -= tokens

    def succeed(self, told: Told, now: float) -> None:
        """A call was answered, with these headers."""
        self._requests.tell(told.requests, self._calls, now)
        self._tokens.tell(told.tokens, self._flying_tokens, now)
        self._rate.succeed(now)

    def refuse(self, told: Told, tokens: int, begun: float, now: float) -> None:
        """A call of so many tokens that began then was refused. What its headers explain doesn't slow the rate."""
        explained = False
        for level, allowance, amount, flying in (
            (self._requests, told.requests, 1, self._calls),
            (self._tokens, told.tokens, tokens, self._flying_tokens),
        ):
            if allowance is None:
                continue
            short = allowance.left < min(amount, allowance.limit)
            if short and level.known:
                level.surprise(now)
            level.tell(allowance, flying, now)
            explained = explained or short
        if not explained:
            self._rate.refuse(begun, now)
