"""Loads a model when it is first wanted and lets go of it when nobody wanted it for a while."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from pkg import logger

T = TypeVar("T")


class OnDemand(Generic[T]):
    """One model. `load` and `release` block and run in `executor`; `release` frees what it holds."""

    def __init__(
        self,
        name: str,
        load: Callable[[], T],
        release: Callable[[T], None],
        *,
        idle_seconds: float,
        executor: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._load = load
        self._release = release
        self._idle_seconds = idle_seconds
        self._executor = executor
        self._clock = clock
        self._model: T | None = None
        self._users = 0
        self._used_at = clock()
        self._changing = asyncio.Lock()
        self._log = logger.get("models")

    @property
    def loaded(self) -> bool:
        """True while the model is in memory."""
        return self._model is not None

    @asynccontextmanager
    async def use(self) -> AsyncGenerator[T]:
        """The model, loaded first where it isn't; it stays for the length of the block."""
        self._users += 1
        try:
            yield await self._get()
        finally:
            self._users -= 1
            self._used_at = self._clock()

    async def release_if_idle(self) -> bool:
        """Lets go of a model that nobody used for `idle_seconds`; True when it did."""
        if self._users or self._clock() - self._used_at < self._idle_seconds:
            return False
        return await self.release()

    async def release(self) -> bool:
        """Lets go of the model unless somebody uses it; True when it did."""
        async with self._changing:
            if self._model is None or self._users:
                return False
            model, self._model = self._model, None
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, self._release, model)
        self._log.info("model released", model=self._name)
        return True

    async def _get(self) -> T:
        async with self._changing:
            if self._model is not None:
                return self._model
            started = self._clock()
            loop = asyncio.get_running_loop()
            self._model = model = await loop.run_in_executor(self._executor, self._load)
            self._log.info("model loaded", model=self._name, seconds=round(self._clock() - started, 2))
            return model
