"""Workers in processes of their own: killed, stopped and woken, told to end."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from internal.entities.tasks import TaskStatus
from tests.ledger import Ledger, eventually, open_ledger
from tests.servers import Database

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url) as found:
        yield found


@contextmanager
def worker_process(ledger: Ledger, failpoints: str = "") -> Generator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.worker_process", ledger.database.worker, ledger.redis_url],
        cwd=ROOT,
        env={**os.environ, "DREAMHUB_FAILPOINTS": failpoints, "PYTHONPATH": f"{ROOT}:{ROOT / 'cmd'}"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def marks(ledger: Ledger) -> list[int]:
    """Process ids of those whose effect was committed."""
    rows = await ledger.inspector.fetch("select (payload->>'pid')::int as pid from outbox where kind = 'test.marked'")
    return [row["pid"] for row in rows]


async def test_another_worker_takes_over_from_one_that_was_killed(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "mark")
    async with ledger.relay():
        with worker_process(ledger, "test.before_mark=crash") as doomed:
            assert await asyncio.to_thread(doomed.wait, 20) == -signal.SIGKILL
            with worker_process(ledger) as heir:
                done = await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED, seconds=30)
                assert await marks(ledger) == [heir.pid]
    assert (done.lost_leases, done.retry_count, done.attempts) == (1, 0, 2)
    assert await ledger.outcomes(ctx, task.id) == ["lost", "succeeded"]


async def test_a_worker_that_slept_through_its_lease_is_refused(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "mark")
    async with ledger.relay():
        with worker_process(ledger, "test.before_mark=stop") as sleeper:
            await ledger.until(ctx, task.id, TaskStatus.RUNNING)

            async def stopped() -> bool:
                return "T" in Path(f"/proc/{sleeper.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

            await eventually(stopped)
            with worker_process(ledger) as heir:
                await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED, seconds=30)
                sleeper.send_signal(signal.SIGCONT)
                sleeper.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(sleeper.wait, 20) == 0
                assert await marks(ledger) == [heir.pid]
    assert await ledger.outcomes(ctx, task.id) == ["lost", "succeeded"]


async def test_a_task_that_kills_every_worker_is_poison(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "mark")
    async with ledger.relay():
        for _ in range(3):
            with worker_process(ledger, "test.before_mark=crash") as doomed:
                assert await asyncio.to_thread(doomed.wait, 30) == -signal.SIGKILL
        dead = await ledger.until(ctx, task.id)
        assert (dead.status, dead.error_code, dead.lost_leases) == (TaskStatus.DEAD, "task.poison", 3)
        assert await ledger.outcomes(ctx, task.id) == ["lost"] * 3
        assert await marks(ledger) == []
        # Looked at and mended, it may go again.
        async with ledger.app.tenant(ctx) as tx:
            await tx.tasks.redrive(task.id)
        with worker_process(ledger):
            await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED)


async def test_a_told_worker_ends_and_leaves_nothing_running(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    tasks = await ledger.add(ctx, "mark", count=5)
    async with ledger.relay():
        with worker_process(ledger) as worker:
            for task in tasks:
                await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED)
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, 20) == 0
    assert len(await marks(ledger)) == 5
