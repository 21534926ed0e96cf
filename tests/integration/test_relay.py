"""The relay: what was committed arrives, whatever breaks; fairly, in order, and once in effect."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
from arq.connections import ArqRedis

from internal.entities.events import DocumentReady
from internal.entities.ids import new_id
from internal.entities.tasks import Lease, Queue, TaskStatus, Wakeup
from internal.repositories.broadcasts import events_channel
from internal.repositories.wakeup import NewsLine
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from tests.ledger import Ledger, eventually, flush, open_ledger
from tests.servers import Database


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url, inflight_per_tenant=4, window=16) as found:
        yield found


async def all_done(ledger: Ledger) -> None:
    async def done() -> bool:
        return await ledger.unfinished() == 0

    await eventually(done, seconds=30)


async def test_losing_all_of_redis_loses_no_task(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    tasks = await ledger.add(ctx, count=30)
    async with ledger.relay():

        async def dispatched() -> bool:
            return bool(await ledger.inspector.fetchval("select count(*) > 0 from tasks where dispatches > 0"))

        await eventually(dispatched)
        await flush(ledger.redis_url)
        async with ledger.worker():
            await asyncio.sleep(0.1)
            await flush(ledger.redis_url)
            await all_done(ledger)
    assert sorted(ledger.effects.order) == sorted(task.id for task in tasks)


async def test_one_task_isnt_held_up_by_another_tenants_five_hundred(ledger: Ledger) -> None:
    async def slow(ctx: Context, lease: Lease) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return await ledger.effects.note(ctx, lease)

    crowd, single = await ledger.tenant(), await ledger.tenant()
    await ledger.add(crowd, "slow", count=500)
    async with ledger.relay(), ledger.worker(ledger.jobs(slow=slow), concurrency=1):

        async def begun() -> bool:
            return len(ledger.effects.order) >= 5

        await eventually(begun)
        before = len(ledger.effects.order)
        [task] = await ledger.add(single, "slow")
        await ledger.until(single, task.id, TaskStatus.SUCCEEDED)
        # One that runs, four of the crowd in Redis, and what ran while the test looked away.
        assert ledger.effects.order.index(task.id) - before <= 12
        assert len(ledger.effects.order) < 250


async def test_the_window_and_each_tenants_share_of_it_are_kept(ledger: Ledger) -> None:
    tenants = [await ledger.tenant() for _ in range(6)]
    for ctx in tenants:
        await ledger.add(ctx, count=10)
    async with ledger.relay_store.system("test") as tx:
        first = await tx.ledger.dispatch([Queue.DEFAULT], window=16, per_tenant=4)
    assert len(first[Queue.DEFAULT]) == 16
    rows = await ledger.inspector.fetch(
        "select tenant_id, count(*) as n from tasks where dispatched_at is not null group by tenant_id"
    )
    assert {row["n"] for row in rows} <= {2, 3}
    assert len(rows) == 6
    async with ledger.relay_store.system("test") as tx:
        assert await tx.ledger.dispatch([Queue.DEFAULT], window=16, per_tenant=4) == {}
        more = await tx.ledger.dispatch([Queue.DEFAULT], window=100, per_tenant=4)
        assert len(more[Queue.DEFAULT]) == 8


async def test_a_tenants_weight_is_its_share(ledger: Ledger) -> None:
    light, heavy = await ledger.tenant(), await ledger.tenant()
    await ledger.inspector.execute("update tenants set queue_weight = 3 where id = $1", heavy.tenant_id)
    for ctx in (light, heavy):
        await ledger.add(ctx, count=30)
    async with ledger.relay_store.system("test") as tx:
        await tx.ledger.dispatch([Queue.DEFAULT], window=12, per_tenant=10)
        await tx.ledger.dispatch([Queue.DEFAULT], window=16, per_tenant=10)
    rows = await ledger.inspector.fetch(
        "select tenant_id, count(*) as n from tasks where dispatched_at is not null group by tenant_id"
    )
    assert {row["tenant_id"]: row["n"] for row in rows} == {light.tenant_id: 4, heavy.tenant_id: 12}


async def test_a_first_turn_passes_what_lies_in_redis(ledger: Ledger) -> None:
    """Whoever waits alone isn't behind the share of the window that another has."""
    crowd, single = await ledger.tenant(), await ledger.tenant()
    await ledger.add(crowd, count=10)
    popped: list[Wakeup] = []

    async def note(wakeup: Wakeup) -> None:
        popped.append(wakeup)

    async def dispatch() -> None:
        async with ledger.relay_store.system("test") as tx:
            picked = await tx.ledger.dispatch([Queue.DEFAULT], window=16, per_tenant=4)
        await ledger.queue.enqueue(Queue.DEFAULT, picked[Queue.DEFAULT])

    await dispatch()
    [task] = await ledger.add(single)
    await dispatch()
    consumer = ledger.queue.consumer([Queue.DEFAULT], slots=2, receive=note)
    await consumer.poll()
    await consumer.drain(5)
    assert task.id in {wakeup.task_id for wakeup in popped}


async def test_held_tasks_arent_walked_over(ledger: Ledger) -> None:
    """Thousands that wait for a model which is down must not slow each dispatch: the index is asked for due ones."""
    ctx, other = await ledger.tenant(), await ledger.tenant()
    await ledger.add(ctx)
    await ledger.inspector.execute(
        "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries,"
        " due_at) select $1, gen_random_uuid(), 'note', 1, 'default', $2, 'owner', '', '', 5, now() + interval '1 hour'"
        " from generate_series(1, 5000)",
        ctx.tenant_id,
        ctx.user_id,
    )
    [urgent] = await ledger.add(ctx, priority=1)
    await ledger.add(other)

    async def entries() -> int:
        return await ledger.inspector.fetchval(
            "select idx_tup_read from pg_stat_all_indexes where indexrelname = 'tasks_waiting'"
        )

    await ledger.inspector.execute("select pg_stat_force_next_flush()")
    before = await entries()
    async with ledger.relay_store.system("test") as tx:
        picked = await tx.ledger.dispatch([Queue.DEFAULT], window=16, per_tenant=4)
        await tx._conn.execute("select pg_stat_force_next_flush()")
    assert picked[Queue.DEFAULT][0].task_id == urgent.id or len(picked[Queue.DEFAULT]) == 3
    assert len(picked[Queue.DEFAULT]) == 3

    async def counted() -> bool:
        return await entries() > before

    await eventually(counted)
    assert await entries() - before < 200


async def test_urgent_tasks_of_a_tenant_go_first(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    await ledger.add(ctx, count=3)
    [urgent] = await ledger.add(ctx, priority=5)
    async with ledger.relay_store.system("test") as tx:
        wakeups = await tx.ledger.dispatch([Queue.DEFAULT], window=16, per_tenant=2)
    assert wakeups[Queue.DEFAULT][0].task_id == urgent.id
    assert len(wakeups[Queue.DEFAULT]) == 2


async def test_a_suspended_tenants_tasks_wait(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    await ledger.add(ctx)
    await ledger.inspector.execute("update tenants set status = 'suspended' where id = $1", ctx.tenant_id)
    async with ledger.relay_store.system("test") as tx:
        assert await tx.ledger.dispatch([Queue.DEFAULT], window=16, per_tenant=4) == {}


async def test_a_relay_that_stands_still_is_replaced(database: Database) -> None:
    stalled, spare = (NewsLine(database.relay, stall_seconds=1.0) for _ in range(2))
    await stalled.open()
    await spare.open()
    assert await stalled.lead()
    for _ in range(15):  # as long as it stirs, it keeps the lock
        await asyncio.sleep(0.1)
        await stalled.hold()
        assert not await spare.lead()
    await eventually(spare.lead)
    with pytest.raises(AppError) as error:
        await stalled.hold()
    assert error.value.code is Code.DATABASE_UNAVAILABLE
    await stalled.close()
    await spare.close()


async def test_two_relays_do_the_work_of_one(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    async with ledger.relay() as first, ledger.relay(), ledger.worker():
        tasks = await ledger.add(ctx, count=20)
        await all_done(ledger)
        first.stop()
        tasks += await ledger.add(ctx, count=5)
        await all_done(ledger)
    assert sorted(ledger.effects.order) == sorted(task.id for task in tasks)


async def test_relay_and_worker_outlive_a_database_that_drops_them(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    tasks = await ledger.add(ctx, count=10)
    async with ledger.relay(), ledger.worker():
        for _ in range(3):
            await asyncio.sleep(0.1)
            await ledger.inspector.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and usename in ('dreamhub_worker', 'dreamhub_relay')"
            )
        tasks += await ledger.add(ctx, count=5)
        await all_done(ledger)
    assert set(ledger.effects.order) == {task.id for task in tasks}
    assert await ledger.inspector.fetchval("select count(*) from tasks where status = 'succeeded'") == 15


async def test_events_have_gapless_positions_in_the_order_of_their_commits(ledger: Ledger) -> None:
    first, second = await ledger.tenant(), await ledger.tenant()
    early = DocumentReady(document_id=new_id(), chunk_count=1)
    late = DocumentReady(document_id=new_id(), chunk_count=2)
    async with ledger.relay():
        async with ledger.app.tenant(first) as slow:
            await slow.outbox.add(early)
            async with ledger.app.tenant(first) as quick:
                await quick.outbox.add(late)
            async with ledger.app.tenant(second) as other:
                await other.outbox.add(early)
            await eventually(published(ledger, 2))
        await eventually(published(ledger, 3))
    rows = await ledger.inspector.fetch(
        "select position, payload->>'document_id' as id from outbox where tenant_id = $1 order by position",
        first.tenant_id,
    )
    assert [(row["position"], row["id"]) for row in rows] == [
        (1, str(late.document_id)),
        (2, str(early.document_id)),
    ]
    assert await ledger.inspector.fetchval("select position from outbox where tenant_id = $1", second.tenant_id) == 1


def published(ledger: Ledger, count: int):
    async def reached() -> bool:
        return await ledger.inspector.fetchval("select count(*) from outbox where published_at is not null") == count

    return reached


async def test_an_event_is_handed_on_again_until_it_is_marked(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    async with ledger.app.tenant(ctx) as tx:
        await tx.outbox.add(DocumentReady(document_id=new_id(), chunk_count=1))
    for _ in range(2):
        async with ledger.relay_store.system("a relay that dies before it marks") as tx:
            [event] = await tx.ledger.publish(10)
            assert (event.position, event.kind) == (1, "document.ready")
    async with ledger.relay_store.system("test") as tx:
        await tx.ledger.mark_published([event])
        assert await tx.ledger.publish(10) == []


async def test_a_tenants_listeners_hear_its_events_and_no_others(ledger: Ledger) -> None:
    mine, other = await ledger.tenant(), await ledger.tenant()
    redis = ArqRedis.from_url(ledger.redis_url)
    listener = redis.pubsub()
    await listener.subscribe(events_channel(mine.tenant_id))
    try:
        async with ledger.relay():
            for ctx in (other, mine):
                async with ledger.app.tenant(ctx) as tx:
                    await tx.outbox.add(DocumentReady(document_id=new_id(), chunk_count=1))
            await eventually(published(ledger, 2))
        heard = []
        while message := await listener.get_message(timeout=1):
            if message["type"] == "message":
                heard.append(msgspec.json.decode(message["data"]))
    finally:
        await listener.aclose()
        await redis.aclose(close_connection_pool=True)
    assert [(event["tenant_id"], event["kind"], event["position"]) for event in heard] == [
        (str(mine.tenant_id), "document.ready", 1)
    ]


async def test_the_end_of_a_task_is_an_event(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    async with ledger.relay(), ledger.worker():
        await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED)
    payload = msgspec.json.decode(await ledger.inspector.fetchval("select payload from outbox"))
    assert (payload["task_id"], payload["task_kind"], payload["status"]) == (str(task.id), "note", "succeeded")


async def test_old_keys_and_events_are_forgotten(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    for age in ("25 hours", "1 hour"):
        await ledger.inspector.execute(
            "insert into idempotency_keys (tenant_id, user_id, key, request_hash, created_at)"
            f" values ($1, $2, '{age}', '', now() - interval '{age}')",
            ctx.tenant_id,
            ctx.user_id,
        )
    for age in ("8 days", "1 day"):
        await ledger.inspector.execute(
            "insert into outbox (tenant_id, id, kind, published_at, position)"
            f" values ($1, $2, 'old', now() - interval '{age}', extract(epoch from interval '{age}'))",
            ctx.tenant_id,
            new_id(),
        )
    async with ledger.relay():

        async def tidied() -> bool:
            return await ledger.inspector.fetchval("select count(*) from idempotency_keys") == 1

        await eventually(tidied)
    assert await ledger.inspector.fetchval("select key from idempotency_keys") == "1 hour"
    assert await ledger.inspector.fetchval("select count(*) from outbox") == 1
