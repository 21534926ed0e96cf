"""Rate limits of a fake endpoint: so many requests of each key within a window of time."""

import time
from collections import Counter
from dataclasses import dataclass, field

LONG = 1_000_000
"""Tokens that a window has: more than any test uses."""


@dataclass
class RateLimit:
    """Counts in windows that begin with a key's first request, as OpenAI tells it in headers, or tells nothing."""

    requests: int
    seconds: float
    headers: bool = True
    refused: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    _windows: dict[str, tuple[float, int]] = field(default_factory=dict)

    def take(self, key: str) -> tuple[bool, dict[str, str]]:
        """Whether a request is served, and the headers of its answer."""
        now = time.monotonic()
        began, used = self._windows.get(key, (now, 0))
        if now >= began + self.seconds:
            began, used = now, 0
        served = used < self.requests
        used += served
        self._windows[key] = began, used
        (self.served if served else self.refused)[key] += 1
        if not self.headers:
            return served, {}
        reset = f"{(began + self.seconds - now) * 1000:.0f}ms"
        told = {
            "x-ratelimit-limit-requests": str(self.requests),
            "x-ratelimit-remaining-requests": str(self.requests - used),
            "x-ratelimit-reset-requests": reset,
            "x-ratelimit-limit-tokens": str(LONG),
            "x-ratelimit-remaining-tokens": str(LONG),
            "x-ratelimit-reset-tokens": "0s",
        }
        return served, told
