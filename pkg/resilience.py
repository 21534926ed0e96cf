"""Backoff and circuit breaking, independent of what is called."""

import random
import time
from collections.abc import Callable


def backoff(attempt: int, *, base: float, cap: float = 300.0, rng: Callable[[], float] = random.random) -> float:
    """Seconds to wait before try `attempt` + 1 (attempt counts from 1): exponential with equal jitter.

    Half of the exponential delay is fixed and half is random (Brooker, Exponential Backoff and Jitter, AWS
    Architecture Blog, 2015), so that delays spread and never shrink to nothing.
    """
    delay = min(cap, base * 2.0 ** max(0, attempt - 1))
    return delay / 2 + delay / 2 * rng()


class CircuitBreaker:
    """Opens after `threshold` failures in a row; lets one call through after `cooldown` seconds."""

    def __init__(
        self, *, threshold: int = 5, cooldown: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threshold = threshold
        self._cooldown = cooldown
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None

    @property
    def open_for(self) -> float:
        """Seconds until a call may be tried; 0 when closed or half open."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self._cooldown - self._clock())

    def succeed(self) -> None:
        """Closes the circuit."""
        self._failures = 0
        self._opened_at = None

    def fail(self) -> None:
        """Counts a failure; opens, or opens again, at the threshold."""
        self._failures += 1
        if self._failures >= self._threshold:
            self._opened_at = self._clock()
