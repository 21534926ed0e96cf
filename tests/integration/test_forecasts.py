"""Why a task waits: the reason in words, the place in line, and nothing of other tenants but a count."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, tzinfo
from typing import Self

import pytest
from arq.connections import ArqRedis

from internal.entities.tasks import Ending, Outcome, Queue, Task, TaskStatus
from internal.entities.waiting import Reason, ServiceTime, Waiting, WorkerReport
from internal.repositories import workers
from internal.repositories.room import OF_USER
from internal.repositories.workers import REPORT_KEY, open_workers
from internal.services import forecasts as service_of_forecasts
from internal.services.forecasts import ForecastService
from pkg.apperr import Code
from pkg.ctxutil import Context
from tests.integration.test_tasks import claim
from tests.ledger import Ledger, flush, open_ledger
from tests.servers import Database


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url) as found:
        yield found


@pytest.fixture
def forecasts(ledger: Ledger) -> ForecastService:
    return ForecastService(ledger.app, ledger.queue.workers)


async def report(
    ledger: Ledger,
    *,
    name: str = "host:1:abc",
    queues: list[Queue] | None = None,
    slots: int = 2,
    seconds: float = 10.0,
) -> None:
    """A worker that is alive and has had some tasks."""
    service = ServiceTime(queue=Queue.DEFAULT, kind="note", size_class=0, count=5, seconds=seconds)
    worker = WorkerReport(name=name, queues=queues or [Queue.DEFAULT], slots=slots, services=[service])
    await ledger.queue.workers.beat(worker, 30)


async def waiting(ledger: Ledger, forecasts: ForecastService, ctx: Context, task: Task) -> Waiting:
    found = await forecasts.waiting(ctx, await ledger.get(ctx, task.id))
    assert found is not None
    return found


def seconds_until_start(task: Task, found: Waiting) -> float:
    assert found.estimated_start_at is not None
    return (found.estimated_start_at - task.created_at).total_seconds()


async def test_without_a_worker_it_says_so(
    ledger: Ledger, forecasts: ForecastService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "COMPLETE_SECONDS", 0.0)
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    found = await waiting(ledger, forecasts, ctx, task)
    assert (found.reason, found.estimated_start_at) == (Reason.NO_WORKER, None)
    assert "default" in found.detail


async def test_a_wiped_redis_is_no_missing_worker(
    ledger: Ledger, forecasts: ForecastService, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    await flush(ledger.redis_url)
    assert (await waiting(ledger, forecasts, ctx, task)).reason is Reason.NEXT, "workers may not have told yet"
    monkeypatch.setattr(workers, "COMPLETE_SECONDS", 0.0)
    await report(ledger, queues=[Queue.BATCH])
    assert (await waiting(ledger, forecasts, ctx, task)).reason is Reason.NO_WORKER
    # Of another version, whose report says something else, or nothing at all.
    redis = ArqRedis.from_url(ledger.redis_url)
    for told in (b'{"name": "host:1:abc", "queues": ["new"], "slots": 1}', None):
        await (redis.set(REPORT_KEY + "host:1:abc", told) if told else redis.delete(REPORT_KEY + "host:1:abc"))
        assert (await waiting(ledger, forecasts, ctx, task)).reason is Reason.NEXT
    await redis.aclose(close_connection_pool=True)


class Late(datetime):
    """A clock that is two hours behind."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) - timedelta(hours=2)


async def test_a_clock_that_is_wrong_changes_no_reason(
    ledger: Ledger, forecasts: ForecastService, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    await report(ledger)
    monkeypatch.setattr(service_of_forecasts, "datetime", Late)
    real = time.time
    with monkeypatch.context() as early:
        early.setattr(time, "time", lambda: real() + 7200)
        await report(ledger, name="host:2:def")
    found = await waiting(ledger, forecasts, ctx, task)
    assert found.reason is Reason.NEXT
    assert abs(seconds_until_start(task, found)) < 60
    assert len((await ledger.queue.workers.roll()).reports) == 2


async def test_a_redis_that_hangs_is_asked_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polling goes on: only the first of many questions waits for it."""
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    async with deaf() as (url, connections):
        registry = open_workers(url)
        forecasts = ForecastService(ledger.app, registry)
        for _ in range(3):
            assert (await waiting(ledger, forecasts, ctx, task)).reason is Reason.NEXT
        assert len(connections) == 1
        await registry.close()


@asynccontextmanager
async def deaf() -> AsyncGenerator[tuple[str, list[asyncio.StreamWriter]]]:
    """A Redis that takes connections and says nothing, as one that was stopped."""
    connections: list[asyncio.StreamWriter] = []

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    finally:
        for writer in connections:
            writer.close()
        server.close()


async def test_the_place_in_line_and_the_time_that_follows(ledger: Ledger, forecasts: ForecastService) -> None:
    ctx = await ledger.tenant()
    first, *_, last = await ledger.add(ctx, count=8)
    await report(ledger)
    found = await waiting(ledger, forecasts, ctx, first)
    assert (found.reason, found.position, found.ahead) == (Reason.NEXT, 0, 0)
    found = await waiting(ledger, forecasts, ctx, last)
    assert (found.reason, found.position, found.ahead) == (Reason.TENANT_SHARE, 7, 7)
    # Seven tasks of ten seconds over two slots.
    assert 35 <= seconds_until_start(last, found) < 50
    assert found.estimated_end_at is not None
    assert found.estimated_start_at is not None
    assert (found.estimated_end_at - found.estimated_start_at).total_seconds() == pytest.approx(10)


async def test_other_tenants_count_by_their_turns_only(ledger: Ledger, forecasts: ForecastService) -> None:
    ctx, crowd = await ledger.tenant(), await ledger.tenant()
    await ledger.add(crowd, count=50)
    _first, second = await ledger.add(ctx, count=2)
    await report(ledger)
    found = await waiting(ledger, forecasts, ctx, second)
    assert (found.position, found.ahead) == (1, 3), "two turns of the crowd, not fifty"
    await ledger.inspector.execute("update tenants set queue_weight = 4 where id = $1", crowd.tenant_id)
    found = await waiting(ledger, forecasts, ctx, second)
    assert (found.reason, found.position, found.ahead) == (Reason.QUEUE, 1, 9)
    assert str(crowd.tenant_id) not in repr(found)


async def test_what_others_have_waiting_isnt_walked_through(ledger: Ledger) -> None:
    """Blocks that are read stay few, however many tenants and colleagues have something waiting."""
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    await ledger.inspector.execute(
        "with crowd as (insert into tenants (id, name) select gen_random_uuid(), 'crowd' from generate_series(1, 20000)"
        " returning id) insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id,"
        " max_retries) select c.id, gen_random_uuid(), 'note', 1, 'batch', gen_random_uuid(), 'owner', '', '', 1"
        " from (select id from crowd union all select $1 from generate_series(1, 10000)) c",
        ctx.tenant_id,
    )
    await ledger.inspector.execute(
        "insert into tasks (tenant_id, id, kind, version, queue, status, user_id, role, request_id, trace_id,"
        " max_retries) select $1, gen_random_uuid(), 'note', 1, 'default', 'succeeded', $2, 'owner', '', '', 1"
        " from generate_series(1, 5000)",
        ctx.tenant_id,
        ctx.user_id,
    )
    await ledger.inspector.execute("analyze tasks")
    await ledger.inspector.execute("select set_config('app.tenant_id', $1, false)", str(ctx.tenant_id))
    assert await blocks(ledger, "select * from standing_v2($1, '{}', '{}', '{}', '{}', 0)", task.id) < 60
    assert await blocks(ledger, OF_USER, ctx.tenant_id, ctx.user_id, "batch", 100) < 10


async def blocks(ledger: Ledger, statement: str, *values: object) -> int:
    """How many blocks PostgreSQL reads for it."""
    explain = f"explain (analyze, buffers, format json) {statement}"
    await ledger.inspector.fetchval(explain, *values)  # reads the catalogue, too
    told: str = await ledger.inspector.fetchval(explain, *values)  # pyright: ignore[reportAssignmentType]
    plan = json.loads(told)[0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def test_nobody_asks_about_anothers_task(ledger: Ledger, forecasts: ForecastService) -> None:
    ctx, stranger = await ledger.tenant(), await ledger.tenant()
    [task] = await ledger.add(ctx)
    await report(ledger)
    assert await forecasts.waiting(stranger, task) is None


async def test_a_dependency_that_is_down_is_named(ledger: Ledger, forecasts: ForecastService) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    [lease] = await claim(ledger)
    ending = Ending(
        status=TaskStatus.QUEUED,
        outcome=Outcome.HELD,
        error_code=Code.MODEL_UNAVAILABLE,
        error_message="The embedding model isn't ready; try again shortly.",
        delay=60,
    )
    async with ledger.worker_store.system("test") as tx:
        await tx.ledger.end([(lease, ending)])
    found = await waiting(ledger, forecasts, ctx, task)
    assert found.reason is Reason.DEPENDENCY
    assert "The embedding model isn't ready" in found.detail
    assert found.until is not None


async def test_a_backoff_and_work_for_newer_workers_tell_until_when(ledger: Ledger, forecasts: ForecastService) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    [newer] = await ledger.add(ctx, "from_the_future")
    [lease] = await claim(ledger)
    ending = Ending(
        status=TaskStatus.QUEUED, outcome=Outcome.RETRIED, error_code=Code.INTERNAL, used_try=True, delay=60
    )
    async with ledger.worker_store.system("test") as tx:
        await tx.ledger.end([(lease, ending)])
    found = await waiting(ledger, forecasts, ctx, task)
    assert (found.reason, found.until is not None) == (Reason.BACKOFF, True)
    assert "try 2 of 3" in found.detail
    found = await waiting(ledger, forecasts, ctx, newer)
    assert (found.reason, found.until is not None) == (Reason.NO_WORKER, True)


async def test_an_end_is_estimated_while_it_runs(ledger: Ledger, forecasts: ForecastService) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    await report(ledger, seconds=100)
    await claim(ledger)
    running = await ledger.get(ctx, task.id)
    assert await forecasts.waiting(ctx, running) is None
    ends = await forecasts.end_of_running(running)
    assert ends is not None
    assert running.started_at is not None
    assert 90 < (ends - running.started_at).total_seconds() < 130


async def test_workers_tell_how_long_tasks_take(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    async with ledger.relay(), ledger.worker() as worker:
        await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED)
        [service] = worker._told().services
        assert (service.queue, service.kind, service.count) == (Queue.DEFAULT, "note", 1)
        [told] = (await ledger.queue.workers.roll()).reports
        assert (told.name, told.slots, told.queues) == (worker.name, 2, list(Queue))
