"""Several API keys of one endpoint: which of them rest, and why."""

from collections.abc import Callable, Iterator, Sequence


class KeyRing:
    """Passes over keys that rest, because of a rate limit or a refusal. Seconds are the clock's."""

    def __init__(self, keys: Sequence[str], *, clock: Callable[[], float]) -> None:
        self._keys = list(dict.fromkeys(keys))
        self._until = dict.fromkeys(self._keys, 0.0)
        self._refused_until = dict.fromkeys(self._keys, 0.0)
        self._clock = clock
        self._next = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def index(self, key: str) -> int:
        """A key's place among the settings, from 0: what may be told of it."""
        return self._keys.index(key)

    def turn(self) -> list[str]:
        """All keys, the one whose turn it is first."""
        return self._keys[self._next :] + self._keys[: self._next]

    def took(self, key: str) -> None:
        """This one was used: the next one's turn is next."""
        self._next = (self._keys.index(key) + 1) % len(self._keys)

    def rest(self, key: str, seconds: float) -> None:
        """Passes this key over for a while, because of a rate limit or a used-up quota."""
        self._until[key] = max(self._until[key], self._clock() + seconds)

    def refuse(self, key: str, seconds: float) -> None:
        """Passes this key over for a while, because the endpoint doesn't take it."""
        self._refused_until[key] = self._clock() + seconds

    def accept(self, key: str) -> None:
        """The endpoint takes this key after all; a rate limit still holds."""
        self._refused_until[key] = 0.0

    def resting(self) -> int:
        """How many keys are passed over now."""
        now = self._clock()
        return sum(max(self._until[key], self._refused_until[key]) > now for key in self._keys)

    def ready_in(self, key: str) -> float:
        """Seconds until this key may be used; 0 when it may be now.

        Where the endpoint takes none of the keys they are asked again all the same: one may have been set right.
        """
        now = self._clock()
        until = self._until[key]
        if any(refused <= now for refused in self._refused_until.values()):
            until = max(until, self._refused_until[key])
        return max(0.0, until - now)
