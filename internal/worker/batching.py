"""Calls in batches, so that a busy worker asks the database once for many tasks."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batched(Generic[T, R]):
    """Whatever is asked while one call is under way goes into the next; nobody waits for a batch to fill.

    `action` answers one result for each item, in order. What it raises, all who wait for that batch get.
    """

    def __init__(self, action: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> None:
        self._action = action
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._calling: asyncio.Task[None] | None = None

    async def ask(self, item: T) -> R:
        """The item's result."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        # A context of its own: the call serves others too, and its log lines must not bear the first one's ids.
        if self._calling is None or self._calling.done():
            self._calling = asyncio.create_task(self._call(), context=contextvars.Context())
        return await answer

    async def _call(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                results = await self._action([item for item, _answer in batch])
            except Exception as error:  # noqa: BLE001 - handed to each of those who wait
                for _item, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_item, answer), result in zip(batch, results, strict=True):
                if not answer.done():
                    answer.set_result(result)
