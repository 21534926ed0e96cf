"""Whose call of an endpoint comes next, and with which key. One queue a model, in this process."""

import asyncio
import time
from bisect import insort
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol

import msgspec

from internal.providers.keys import KeyRing
from internal.providers.limit_headers import Told
from internal.providers.pacing import Pace

Lane = Literal["interactive", "ingest"]
"""Whether a person waits for the call, or a worker's task."""
LANES: tuple[Lane, ...] = ("interactive", "ingest")


class Clock(Protocol):
    """Seconds that only go forward, and a way to be called later: an event loop, or a test's."""

    def time(self) -> float:
        """Now."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        """Answers something with `cancel`."""
        ...


class LoopClock:
    """`time.monotonic()`, which may be asked anywhere, and the running event loop's timers."""

    def time(self) -> float:
        """Now."""
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """In the running loop."""
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)


class NoTurnError(Exception):
    """The turn would come too late: in `wait` seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"no turn for {wait:.3f} s")
        self.wait = wait


class WaitCount(msgspec.Struct):
    """Of one lane: calls that waited, the seconds that they did together, and calls that gave up."""

    waits: int = 0
    seconds: float = 0.0
    given_up: int = 0


class Turn:
    """A call under way with `key`; what became of it is told once."""

    def __init__(self, key: str, pace: Pace, tokens: int, clock: Clock) -> None:
        self.key = key
        self._pace = pace
        self._tokens = tokens
        self._clock = clock
        self._begun = clock.time()
        self._ended = False
        pace.begin(tokens, self._begun)

    def succeed(self, told: Told) -> None:
        """It was answered."""
        self.end()
        self._pace.succeed(told, self._clock.time())

    def refuse(self, told: Told) -> None:
        """It was too much for the endpoint's limits."""
        self.end()
        self._pace.refuse(told, self._tokens, self._begun, self._clock.time())

    def end(self) -> None:
        """It is over, whatever became of it."""
        if not self._ended:
            self._ended = True
            self._pace.end(self._tokens)


class _Waiter:
    """A call that waits for its turn; the lower places come first."""

    def __init__(self, place: tuple[int, int], tokens: int, latest: float, *, patient: bool) -> None:
        self.place = place
        self.tokens = tokens
        self.latest = latest
        self.patient = patient
        self.future: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()

    def __lt__(self, other: "_Waiter") -> bool:
        return self.place < other.place


class Turns:
    """Gives each call a key that has room for it. Interactive calls come before the others, then the first to come.

    A call that would have to wait past its time gives up at once, and again whenever its place gets worse.
    """

    def __init__(self, keys: Sequence[str], *, clock: Clock | None = None) -> None:
        self._clock = clock or LoopClock()
        self.keys = KeyRing(keys, clock=self._clock.time)
        self.counts: dict[Lane, WaitCount] = {lane: WaitCount() for lane in LANES}
        self._paces = {key: Pace() for key in self.keys}
        self._waiting: list[_Waiter] = []
        self._number = 0
        self._timer: Any = None

    @asynccontextmanager
    async def turn(self, lane: Lane, tokens: int, latest: float, *, patient: bool = True) -> AsyncGenerator[Turn]:
        """A turn of a call of about so many tokens, begun at `latest` by the clock. Raises NoTurnError.

        Who isn't `patient` may try an endpoint before its window has ended, in case that isn't how it counts.
        """
        turn = await self._take(lane, tokens, latest, patient=patient)
        try:
            yield turn
        finally:
            turn.end()
            self._settle()

    async def _take(self, lane: Lane, tokens: int, latest: float, *, patient: bool) -> Turn:
        self._number += 1
        began = self._clock.time()
        waiter = _Waiter((LANES.index(lane), self._number), tokens, latest, patient=patient)
        insort(self._waiting, waiter)
        self._settle()
        count = self.counts[lane]
        waited = not waiter.future.done()
        try:
            return await waiter.future
        except NoTurnError:
            count.given_up += 1
            raise
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        finally:
            if waited:
                count.waits += 1
                count.seconds += self._clock.time() - began

    def _leave(self, waiter: _Waiter) -> None:
        """A caller went away, perhaps in the moment in which its turn came."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif not waiter.future.cancelled() and waiter.future.exception() is None:
            waiter.future.result().end()
        self._settle()

    def _settle(self) -> None:
        """Gives turns to those whose key is ready, sends those away who would wait in vain, and looks again later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting = [waiter for waiter in self._waiting if not waiter.future.done()]  # whose callers went away
        while self._waiting and (key := self._ready(self._waiting[0])) is not None:
            waiter = self._waiting.pop(0)
            self.keys.took(key)
            waiter.future.set_result(Turn(key, self._paces[key], waiter.tokens, self._clock))
        now = self._clock.time()
        staying: list[_Waiter] = []
        tokens = 0
        for waiter in self._waiting:
            wait = self._wait(waiter, len(staying), tokens, now)
            if now + wait > waiter.latest:
                waiter.future.set_exception(NoTurnError(wait))
                continue
            if not staying:
                self._timer = self._clock.call_at(now + wait, self._settle)
            staying.append(waiter)
            tokens += waiter.tokens
        self._waiting = staying

    def _ready(self, waiter: _Waiter) -> str | None:
        """Of the keys that may be used now the one with most room, else the one whose turn it is."""
        now = self._clock.time()
        ready = [
            key
            for key in self.keys.turn()
            if not self.keys.ready_in(key) and not self._paces[key].wait(waiter.tokens, now, patient=waiter.patient)
        ]
        return max(ready, key=lambda key: self._paces[key].room(waiter.tokens, now), default=None)

    def _wait(self, waiter: _Waiter, ahead: int, tokens: int, now: float) -> float:
        """Seconds until its turn, rather too few: as if those ahead were shared out among all keys."""
        count = len(self.keys)
        return min(
            max(
                self.keys.ready_in(key),
                pace.wait(
                    waiter.tokens, now, ahead=ahead // count, tokens_ahead=tokens // count, patient=waiter.patient
                ),
            )
            for key, pace in self._paces.items()
        )
