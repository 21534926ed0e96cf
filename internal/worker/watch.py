"""Looks at queues, workers and dependencies every few seconds, and raises alerts. Runs beside each relay.

Not a chore of the relay that leads: it must be told too that none does. Whoever looks first has looked for all; the
state lies in the database, so no restart forgets an alert or tells it twice.
"""

import asyncio

from internal.entities.tasks import Queue
from internal.entities.waiting import WorkerReport
from internal.entities.watch import CALM_CAP, DEAD_SECONDS, FEW_DEAD, LOOK_SECONDS, Change, Sight, watch
from internal.repositories.store import Store
from internal.repositories.workers import WorkerRegistry
from internal.services.health import HealthService
from pkg import logger
from pkg.apperr import AppError

LEAST_SECONDS = LOOK_SECONDS - 1
LONGEST_SECONDS = 60.0


class Watch:
    """One for each relay. `cap` is how many unfinished tasks a tenant may have."""

    def __init__(self, store: Store, workers: WorkerRegistry, health: HealthService, *, cap: int) -> None:
        self._store = store
        self._workers = workers
        self._health = health
        self._cap = cap
        self._log = logger.get("watch")
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Looks until `stop`. A database that is away is looked at again the next time."""
        while not self._stopping.is_set():
            try:
                await self.look()
            except AppError as error:
                self._log.warning("nothing could be seen", code=error.code.value)
            try:
                await asyncio.wait_for(self._stopping.wait(), LOOK_SECONDS)
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Ends `run`."""
        self._stopping.set()

    async def look(self) -> bool:
        """One look; False when another relay has taken it. Raises DATABASE_UNAVAILABLE."""
        health = await self._health.ready()
        down = frozenset(name for name, found in health.checks.items() if found.status == "down")
        reports = await self._reports()
        async with self._store.system("look at queues, workers and dependencies") as tx:
            begun = await tx.watch.begin(every=LEAST_SECONDS)
            if begun is None:
                return False
            state, at = begun
            seconds = min(at - state.looks[-1].at, LONGEST_SECONDS) if state.looks else LOOK_SECONDS
            events, oldest_event, dead = await tx.watch.backlog()
            sight = Sight(
                at=at,
                seconds=seconds,
                queues=await tx.watch.loads(seconds),
                events=events,
                oldest_event_seconds=oldest_event,
                dead=dead,
                workers=None if reports is None else len(reports),
                served=None if reports is None else _served(reports),
                down=down,
                pressed=await tx.watch.pressed(
                    unfinished=max(1, int(self._cap * CALM_CAP)), dead=FEW_DEAD, seconds=DEAD_SECONDS
                ),
                cap=self._cap,
            )
            state, changes = watch(state, sight)
            for change in changes:
                self._tell(change, sight, await tx.watch.tell(change))
            await tx.watch.finish(state)
        return True

    async def _reports(self) -> list[WorkerReport] | None:
        """None where not every live worker's report is there."""
        try:
            roll = await self._workers.roll()
        except AppError:
            return None  # the health of Redis tells
        return roll.reports if roll.complete else None

    def _tell(self, change: Change, sight: Sight, told: int) -> None:
        if not change.news:
            return
        line = self._log.warning if change.active else self._log.info
        line(
            "alert" if change.active else "alert is over",
            alert=change.name,
            severity=change.severity,
            tenants=[str(tenant) for tenant in change.tenants or ()],
            told=told,
            due=sight.due,
            running=sight.busy,
            workers=sight.workers,
        )


def _served(reports: list[WorkerReport]) -> frozenset[Queue]:
    return frozenset(queue for report in reports for queue in report.queues)
