"""Tasks as their users see them: lists, attempts, retries, cancellations, dead letters, caps, visibility."""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import msgspec
import pytest

from internal.entities.ids import new_id
from internal.entities.tasks import Ending, Lease, NewTask, Outcome, Queue, TaskFilter, TaskPolicy, TaskStatus
from internal.repositories.store import open_store
from internal.services.tasks import TaskService
from internal.worker.claims import Claims, Settlement
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from tests.ledger import Ledger, open_ledger
from tests.servers import Database


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url) as found:
        yield found


@pytest.fixture
def service(ledger: Ledger) -> TaskService:
    return TaskService(ledger.app)


END_NOTHING = f"select * from end_v1({', '.join(12 * [repr('{}')])})"
SUCCESS = Ending(status=TaskStatus.SUCCEEDED, outcome=Outcome.SUCCEEDED, result={"chunks": 2})


async def claim(ledger: Ledger) -> list[Lease]:
    """Everything that is due, claimed by a worker without a process."""
    async with ledger.relay_store.system("test") as tx:
        picked = await tx.ledger.dispatch(tuple(Queue), window=100, per_tenant=100)
    wakeups = [wakeup for found in picked.values() for wakeup in found]
    async with ledger.worker_store.system("test") as tx:
        claims = await tx.ledger.claim(wakeups, worker="test", lease_seconds=30, versions={"note": 1})
    return [lease for lease, _payload in claims]


async def end(ledger: Ledger, lease: Lease, status: TaskStatus) -> None:
    outcome = Outcome.SUCCEEDED if status is TaskStatus.SUCCEEDED else Outcome.FAILED
    ending = Ending(status=status, outcome=outcome, used_try=True, error_code="x.y")
    async with ledger.worker_store.system("test") as tx:
        assert await tx.ledger.end([(lease, ending)]) == {(lease.task.id, lease.fence)}


ALL = TaskFilter()


def those(*statuses: TaskStatus, **conditions: Any) -> TaskFilter:
    return TaskFilter(statuses=frozenset(statuses), **conditions)


def fellow(ctx: Context) -> Context:
    return msgspec.structs.replace(ctx, user_id=new_id())


async def refused(call: Any) -> Code:
    with pytest.raises(AppError) as error:
        await call
    return error.value.code


async def test_lists_are_narrowed_and_paged_newest_first(ledger: Ledger, service: TaskService) -> None:
    ctx = await ledger.tenant()
    added = [*await ledger.add(ctx, count=3), *await ledger.add(ctx, count=2, queue=Queue.BATCH)]
    first, cursor = await service.list(ctx, ALL, limit=3)
    rest, last = await service.list(ctx, ALL, limit=3, cursor=cursor)
    assert [task.id for task in first + rest] == [task.id for task in reversed(added)]
    assert last is None
    batch, _ = await service.list(ctx, those(TaskStatus.QUEUED, queue=Queue.BATCH), limit=10)
    assert [task.id for task in batch] == [added[4].id, added[3].id]
    assert await service.list(ctx, those(TaskStatus.DEAD), limit=10) == ([], None)
    assert await refused(service.list(ctx, ALL, limit=3, cursor="no cursor")) is Code.REQUEST_INVALID


async def test_a_task_is_its_users_and_of_those_who_see_its_document(ledger: Ledger, service: TaskService) -> None:
    ctx, stranger = await ledger.tenant(), await ledger.tenant()
    shown, hidden = [await document(ledger, ctx, visibility) for visibility in ("tenant", "private")]
    async with ledger.app.tenant(ctx) as tx:
        tasks = [
            await tx.tasks.add(NewTask(kind="note", version=1, document_id=found)) for found in (shown, hidden, None)
        ]
    assert len((await service.list(ctx, ALL, limit=10))[0]) == 3
    assert [task.id for task in (await service.list(fellow(ctx), ALL, limit=10))[0]] == [tasks[0].id]
    assert (await service.get(fellow(ctx), tasks[0].id)).document_id == shown
    for other, found in ((fellow(ctx), tasks[1:]), (stranger, tasks)):
        for task in found:
            for ask in (service.get, service.attempts, service.retry, service.cancel, service.redrive):
                assert await refused(ask(other, task.id)) is Code.TASK_NOT_FOUND
    async with ledger.app.tenant(fellow(ctx)) as tx:
        assert set(await tx.tasks.latest_for_documents([shown, hidden])) == {shown}


async def document(ledger: Ledger, ctx: Context, visibility: str) -> Any:
    content, found = new_id(), new_id()
    await ledger.inspector.execute(
        "insert into contents (tenant_id, id, sha256, size, media_type, source_type, blob_key)"
        " values ($1, $2, $3, 1, 'text/plain', 'document', 'key')",
        ctx.tenant_id,
        content,
        hashlib.sha256(content.bytes).digest(),
    )
    await ledger.inspector.execute(
        "insert into documents (tenant_id, id, content_id, owner_id, filename, visibility, source_type)"
        " values ($1, $2, $3, $4, 'a.txt', $5, 'document')",
        ctx.tenant_id,
        found,
        content,
        ctx.user_id,
        visibility,
    )
    return found


async def test_a_queued_task_is_cancelled_at_once_and_may_be_retried(ledger: Ledger, service: TaskService) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    assert (await service.cancel(ctx, task.id)).status is TaskStatus.CANCELLED
    assert await claim(ledger) == []
    assert await refused(service.cancel(ctx, task.id)) is Code.TASK_NOT_CANCELLABLE
    assert (await service.retry(ctx, task.id)).status is TaskStatus.QUEUED
    assert await refused(service.retry(ctx, task.id)) is Code.TASK_NOT_RETRYABLE
    [lease] = await claim(ledger)
    assert lease.task.id == task.id


async def test_a_succeeded_task_neither_ends_nor_runs_again(ledger: Ledger, service: TaskService) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx)
    [lease] = await claim(ledger)
    async with ledger.worker_store.system("test") as tx:
        await tx.ledger.end([(lease, SUCCESS)])
    assert (await service.get(ctx, task.id)).result == {"chunks": 2}
    assert await refused(service.cancel(ctx, task.id)) is Code.TASK_NOT_CANCELLABLE
    assert await refused(service.retry(ctx, task.id)) is Code.TASK_NOT_RETRYABLE


async def test_a_lease_that_was_taken_away_allows_no_write(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    await ledger.add(ctx)
    [stale] = await claim(ledger)
    await ledger.inspector.execute("update tasks set lease_until = clock_timestamp() - interval '1 second'")
    async with ledger.relay_store.system("test") as tx:
        assert [status for _id, status in await tx.ledger.sweep(grace=0)] == [TaskStatus.QUEUED]
    [fresh] = await claim(ledger)
    assert (fresh.task.id, fresh.fence) == (stale.task.id, stale.fence + 1)
    async with ledger.worker_store.tenant(ctx) as tx:
        for write in (
            tx.tasks.fence(stale),
            tx.tasks.heartbeat(stale, 30),
            tx.tasks.progress(stale, "late", 0.5),
        ):
            assert await refused(write) is Code.TASK_FENCED
        await tx.tasks.fence(fresh)
    async with ledger.worker_store.system("test") as tx:
        assert await tx.ledger.end([(stale, SUCCESS), (fresh, SUCCESS)]) == {(fresh.task.id, fresh.fence)}


async def test_an_ending_that_cant_be_written_spoils_no_other(ledger: Ledger) -> None:
    ctx, other = await ledger.tenant(), await ledger.tenant()
    [spoilt], [task] = await ledger.add(ctx), await ledger.add(other)
    leases = {lease.task.id: lease for lease in await claim(ledger)}
    claims = Claims(ledger.worker_store, worker="test", lease_seconds=30, versions={"note": 1})
    nul = msgspec.structs.replace(SUCCESS, result={"text": "\x00"})
    refusal, _ = await asyncio.gather(
        claims.settle(Settlement(leases[spoilt.id], nul)),
        claims.settle(Settlement(leases[task.id], SUCCESS)),
        return_exceptions=True,
    )
    assert isinstance(refusal, AppError)
    assert (await ledger.get(ctx, spoilt.id)).status is TaskStatus.RUNNING
    assert (await ledger.get(other, task.id)).status is TaskStatus.SUCCEEDED


async def test_what_is_dispatched_is_locked_and_written_by_its_id(ledger: Ledger) -> None:
    """The planner takes the index of waiting tasks for empty; reading all of it for each task takes seconds."""
    await ledger.add(await ledger.tenant(), count=20)
    async with ledger.inspector.transaction():
        [function] = await ledger.inspector.fetch("select prosrc, proconfig from pg_proc where proname = 'dispatch_v2'")
        body = function["prosrc"]
        for name, value in (("p_queue", "'default'"), ("p_window", "9"), ("p_per_tenant", "9")):
            body = body.replace(name, value)
        for setting in function["proconfig"]:
            await ledger.inspector.execute(f"set local {setting}")
        plan = "\n".join(row[0] for row in await ledger.inspector.fetch(f"explain {body}"))
    used = re.findall(r"using (\w+) on tasks", plan[plan.index("CTE locked") :])
    assert used == ["tasks_by_id", "tasks_by_id"], plan


async def test_a_lost_task_keeps_its_place_before_all_that_came_later(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [lost] = await ledger.add(ctx)
    await claim(ledger)
    await ledger.add(ctx, count=3)
    await ledger.inspector.execute(
        "update tasks set lease_until = clock_timestamp() - interval '1 second' where status = 'running'"
    )
    async with ledger.relay_store.system("test") as tx:
        assert len(await tx.ledger.sweep(grace=0)) == 1
    async with ledger.relay_store.system("test") as tx:
        picked = await tx.ledger.dispatch(tuple(Queue), window=1, per_tenant=1)
    assert [wakeup.task_id for wakeup in picked[Queue.DEFAULT]] == [lost.id]


async def test_a_lease_in_use_isnt_swept_and_a_restarted_server_gives_time(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    await ledger.add(ctx)
    [lease] = await claim(ledger)
    await ledger.inspector.execute("update tasks set lease_until = clock_timestamp() - interval '1 second'")
    async with ledger.worker_store.tenant(ctx) as tx:
        await tx.tasks.fence(lease)
        async with ledger.relay_store.system("test") as other:
            assert await other.ledger.sweep(grace=0) == []
        await tx.tasks.heartbeat(lease, 30)
    await ledger.inspector.execute("update tasks set lease_until = clock_timestamp() - interval '1 second'")
    async with ledger.relay_store.system("test") as tx:
        assert await tx.ledger.sweep(grace=1e6) == []
        assert len(await tx.ledger.sweep(grace=0)) == 1


async def test_a_full_queue_refuses_new_work_but_not_removals(ledger: Ledger) -> None:
    ctx, other = await ledger.tenant(), await ledger.tenant()
    narrow = await open_store(ledger.database.app, tasks=TaskPolicy(queue_depth=3))
    try:
        new = NewTask(kind="note", version=1)
        async with narrow.tenant(ctx) as tx:
            await tx.tasks.add(new)
        # The cap is the tenant's: a user who sees none of these tasks meets it too.
        async with narrow.tenant(fellow(ctx)) as tx:
            await tx.tasks.add(new)
            await tx.tasks.add(new)
            with pytest.raises(AppError) as full:
                await tx.tasks.add(new)
            await tx.tasks.add(msgspec.structs.replace(new, bounded=False))
        assert (full.value.code, full.value.retry_after) == (Code.QUEUE_FULL, 30.0)
        async with narrow.tenant(other) as tx:
            await tx.tasks.add(new)
    finally:
        await narrow.close()


async def test_uploads_at_the_same_moment_dont_exceed_the_cap(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    narrow = await open_store(ledger.database.app, tasks=TaskPolicy(queue_depth=5))

    async def upload() -> bool:
        try:
            async with narrow.tenant(ctx) as tx:
                await tx.tasks.add(NewTask(kind="note", version=1))
                await asyncio.sleep(0.01)
        except AppError as error:
            return error.code is not Code.QUEUE_FULL
        return True

    try:
        assert sum(await asyncio.gather(*(upload() for _ in range(20)))) == 5
    finally:
        await narrow.close()
    assert await ledger.unfinished() == 5


async def test_a_full_queue_tells_when_there_is_room(ledger: Ledger) -> None:
    """Thirty tasks ended in the last minute: room for one in two seconds, and after two others in six."""
    ctx = await ledger.tenant()
    await ledger.add(ctx, count=6)
    await ledger.inspector.execute(
        "insert into outbox (tenant_id, id, kind, position, created_at)"
        " select $1, gen_random_uuid(), case n % 2 when 0 then 'task.finished' else 'document.ready' end, n,"
        " now() - interval '1 second' * (61 - n) from generate_series(1, 60) n",
        ctx.tenant_id,
    )
    for cap, low, high in ((6, 1.5, 5), (4, 5, 15)):
        narrow = await open_store(ledger.database.app, tasks=TaskPolicy(queue_depth=cap))
        try:
            async with narrow.tenant(ctx) as tx:
                with pytest.raises(AppError) as full:
                    await tx.tasks.add(NewTask(kind="note", version=1))
        finally:
            await narrow.close()
        assert full.value.retry_after is not None
        assert low <= full.value.retry_after <= high


async def test_work_for_newer_workers_rests_longer_each_time(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    [task] = await ledger.add(ctx, "from_the_future")
    for at_least in (4, 9, 19, 39, 58, 58):
        assert await claim(ledger) == []
        rests = await ledger.inspector.fetchval("select extract(epoch from due_at - clock_timestamp()) from tasks")
        assert at_least - 3 <= rests <= 60
        assert rests >= at_least / 2
        await ledger.inspector.execute("update tasks set due_at = now()")
    found = await ledger.get(ctx, task.id)
    assert (found.status, found.attempts, found.retry_count) == (TaskStatus.QUEUED, 0, 0)


async def test_deleting_a_document_cancels_what_is_still_to_be_done(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    found = await document(ledger, ctx, "tenant")
    async with ledger.app.tenant(ctx) as tx:
        running = await tx.tasks.add(NewTask(kind="note", version=1, document_id=found))
    [_lease] = await claim(ledger)
    async with ledger.app.tenant(ctx) as tx:
        queued = await tx.tasks.add(NewTask(kind="note", version=1, document_id=found))
        await tx.tasks.cancel_for_document(found)
        assert (await tx.tasks.get(queued.id)).status is TaskStatus.CANCELLED
        assert (await tx.tasks.get(running.id)).cancel_requested


async def test_depth_counts_over_all_tenants(ledger: Ledger) -> None:
    first, second = await ledger.tenant(), await ledger.tenant()
    await ledger.add(first, count=2)
    await claim(ledger)
    await ledger.add(second, count=3)
    async with ledger.app.system("test") as tx:
        [depth] = await tx.ledger.depth()
    assert (depth.queue, depth.waiting, depth.dispatched, depth.running) == (Queue.DEFAULT, 3, 0, 2)
    assert depth.oldest_seconds >= 0


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("app", "select * from dispatch_v2('default', 1, 1)"),
        ("app", "select * from claim_v2('{}', '{}', 'x', 1, '{}', '{}')"),
        ("app", "select * from publish_v1(1)"),
        ("worker", "select * from sweep_v2(3, 0)"),
        ("worker", "select * from dispatch_v2('default', 1, 1)"),
        ("relay", "select * from claim_v2('{}', '{}', 'x', 1, '{}', '{}')"),
        ("relay", END_NOTHING),
        ("app", END_NOTHING),
        ("relay", "select * from tasks"),
        ("relay", "select * from outbox"),
    ],
)
async def test_each_role_has_its_own_functions_only(ledger: Ledger, role: str, statement: str) -> None:
    conn = await asyncpg.connect(getattr(ledger.database, role))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute(statement)
    finally:
        await conn.close()
