"""What is done every so often by whoever calls `run_due` often enough."""

import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec


class Chore(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do every so many seconds. It must not mind being done twice, or late."""

    name: str
    every_seconds: float
    action: Callable[[], Awaitable[None]]


class Schedule:
    """Runs chores when they are due; each one is due at the start."""

    def __init__(self, chores: Sequence[Chore], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._chores = {chore.name: chore for chore in chores}
        self._due = dict.fromkeys(self._chores, clock())

    async def run_due(self) -> None:
        """Does what is due, one after the other. Raises what a chore raises; that one is due again at once."""
        for name, chore in self._chores.items():
            if self._clock() >= self._due[name]:
                await chore.action()
                self._due[name] = self._clock() + chore.every_seconds

    def seconds_to_next(self) -> float:
        """How long nothing will be due."""
        return max(0.0, min(self._due.values()) - self._clock())
