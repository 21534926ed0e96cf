"""Several API keys of one endpoint, used in turn."""

import time
from collections.abc import Callable, Iterator, Sequence


class KeyRing:
    """Hands out keys in turn and passes over those that rest, because of a rate limit or a refusal."""

    def __init__(self, keys: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = list(dict.fromkeys(keys))
        self._until = dict.fromkeys(self._keys, 0.0)
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
        key = next((key for key in turn if self._until[key] <= now), None) or min(turn, key=self._until.__getitem__)
        self._next = (self._keys.index(key) + 1) % len(self._keys)
        return key

    def rest(self, key: str, seconds: float) -> None:
        """Passes this key over for a while."""
        self._until[key] = max(self._until[key], self._clock() + seconds)

    def rested(self) -> int:
        """How many keys are resting now."""
        now = self._clock()
        return sum(until > now for until in self._until.values())

    def next_in(self) -> float:
        """Seconds until a key is ready; 0 when one is."""
        return max(0.0, min(self._until.values()) - self._clock())
