"""Carries what the database committed: due tasks into Redis, events to whoever listens. Also sweeps and tidies."""

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta

from internal.entities.batches import ARCHIVES_KEPT, BATCHES_KEPT
from internal.entities.events import KEPT, PublishedEvent
from internal.entities.tasks import Queue, Wakeup
from internal.repositories.store import Store
from internal.repositories.wakeup import NewsLine
from internal.worker.cron import Chore, Schedule
from internal.worker.queue import TaskQueue
from pkg import failpoints, logger
from pkg.apperr import AppError
from pkg.config import Settings
from pkg.resilience import backoff

POLL_SECONDS = 0.5  # the net beneath NOTIFY, and how often a retry that has come due is seen
BREATH_SECONDS = 0.03  # between rounds: notifications come in bursts, and a round costs the same for one task or fifty
FOLLOW_SECONDS = 1.0  # how often a relay without the lock tries for it
HOLD_SECONDS = 1.0
SWEEP_SECONDS = 2.0
MEND_SECONDS = 2.0
BATCH_SECONDS = 0.5  # how often unfinished batches are looked at, a bounded number each time
BATCHES_A_ROUND = 20
UNCLAIMED_SECONDS = 3.0
UNCLAIMED_LIMIT = 1_000
TIDY_SECONDS = 300.0
EVENTS_A_ROUND = 200
KEEP_KEYS = timedelta(hours=24)
SWEEP_OBJECTS = timedelta(hours=6)  # a tenant's objects are compared with its rows so often


class Relay:
    """Any number may run; the one that holds the lock works, the others take over when it dies or stands still.

    The lock only avoids double work: every step is safe when two relays take it at once.
    """

    def __init__(self, store: Store, news: NewsLine, queue: TaskQueue, settings: Settings) -> None:
        self._store = store
        self._news = news
        self._queue = queue
        self._tasks = settings.tasks
        self._log = logger.get("relay")
        self._stopping = False
        self._failures = 0
        # One for all terms of office: who leads again within a moment needn't do everything anew.
        self._schedule = Schedule(
            (
                Chore(name="hold", every_seconds=HOLD_SECONDS, action=self._news.hold),
                Chore(name="sweep", every_seconds=SWEEP_SECONDS, action=self.sweep),
                Chore(name="batches", every_seconds=BATCH_SECONDS, action=self.settle_batches),
                Chore(name="tidy", every_seconds=TIDY_SECONDS, action=self.tidy),
                # Last, because a Redis that is away must keep nobody from the others.
                Chore(name="mend", every_seconds=MEND_SECONDS, action=self.mend),
            )
        )

    async def run(self) -> None:
        """Works until `stop`. A server that is away is waited for, however long it takes."""
        while not self._stopping:
            try:
                await self._news.open()
                while not self._stopping:
                    if await self._news.lead():
                        await self._work()
                    else:
                        await self._news.wait(FOLLOW_SECONDS)
            except AppError as error:
                self._failures += 1
                delay = backoff(self._failures, base=0.2, cap=3.0)
                self._log.warning("relay waits", code=error.code.value, detail=error.detail, seconds=round(delay, 1))
                await asyncio.sleep(delay)
        await self._news.close()

    def stop(self) -> None:
        """Ends `run` after the round that is under way."""
        self._stopping = True
        self._news.wake()

    async def _work(self) -> None:
        """Rounds of a leader until it stops or a server goes away."""
        self._log.info("relay leads")
        while not self._stopping:
            # First what needs no Redis: while it is away events get their numbers, and followers find them by polling.
            events = await self.number()
            await self._schedule.run_due()
            moved = await self.dispatch()
            await self.publish(events)
            self._failures = 0
            await asyncio.sleep(BREATH_SECONDS)
            if not moved and not events:
                await self._news.wait(min(POLL_SECONDS, self._schedule.seconds_to_next()))

    async def dispatch(self) -> int:
        """Fills each queue's window in Redis from the ledger; answers how many tasks were sent.

        The ledger's row is committed first, for a worker must not look for what isn't there yet. A wake-up that
        doesn't reach Redis is found by `mend`.
        """
        await self._queue.ping()
        async with self._store.system("dispatch due tasks") as tx:
            picked = await tx.ledger.dispatch(
                tuple(Queue), window=self._tasks.window, per_tenant=self._tasks.inflight_per_tenant
            )
        await failpoints.hit("relay.after_dispatch")
        for queue, wakeups in picked.items():
            await self._queue.enqueue(queue, wakeups)
        await failpoints.hit("relay.after_enqueue")
        return sum(map(len, picked.values()))

    async def mend(self) -> None:
        """Sends again what was dispatched and is neither claimed nor in Redis: wiped, or lost with a worker."""
        async with self._store.system("find unclaimed tasks") as tx:
            unclaimed = await tx.ledger.unclaimed(older_than=UNCLAIMED_SECONDS, limit=UNCLAIMED_LIMIT)
        lost: list[Wakeup] = []
        for queue, wakeups in unclaimed.items():
            lost += await self._queue.missing(queue, wakeups)
        if not lost:
            return
        async with self._store.system("dispatch lost tasks again") as tx:
            again = await tx.ledger.redispatch(lost)
        for queue, wakeups in again.items():
            await self._queue.enqueue(queue, wakeups)
        if count := sum(map(len, again.values())):  # 0 where they were claimed meanwhile
            self._log.warning("lost wake-ups sent again", count=count)

    async def sweep(self) -> None:
        """Takes the leases of lost workers away."""
        async with self._store.system("sweep expired leases") as tx:
            swept = await tx.ledger.sweep(grace=self._tasks.lease_seconds)
        for task_id, status in swept:
            self._log.warning("lease lost", task_id=str(task_id), status=status.value)

    async def number(self) -> list[PublishedEvent]:
        """Gives new events their places, and answers those that are still to be handed on."""
        async with self._store.system("number new events") as tx:
            return await tx.ledger.publish(EVENTS_A_ROUND)

    async def publish(self, events: Sequence[PublishedEvent]) -> None:
        """Hands events on at least once: they are marked only after Redis has taken them."""
        if not events:
            return
        await self._queue.broadcast(events)
        await failpoints.hit("relay.after_broadcast")
        async with self._store.system("mark events as handed on") as tx:
            await tx.ledger.mark_published(events)
        for event in events:
            self._log.debug("event", kind=event.kind, tenant_id=str(event.tenant_id), position=event.position)

    async def settle_batches(self) -> None:
        """Tells how far batches are; the ends of some come as events. Their numbers are read, never counted along."""
        async with self._store.system("settle batches") as tx:
            moved = await tx.ledger.settle_batches(BATCHES_A_ROUND)
        if moved:
            await self._queue.broadcast(moved)

    async def tidy(self) -> None:
        """Forgets old keys and events, gives up old dead letters, has uploads, batches and objects looked through."""
        started = time.monotonic()
        async with self._store.system("forget old keys and events") as tx:
            keys, events = await tx.ledger.forget(keys_after=KEEP_KEYS, events_after=KEPT)
            dead = await tx.ledger.expire_dead(timedelta(days=self._tasks.dead_days))
            tasks = await tx.ledger.expire_uploads(max_retries=self._tasks.max_retries)
            tasks += await tx.ledger.queue_sweeps(every=SWEEP_OBJECTS, max_retries=self._tasks.max_retries)
            tasks += await tx.ledger.expire_batches(
                batches=BATCHES_KEPT, archives=ARCHIVES_KEPT, max_retries=self._tasks.max_retries
            )
        self._log.debug("tidied", keys=keys, events=events, tasks=tasks, seconds=round(time.monotonic() - started, 3))
        if dead:
            self._log.warning("old dead letters given up", count=dead, days=self._tasks.dead_days)
