"""Readiness: does each dependency answer?"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from pkg import logger

WAIT_SECONDS = 2.0

Check = Callable[[], Awaitable[object]]


class Health(msgspec.Struct, frozen=True):
    """One dependency: `up` or `down`, and the milliseconds until that was known."""

    status: str
    ms: float


class HealthService:
    """Asks every dependency at once. A check raises when its dependency is down, which is logged once."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)
        self._down: set[str] = set()
        self._log = logger.get("health")

    async def ready(self) -> dict[str, Health]:
        """The state of each dependency, within two seconds."""
        found = await asyncio.gather(*(self._ask(name, check) for name, check in self._checks.items()))
        return dict(zip(self._checks, found, strict=True))

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
