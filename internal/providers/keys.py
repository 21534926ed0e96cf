"""Several API keys of one endpoint, used in turn."""

import time
from collections.abc import Callable, Iterator, Sequence


class KeyRing:
    """Hands out keys in turn and passes over those that rest, because of a rate limit or a refusal."""

    def __init__(self, keys: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = list(dict.fromkeys(keys))
        self._until = dict.fromkeys(self._keys, 0.0)
        self._refused_until = dict.fromkeys(self._keys, 0.0)
        self._clock = clock
        self._next = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def take(self) -> str:
        """The next key that doesn't rest; when all do, the one that is the first to be ready again."""
        now = self._clock()
        turn = self._keys[self._next :] + self._keys[: self._next]
        key = next((key for key in turn if self._ready_at(key) <= now), None) or min(turn, key=self._ready_at)
        self._next = (self._keys.index(key) + 1) % len(self._keys)
        return key

    def rest(self, key: str, seconds: float) -> None:
        """Passes this key over for a while, because of a rate limit."""
        self._until[key] = max(self._until[key], self._clock() + seconds)

    def refuse(self, key: str, seconds: float) -> None:
        """Passes this key over for a while, because the endpoint doesn't take it."""
        self._refused_until[key] = self._clock() + seconds

    def accept(self, key: str) -> None:
        """The endpoint takes this key after all; a rate limit still holds."""
        self._refused_until[key] = 0.0

    def rested(self) -> int:
        """How many keys are resting now."""
        now = self._clock()
        return sum(self._ready_at(key) > now for key in self._keys)

    def next_in(self) -> float:
        """Seconds until a key is ready; 0 when one is."""
        return max(0.0, min(map(self._ready_at, self._keys)) - self._clock())

    def _ready_at(self, key: str) -> float:
        return max(self._until[key], self._refused_until[key])
