"""What a worker takes from the ledger and gives back to it."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from internal.entities.tasks import Ending, Lease, Wakeup
from internal.repositories.store import Store
from internal.worker.batching import Batched
from pkg import logger
from pkg.apperr import TRANSIENT, AppError, Code

TELL_SECONDS = 0.03


class Claim(msgspec.Struct, frozen=True):
    """A lease, and whether the task has a payload to read."""

    lease: Lease
    has_payload: bool


class Settlement(msgspec.Struct, frozen=True):
    """How a task ended that this worker holds."""

    lease: Lease
    ending: Ending


class Claims:
    """Takes tasks and gives them back, many in one statement when many come at once."""

    def __init__(self, store: Store, *, worker: str, lease_seconds: float, versions: Mapping[str, int]) -> None:
        self._store = store
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._versions = versions
        self._news = asyncio.Event()
        self._log = logger.get("claims")
        self._taking: Batched[Wakeup, Claim | None] = Batched(self._take)
        self._ending: Batched[Settlement, bool] = Batched(self._end)

    async def claim(self, wakeup: Wakeup) -> Claim | None:
        """The lease, or None when the task isn't free any more. Raises DATABASE_UNAVAILABLE."""
        return await self._taking.ask(wakeup)

    async def settle(self, settlement: Settlement) -> None:
        """Writes down how the task ended. Raises TASK_FENCED, DATABASE_UNAVAILABLE."""
        try:
            ended = await self._ending.ask(settlement)
        except Exception as error:
            if isinstance(error, AppError) and error.code in TRANSIENT:
                raise
            # One that can't be written down must not spoil those that were to be written with it.
            [ended] = await self._end([settlement])
        if not ended:
            raise AppError(Code.TASK_FENCED, "This worker no longer holds the task.")

    async def tell_relay(self) -> None:
        """Wakes the relay when tasks have ended, but not for each of them; runs until it is cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                async with self._store.system("tasks have ended") as tx:
                    await tx.ledger.wake_relay()
            except AppError as error:
                self._log.debug("relay not told, it will look by itself", code=error.code.value)
            await asyncio.sleep(TELL_SECONDS)

    async def _take(self, delivered: Sequence[Wakeup]) -> list[Claim | None]:
        async with self._store.system("claim delivered tasks") as tx:
            taken = await tx.ledger.claim(
                delivered, worker=self._worker, lease_seconds=self._lease_seconds, versions=self._versions
            )
        claims = {lease.task.id: Claim(lease, has_payload) for lease, has_payload in taken}
        # Popped, so that one of two deliveries of the same task gets the lease.
        return [claims.pop(wakeup.task_id, None) for wakeup in delivered]

    async def _end(self, settlements: Sequence[Settlement]) -> list[bool]:
        async with self._store.system("end tasks") as tx:
            ended = await tx.ledger.end([(settlement.lease, settlement.ending) for settlement in settlements])
        self._news.set()
        return [(settlement.lease.task.id, settlement.lease.fence) in ended for settlement in settlements]
