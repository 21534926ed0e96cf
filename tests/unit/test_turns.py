"""Whose call comes next, and with which key: by a clock that stands still until it is moved."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from internal.providers.limit_headers import Allowance, Told
from internal.providers.turns import Lane, NoTurnError, Turn, Turns

NEVER = 1e9


class Timer:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Standing:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    async def move(self, seconds: float) -> None:
        """Lets the time pass, and whoever's turn it is go on."""
        until = self.now + seconds
        while due := [timer for timer in self.timers if not timer.cancelled and timer.when <= until]:
            timer = min(due, key=lambda each: each.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
            await settled()
        self.now = until


class Desk:
    """Calls that begin in the background; `done` names them in the order in which their turns came."""

    def __init__(self, *keys: str) -> None:
        self.clock = Standing()
        self.turns = Turns(keys or ("one",), clock=self.clock)
        self.done: list[str] = []
        self.used: list[str] = []

    async def go(self, name: str, lane: Lane = "ingest", tokens: int = 1, seconds: float = NEVER) -> None:
        async with self.turns.turn(lane, tokens, self.clock.now + seconds) as turn:
            self.done.append(name)
            self.used.append(turn.key)

    async def begin(self, name: str, lane: Lane = "ingest", seconds: float = NEVER) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.go(name, lane, seconds=seconds))
        await settled()
        return task

    async def told(self, limit: int, left: int, reset: float) -> None:
        """A call is answered, with these headers."""
        async with self.turns.turn("ingest", 1, self.clock.now) as turn:
            turn.succeed(Told(requests=Allowance(limit, left, reset)))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_nobody_waits_without_a_reason() -> None:
    desk = Desk()
    await asyncio.gather(*(desk.go(str(number), seconds=0.0) for number in range(500)))
    assert desk.done == [str(number) for number in range(500)]
    assert (desk.turns.counts["ingest"].waits, desk.turns.counts["ingest"].seconds) == (0, 0.0)


async def test_people_come_before_tasks_and_the_first_before_the_second() -> None:
    desk = Desk()
    await desk.told(10, 0, 10.0)
    tasks = [await desk.begin(name) for name in ("task 1", "task 2")]
    tasks += [await desk.begin(name, "interactive") for name in ("person 1", "person 2")]
    assert desk.done == []
    for _ in range(4):
        await desk.clock.move(1.0)
    assert desk.done == ["person 1", "person 2", "task 1", "task 2"]
    await asyncio.gather(*tasks)
    counts = desk.turns.counts
    assert [(counts[lane].waits, counts[lane].seconds) for lane in ("interactive", "ingest")] == [
        (2, pytest.approx(3.0)),
        (2, pytest.approx(7.0)),
    ]


async def test_who_would_wait_past_its_time_gives_up_at_once() -> None:
    desk = Desk()
    await desk.told(10, 0, 10.0)
    with pytest.raises(NoTurnError) as caught:
        await desk.go("late", seconds=0.9)
    assert caught.value.wait == pytest.approx(1.0)
    assert desk.turns.counts["ingest"].given_up == 1
    in_time = await desk.begin("in time", seconds=1.1)
    with pytest.raises(NoTurnError) as caught:
        await desk.go("second", seconds=1.9)
    assert caught.value.wait == pytest.approx(2.0)
    await desk.clock.move(1.0)
    await in_time
    assert desk.done == ["in time"]


async def test_a_task_that_people_overtake_gives_up_as_soon_as_that_is_clear() -> None:
    desk = Desk()
    await desk.told(10, 0, 10.0)
    task = await desk.begin("task", seconds=1.5)
    person = await desk.begin("person", "interactive")
    with pytest.raises(NoTurnError):
        await task
    await desk.clock.move(1.0)
    await person
    assert desk.done == ["person"]


async def test_who_goes_away_leaves_the_place_to_the_next() -> None:
    desk = Desk()
    await desk.told(10, 0, 10.0)
    first, second = await desk.begin("first"), await desk.begin("second")
    first.cancel()
    await settled()
    await desk.clock.move(1.0)
    await second
    assert desk.done == ["second"]


async def test_a_turn_that_comes_to_one_who_has_just_gone_is_given_back() -> None:
    desk = Desk()
    await desk.told(10, 0, 10.0)
    first = await desk.begin("first")
    desk.clock.now += 1.0
    desk.clock.timers[-1].callback()  # its turn has come
    first.cancel()  # and it is gone before it notices
    with pytest.raises(asyncio.CancelledError):
        await first
    assert desk.done == []
    desk.clock.now += 1.0
    await desk.told(10, 1, 9.0)
    await desk.go("next", seconds=0.0)  # nothing is thought to be under way any more


async def test_the_key_with_most_room_is_taken() -> None:
    desk = Desk("one", "two")
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(desk.turns.turn("ingest", 1, NEVER)) for _ in range(2)]
    assert [turn.key for turn in both] == ["one", "two"]
    tell(both[0], 100, 5, 50.0)
    tell(both[1], 100, 90, 50.0)
    for name in "abc":
        await desk.go(name)
    assert desk.used == ["two", "two", "two"]


async def test_keys_of_which_nothing_is_known_take_turns() -> None:
    desk = Desk("one", "two", "three")
    for name in "abcd":
        await desk.go(name)
    assert desk.used == ["one", "two", "three", "one"]


async def test_the_first_key_that_is_ready_is_taken() -> None:
    desk = Desk("one", "two")
    desk.turns.keys.rest("one", 30)
    desk.turns.keys.rest("two", 20)
    with pytest.raises(NoTurnError) as caught:
        await desk.go("late", seconds=19)
    assert caught.value.wait == pytest.approx(20)
    task = await desk.begin("in time", seconds=21)
    await desk.clock.move(20)
    await task
    assert desk.used == ["two"]


async def test_all_keys_together_serve_those_that_wait() -> None:
    desk = Desk("one", "two")
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(desk.turns.turn("ingest", 1, NEVER)) for _ in range(2)]
    for turn in both:
        tell(turn, 10, 0, 10.0)
    tasks = [await desk.begin(name, seconds=2.1) for name in "abcd"]
    await desk.clock.move(2.0)
    await asyncio.gather(*tasks)
    assert sorted(desk.used) == ["one", "one", "two", "two"]


def tell(turn: Turn, limit: int, left: int, reset: float) -> None:
    turn.succeed(Told(requests=Allowance(limit, left, reset)))
