"""Readiness: does each dependency answer?"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

import msgspec

from pkg import logger

WAIT_SECONDS = 2.0
FRESH_SECONDS = 1.0

Check = Callable[[], Awaitable[object]]


class Health(msgspec.Struct, frozen=True):
    """One dependency: `up`, `down`, or `off` where it isn't used, and the milliseconds until that was known."""

    status: str
    ms: float


class Readiness(msgspec.Struct, frozen=True):
    """`ready` when all that is used answers; `degraded` when what is down stops only a part; else `unready`."""

    status: str
    checks: dict[str, Health]


class HealthService:
    """Asks every dependency at once. A check raises when its dependency is down, which is logged once.

    Nothing works without the `needed`. What one caller learns serves others for a second: anybody may ask.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        needed: Collection[str],
        off: Collection[str] = (),
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        self._checks = dict(checks)
        self._needed = frozenset(needed)
        self._off = tuple(off)
        self._fresh_seconds = fresh_seconds
        self._asking: asyncio.Task[Readiness] | None = None
        self._asked_at = -fresh_seconds
        self._down: set[str] = set()
        self._log = logger.get("health")

    async def ready(self) -> Readiness:
        """The state of each dependency, within two seconds."""
        now = time.monotonic()
        if self._asking is None or (self._asking.done() and now - self._asked_at >= self._fresh_seconds):
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask_all())
        return await asyncio.shield(self._asking)

    async def _ask_all(self) -> Readiness:
        found = await asyncio.gather(*(self._ask(name, check) for name, check in self._checks.items()))
        checks = dict(zip(self._checks, found, strict=True)) | dict.fromkeys(self._off, Health("off", 0.0))
        down = {name for name, health in checks.items() if health.status == "down"}
        if down & self._needed:
            return Readiness("unready", checks)
        return Readiness("degraded" if down else "ready", checks)

    async def _ask(self, name: str, check: Check) -> Health:
        started = time.perf_counter()
        status = "up"
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await check()
        except Exception as error:  # noqa: BLE001 - whatever it is, the dependency can't be used
            status = "down"
            if name not in self._down:
                self._log.warning("a dependency is down", dependency=name, cause=str(error) or type(error).__name__)
                self._down.add(name)
        else:
            if name in self._down:
                self._log.info("a dependency is up again", dependency=name)
                self._down.discard(name)
        return Health(status, round((time.perf_counter() - started) * 1000, 1))
