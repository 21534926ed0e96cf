"""Runs tasks under leases: claims, keeps the lease alive, calls the job, and writes down how it ended."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum

import msgspec

from internal.entities.tasks import Ending, Lease, Outcome, Queue, TaskStatus, Wakeup
from internal.entities.waiting import WorkerReport
from internal.repositories.store import Store
from internal.worker.claims import Claim, Claims, Settlement
from internal.worker.endings import CANCELLED, RELEASED, ending_of
from internal.worker.jobs import Jobs
from internal.worker.queue import Consumer, TaskQueue
from internal.worker.stopwatch import Stopwatch
from pkg import failpoints, logger
from pkg.apperr import TRANSIENT, AppError, Code
from pkg.config import Settings
from pkg.ctxutil import Context, bound
from pkg.resilience import backoff

GUEST_SECONDS = (
    0.25  # so long another worker may take the task of a tenant that has nothing running, then a full one does
)
LOOK_SECONDS = 0.25
BUSY_SECONDS = 0.01  # after a poll that found work, or a slot that became free: more of them come together
IDLE_SECONDS = 0.05
CANCEL_SECONDS = 1.0  # a request to cancel is seen within this, and takes effect within twice that
DRAIN_SECONDS = 15.0
RELEASE_SECONDS = 5.0
BEAT_SECONDS = 5.0
ALIVE_SECONDS = 16.0


class Interruption(Enum):
    """Why an attempt was cut off before its job was done."""

    CANCELLED = "cancelled"
    LOST = "lost"
    STOPPED = "stopped"


class _Attempt:
    """One job under way."""

    def __init__(self, ctx: Context, lease: Lease) -> None:
        self.ctx = ctx
        self.lease = lease
        self.job: asyncio.Task[dict[str, object]] | None = None
        self.interruption: Interruption | None = None

    def interrupt(self, why: Interruption) -> None:
        """Cancels the job; the first reason counts, except that a lost lease beats all."""
        if self.interruption is None or why is Interruption.LOST:
            self.interruption = why
        if self.job is not None:
            self.job.cancel()


class Worker:
    """Runs up to `tasks.concurrency` tasks of the named queues at a time, the first queue's first, and beside them one
    of a tenant that has nothing running."""

    def __init__(
        self,
        store: Store,
        queue: TaskQueue,
        jobs: Jobs,
        settings: Settings,
        *,
        queues: Sequence[Queue] = tuple(Queue),
    ) -> None:
        self._store = store
        self._queue = queue
        self._jobs = jobs
        self._queues = queues
        self._settings = settings.tasks
        self._lease_seconds = settings.tasks.lease_seconds
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._log = logger.get("worker").bind(worker=self.name)
        self._claims = Claims(store, worker=self.name, lease_seconds=self._lease_seconds, versions=jobs.versions)
        self._stopwatch = Stopwatch()
        self._attempts: set[_Attempt] = set()
        self._stopping = asyncio.Event()
        self._freed = asyncio.Event()

    @property
    def busy(self) -> int:
        """Tasks that run at the moment."""
        return len(self._attempts)

    async def run(self) -> None:
        """Works until `stop`, then gives running tasks 15 s and puts back those that need longer."""
        consumer = self._queue.consumer(self._queues, slots=self._settings.concurrency, receive=self._receive)
        self._log.info("worker ready", queues=[queue.value for queue in self._queues])
        chores = {asyncio.create_task(self._report()), asyncio.create_task(self._claims.tell_relay())}
        failures = 0
        while not self._stopping.is_set():
            try:
                self._freed.clear()
                busy = await consumer.poll()
                if consumer.full:
                    await self._full(consumer)
                    busy = True
                delay = BUSY_SECONDS if busy else IDLE_SECONDS
                failures = 0
            except AppError as error:
                failures += 1
                delay = backoff(failures, base=0.2, cap=3.0)
                self._log.warning("worker waits", code=error.code.value, seconds=round(delay, 1))
            await self._pause(delay)
        await self._drain(consumer)
        for chore in chores:
            chore.cancel()
        await asyncio.wait(chores)
        await self._leave()

    def stop(self) -> None:
        """Takes no more tasks; `run` returns when those under way have ended or were put back."""
        self._stopping.set()
        self._freed.set()

    async def _full(self, consumer: Consumer) -> None:
        """Waits for a slot to become free, and lets a guest in meanwhile."""
        while not self._freed.is_set():
            if consumer.closed or await consumer.poll_guest(after=GUEST_SECONDS):
                await self._freed.wait()
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), LOOK_SECONDS)

    async def _drain(self, consumer: Consumer) -> None:
        self._log.info("worker drains", running=self.busy)
        if not await consumer.drain(DRAIN_SECONDS):
            for attempt in tuple(self._attempts):
                attempt.interrupt(Interruption.STOPPED)
            await consumer.drain(RELEASE_SECONDS)
        self._log.info("worker stopped", left=self.busy)

    async def _report(self) -> None:
        """Keeps this worker counted among the living, for metrics and readiness."""
        while True:
            try:
                await self._queue.workers.beat(self._told(), ALIVE_SECONDS)
            except AppError as error:
                self._log.debug("not counted", code=error.code.value)
            await asyncio.sleep(BEAT_SECONDS)

    def _told(self) -> WorkerReport:
        return WorkerReport(
            name=self.name,
            queues=list(self._queues),
            slots=self._settings.concurrency,
            services=self._stopwatch.services(),
        )

    async def _leave(self) -> None:
        try:
            await self._queue.workers.leave(self.name)
        except AppError as error:
            self._log.debug("still counted for a while", code=error.code.value)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _receive(self, wakeup: Wakeup) -> None:
        """One delivery. Lets nothing out: whatever isn't written down here, the sweeper and the relay find."""
        try:
            claim = await self._claims.claim(wakeup)
            if claim is not None:
                await failpoints.hit("worker.after_claim")
                await self._carry_out(claim)
        except AppError as error:
            self._log.warning("task left to the relay", task_id=str(wakeup.task_id), code=error.code.value)
        except Exception:  # noqa: BLE001 - logged, and the lease runs out
            self._log.exception("task left to the sweeper", task_id=str(wakeup.task_id))
        finally:
            self._freed.set()

    async def _carry_out(self, claim: Claim) -> None:
        lease, task = claim.lease, claim.lease.task
        began = time.monotonic()
        ctx = Context(
            tenant_id=task.tenant_id,
            user_id=task.user_id,
            role=task.role,
            request_id=task.request_id,
            trace_id=task.trace_id,
        )
        with bound(ctx):
            if claim.has_payload:
                async with self._store.tenant(ctx) as tx:
                    task = msgspec.structs.replace(task, payload=await tx.tasks.payload(task.id))
                lease = msgspec.structs.replace(lease, task=task)
            attempt = _Attempt(ctx, lease)
            self._attempts.add(attempt)
            attempt.job = asyncio.create_task(self._jobs.run(ctx, lease))
            heart = asyncio.create_task(self._keep(attempt))
            try:
                await asyncio.wait({attempt.job})
                ending = self._ending(attempt, attempt.job)
                if ending is not None and ending.status is TaskStatus.SUCCEEDED:
                    self._stopwatch.note(task, time.monotonic() - began)
                if ending is not None:
                    await failpoints.hit("worker.before_ending")
                    await self._settle(attempt, ending)
            finally:
                attempt.job.cancel()
                heart.cancel()
                self._attempts.discard(attempt)

    async def _keep(self, attempt: _Attempt) -> None:
        """Renews the lease well within its time, and brings a request to cancel."""
        while True:
            await asyncio.sleep(min(self._lease_seconds / 3, CANCEL_SECONDS))
            try:
                await failpoints.hit("worker.heartbeat")
                async with self._store.tenant(attempt.ctx) as tx:
                    cancel = await tx.tasks.heartbeat(attempt.lease, self._lease_seconds)
            except AppError as error:
                if error.code is Code.TASK_FENCED:
                    attempt.interrupt(Interruption.LOST)
                    return
                # The lease may outlast the outage: nobody can take it away while the database is down.
                self._log.warning("heartbeat failed", task_id=str(attempt.lease.task.id), code=error.code.value)
                continue
            if cancel:
                attempt.interrupt(Interruption.CANCELLED)

    def _ending(self, attempt: _Attempt, job: asyncio.Task[dict[str, object]]) -> Ending | None:
        """What to write down; None when the task is no longer this worker's."""
        task = attempt.lease.task
        error: BaseException | None = asyncio.CancelledError() if job.cancelled() else job.exception()
        if error is None:
            return Ending(status=TaskStatus.SUCCEEDED, outcome=Outcome.SUCCEEDED, result=job.result())
        fenced = isinstance(error, AppError) and error.code in (Code.TASK_FENCED, Code.TASK_LEASE_LOST)
        if fenced or attempt.interruption is Interruption.LOST:
            self._log.warning("lease lost, stopped", task_id=str(task.id), kind=task.kind)
            return None
        if attempt.interruption is Interruption.CANCELLED:
            return CANCELLED
        if attempt.interruption is Interruption.STOPPED:
            return RELEASED
        ending = ending_of(error, task, base_seconds=self._settings.backoff_seconds)
        self._log.warning(
            "task attempt failed",
            task_id=str(task.id),
            kind=task.kind,
            code=ending.error_code,
            next=ending.status.value,
            exc_info=None if isinstance(error, AppError) else error,
        )
        return ending

    async def _settle(self, attempt: _Attempt, ending: Ending) -> None:
        """Writes the ending down, waiting for the database as long as the lease can last."""
        tries = 0
        while True:
            try:
                await self._claims.settle(Settlement(attempt.lease, ending))
                return
            except AppError as error:
                if error.code is Code.TASK_FENCED:
                    self._log.warning("ending refused, lease lost", task_id=str(attempt.lease.task.id))
                    return
                if error.code not in TRANSIENT or self._stopping.is_set():
                    raise
            tries += 1
            await asyncio.sleep(backoff(tries, base=0.2, cap=5.0))
