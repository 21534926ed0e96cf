"""What becomes of a task: done, tried again, held, failed, dead, cancelled, put back."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import pytest
from arq.connections import ArqRedis

from internal.entities.tasks import Lease, Queue, TaskStatus, Wakeup
from internal.worker import runner
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from tests.ledger import Ledger, eventually, open_ledger
from tests.servers import Database


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url) as found:
        yield found


class Flaky:
    """Raises what it was given, one after the other, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.calls = 0

    async def run(self, _ctx: Context, _lease: Lease) -> dict[str, Any]:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return {"calls": self.calls}


class Endless:
    """Runs until it is cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = 0

    async def run(self, _ctx: Context, _lease: Lease) -> dict[str, Any]:
        self.started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {}


async def test_a_task_runs_with_its_users_context_and_payload(ledger: Ledger) -> None:
    seen: list[tuple[Context, dict[str, Any]]] = []

    async def look(ctx: Context, lease: Lease) -> dict[str, Any]:
        seen.append((ctx, lease.task.payload))
        return {"pages": 3}

    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "look", payload={"page": "第一页"})
    assert task.status is TaskStatus.QUEUED
    async with ledger.relay(), ledger.worker(ledger.jobs(look=look)):
        done = await ledger.until(ctx, task.id)
    assert seen == [(ctx, {"page": "第一页"})]
    assert (done.status, done.result, done.progress, done.attempts) == (TaskStatus.SUCCEEDED, {"pages": 3}, 1.0, 1)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert await ledger.outcomes(ctx, task.id) == ["succeeded"]


async def test_an_unexpected_error_is_tried_again_then_dead(ledger: Ledger) -> None:
    flaky = Flaky(*(ValueError("a secret path") for _ in range(9)))
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "flaky")
    async with ledger.relay(), ledger.worker(ledger.jobs(flaky=flaky.run)):
        dead = await ledger.until(ctx, task.id)
    assert (dead.status, dead.retry_count, dead.attempts) == (TaskStatus.DEAD, 2, 3)
    assert dead.error_code == "internal.error"
    assert "ValueError" in str(dead.error_message)
    assert "secret" not in str(dead.error_message)
    assert await ledger.outcomes(ctx, task.id) == ["retried", "retried", "failed"]


async def test_a_fault_of_the_input_fails_at_once(ledger: Ledger) -> None:
    flaky = Flaky(AppError(Code.FILE_ENCRYPTED, "The PDF is encrypted; upload it without a password."))
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "flaky")
    async with ledger.relay(), ledger.worker(ledger.jobs(flaky=flaky.run)):
        failed = await ledger.until(ctx, task.id)
    assert (failed.status, failed.retry_count, flaky.calls) == (TaskStatus.FAILED, 0, 1)
    assert failed.error_code == "file.encrypted"


async def test_a_dependency_that_is_down_uses_up_no_tries(ledger: Ledger) -> None:
    down = [AppError(Code.MODEL_UNAVAILABLE, "The model server is down.") for _ in range(5)]
    flaky = Flaky(*down)
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "flaky")
    async with ledger.relay(), ledger.worker(ledger.jobs(flaky=flaky.run)):

        async def held() -> bool:
            found = await ledger.get(ctx, task.id)
            return found.stage == "held" and found.error_code == "model.unavailable"

        await eventually(held)
        done = await ledger.until(ctx, task.id)
    assert (done.status, done.retry_count, flaky.calls) == (TaskStatus.SUCCEEDED, 0, 6)
    assert done.error_code is None
    assert await ledger.outcomes(ctx, task.id) == ["held"] * 5 + ["succeeded"]


async def test_a_running_task_is_cancelled_within_two_seconds(ledger: Ledger) -> None:
    endless = Endless()
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "endless")
    async with ledger.relay(), ledger.worker(ledger.jobs(endless=endless.run)):
        await asyncio.wait_for(endless.started.wait(), 10)
        async with ledger.app.tenant(ctx) as tx:
            assert (await tx.tasks.cancel(task.id)).status is TaskStatus.RUNNING
        cancelled = await ledger.until(ctx, task.id, TaskStatus.CANCELLED, seconds=10)
    assert endless.cancelled == 1
    assert cancelled.finished_at is not None
    assert await ledger.outcomes(ctx, task.id) == ["cancelled"]


async def test_ten_deliveries_are_one_effect(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    async with ledger.relay_store.system("test") as tx:
        [wakeup] = (await tx.ledger.dispatch([Queue.DEFAULT], window=8, per_tenant=8))[Queue.DEFAULT]
    async with ledger.worker() as first, ledger.worker() as second:
        await asyncio.gather(*(worker._receive(wakeup) for worker in (first, second) for _ in range(5)))
        await first._receive(Wakeup(wakeup.task_id, wakeup.number + 1))
    assert ledger.effects.order == [task.id]
    assert await ledger.outcomes(ctx, task.id) == ["succeeded"]


async def test_unknown_kinds_and_newer_versions_are_left_to_others(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [unknown] = await ledger.add(ctx, "from_the_future")
    [newer] = await ledger.add(ctx, "note", version=2)
    [known] = await ledger.add(ctx)
    async with ledger.relay(), ledger.worker():
        await ledger.until(ctx, known.id, TaskStatus.SUCCEEDED)

        async def passed_over() -> bool:
            return bool(
                await ledger.inspector.fetchval(
                    "select count(*) = 2 from tasks where id = any($1) and due_at > clock_timestamp()",
                    [unknown.id, newer.id],
                )
            )

        await eventually(passed_over)
    for task in (unknown, newer):
        found = await ledger.get(ctx, task.id)
        assert (found.status, found.attempts, found.retry_count) == (TaskStatus.QUEUED, 0, 0)
    assert ledger.effects.order == [known.id]


async def test_a_stopping_worker_puts_back_what_takes_too_long(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "DRAIN_SECONDS", 0.2)
    endless = Endless()
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "endless")
    async with ledger.relay():
        async with ledger.worker(ledger.jobs(endless=endless.run)):
            await asyncio.wait_for(endless.started.wait(), 10)
        async with ledger.worker(ledger.jobs(endless=ledger.effects.note)):
            done = await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED)
    assert endless.cancelled == 1
    assert (done.retry_count, done.lost_leases) == (0, 0)
    assert await ledger.outcomes(ctx, task.id) == ["released", "succeeded"]


async def test_a_stopping_worker_lets_short_tasks_end(ledger: Ledger) -> None:
    started = asyncio.Event()

    async def short(_ctx: Context, _lease: Lease) -> dict[str, Any]:
        started.set()
        await asyncio.sleep(0.4)
        return {"whole": True}

    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "short")
    async with ledger.relay(), ledger.worker(ledger.jobs(short=short)):
        await asyncio.wait_for(started.wait(), 10)
    done = await ledger.get(ctx, task.id)
    assert (done.status, done.result, done.attempts) == (TaskStatus.SUCCEEDED, {"whole": True}, 1)


async def test_a_worker_serves_its_own_queues_only(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [batch] = await ledger.add(ctx, queue=Queue.BATCH)
    [urgent] = await ledger.add(ctx, queue=Queue.HIGH_PRIORITY)
    async with ledger.relay(), ledger.worker(queues=(Queue.HIGH_PRIORITY,)):
        await ledger.until(ctx, urgent.id, TaskStatus.SUCCEEDED)
        assert (await ledger.get(ctx, batch.id)).status is TaskStatus.QUEUED
    assert ledger.effects.order == [urgent.id]


async def test_no_more_tasks_run_at_a_time_than_there_are_slots(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GUEST_SECONDS", 60)
    running = peak = 0

    async def count(_ctx: Context, _lease: Lease) -> dict[str, Any]:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.05)
        running -= 1
        return {}

    ctx = await ledger.tenant()
    tasks = [*await ledger.add(ctx, "count", count=6), *await ledger.add(ctx, "count", count=6, queue=Queue.BATCH)]
    async with ledger.relay(), ledger.worker(ledger.jobs(count=count), concurrency=3):
        for task in tasks:
            await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED)
    assert peak == 3


async def test_long_tasks_of_one_tenant_leave_a_place_for_anothers(ledger: Ledger) -> None:
    release = asyncio.Event()
    running: set[UUID] = set()

    async def long(_ctx: Context, lease: Lease) -> dict[str, Any]:
        running.add(lease.task.id)
        await release.wait()
        return {}

    one, two, three = await ledger.tenant(), await ledger.tenant(), await ledger.tenant()
    jobs = ledger.jobs(long=long)
    async with ledger.relay(), ledger.worker(jobs, concurrency=2):
        tasks = await ledger.add(one, "long", count=4)

        async def filled() -> bool:
            return len(running) == 2

        await eventually(filled)
        (guest,) = await ledger.add(two, "note")
        await ledger.until(two, guest.id, TaskStatus.SUCCEEDED, seconds=10)
        (second,) = await ledger.add(two, "long")

        async def let_in() -> bool:
            return second.id in running

        await eventually(let_in)
        (third,) = await ledger.add(three, "note")
        await asyncio.sleep(1)
        assert (await ledger.get(three, third.id)).status is TaskStatus.QUEUED
        assert len(running) == 3
        release.set()
        for task in tasks:
            await ledger.until(one, task.id, TaskStatus.SUCCEEDED)
        await ledger.until(three, third.id, TaskStatus.SUCCEEDED)
    assert await redis_keys(ledger) == []


async def redis_keys(ledger: Ledger) -> list[bytes]:
    """What the queues have left in Redis."""
    redis = ArqRedis.from_url(ledger.redis_url)
    try:
        return [key for pattern in ("arq:*", "dreamhub:firsts:*") for key in await redis.keys(pattern)]
    finally:
        await redis.aclose(close_connection_pool=True)


async def test_workers_are_counted_while_they_live(ledger: Ledger) -> None:
    async with ledger.worker(), ledger.worker():

        async def both() -> bool:
            return len((await ledger.queue.workers.roll()).reports) == 2

        await eventually(both)
    assert (await ledger.queue.workers.roll()).reports == []
