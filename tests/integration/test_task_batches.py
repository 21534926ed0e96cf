"""Many tasks at once, dead letters, and what may follow what, whoever asks for it."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest

from internal.entities.tasks import TRANSITIONS, Acted, Outcome, Queue, TaskFilter, TaskPolicy, TaskStatus
from internal.repositories import room
from internal.repositories.store import open_store
from internal.services import tasks as service_of_tasks
from internal.services.tasks import TaskService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role
from tests.integration.test_tasks import ALL, claim, document, end, fellow, refused, those
from tests.ledger import Ledger, eventually, open_ledger
from tests.servers import Database


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url) as found:
        yield found


@pytest.fixture
def service(ledger: Ledger) -> TaskService:
    return TaskService(ledger.app)


async def bury(ledger: Ledger) -> None:
    """All that is due becomes a dead letter."""
    for lease in await claim(ledger):
        await end(ledger, lease, TaskStatus.DEAD)


async def statuses(ledger: Ledger, ctx: Context) -> list[str]:
    rows = await ledger.inspector.fetch("select status from tasks where tenant_id = $1 order by id", ctx.tenant_id)
    return [row["status"] for row in rows]


async def finished_events(ledger: Ledger, ctx: Context) -> list[str]:
    rows = await ledger.inspector.fetch(
        "select payload->>'status' as status from outbox where tenant_id = $1 and kind = 'task.finished' order by 1",
        ctx.tenant_id,
    )
    return [row["status"] for row in rows]


async def test_many_are_cancelled_and_tried_again_by_a_filter(
    ledger: Ledger, service: TaskService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_of_tasks, "CHUNK", 3)
    ctx, other = await ledger.tenant(), await ledger.tenant()
    await ledger.add(ctx, count=8)
    [batch] = await ledger.add(ctx, queue=Queue.BATCH)
    await ledger.add(other, count=2)
    assert await service.cancel_all(ctx, TaskFilter(queue=Queue.DEFAULT)) == Acted(8, more=False)
    assert await statuses(ledger, ctx) == ["cancelled"] * 8 + ["queued"]
    assert await finished_events(ledger, ctx) == ["cancelled"] * 8
    assert await service.retry_all(ctx, ALL) == Acted(0, more=False), "what was cancelled isn't tried again unasked"
    assert await service.retry_all(ctx, those(TaskStatus.CANCELLED)) == Acted(8, more=False)
    assert await service.retry_all(ctx, those(TaskStatus.QUEUED, TaskStatus.SUCCEEDED)) == Acted(0, more=False)
    assert await service.cancel_all(ctx, TaskFilter(ids=[batch.id])) == Acted(1, more=False)
    assert await statuses(ledger, other) == ["queued"] * 2


async def test_a_request_acts_on_a_bounded_number(
    ledger: Ledger, service: TaskService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_of_tasks, "CHUNK", 2)
    monkeypatch.setattr(service_of_tasks, "MOST", 4)
    ctx = await ledger.tenant()
    await ledger.add(ctx, count=5)
    assert await service.cancel_all(ctx, ALL) == Acted(4, more=True)
    assert await service.cancel_all(ctx, ALL) == Acted(1, more=False)


@pytest.mark.parametrize("close", [100, 2])
async def test_what_is_tried_again_fits_into_the_queue(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, close: int
) -> None:
    monkeypatch.setattr(room, "CLOSE", close)
    ctx = await ledger.tenant()
    cancelled = await ledger.add(ctx, count=6)
    store = await open_store(ledger.database.app, tasks=TaskPolicy(queue_depth=5))
    try:
        service = TaskService(store)
        await service.cancel_all(ctx, ALL)
        await ledger.add(ctx, count=3)
        asked = await asyncio.gather(*(service.retry_all(ctx, those(TaskStatus.CANCELLED)) for _ in range(3)),
                                     return_exceptions=True)  # fmt: skip
        assert [acted for acted in asked if isinstance(acted, Acted)] == [Acted(2, more=True)]
        assert {error.code for error in asked if isinstance(error, AppError)} == {Code.QUEUE_FULL}
        assert await ledger.unfinished() == 5
        assert await refused(service.retry_all(ctx, those(TaskStatus.CANCELLED))) is Code.QUEUE_FULL
        assert await refused(service.redrive_all(ctx, ALL)) is Code.QUEUE_FULL
        left = [task.id for task in cancelled if (await service.get(ctx, task.id)).status is TaskStatus.CANCELLED]
        assert await refused(service.retry(ctx, left[0])) is Code.QUEUE_FULL
        await ledger.inspector.execute("update tasks set kind = 'purge_content' where id = $1", left[0])
        assert (await service.retry(ctx, left[0])).status is TaskStatus.QUEUED, "what removes is never refused"
    finally:
        await store.close()


async def test_nobody_cancels_what_a_colleague_began(ledger: Ledger, service: TaskService) -> None:
    ctx = await ledger.tenant()
    member = msgspec.structs.replace(fellow(ctx), role=Role.MEMBER)
    admin = msgspec.structs.replace(fellow(ctx), role=Role.ADMIN)
    found = await document(ledger, ctx, "tenant")
    first, second, third = await ledger.add(ctx, count=3)
    await ledger.inspector.execute("update tasks set document_id = $1", found)
    [own] = await ledger.add(member)
    assert await refused(service.cancel(member, first.id)) is Code.AUTH_FORBIDDEN
    assert await service.cancel_all(member, ALL) == Acted(1, more=False)
    assert (await service.get(member, own.id)).status is TaskStatus.CANCELLED
    assert (await service.cancel(admin, first.id)).status is TaskStatus.CANCELLED
    assert (await service.cancel(msgspec.structs.replace(ctx, role=Role.MEMBER), second.id)).status.finished
    assert await service.cancel_all(admin, TaskFilter(ids=[third.id])) == Acted(1, more=False)


async def test_running_tasks_are_asked_once_and_removals_go_on(ledger: Ledger, service: TaskService) -> None:
    ctx = await ledger.tenant()
    [running] = await ledger.add(ctx)
    [lease] = await claim(ledger)
    [removal] = await ledger.add(ctx, "purge_content")
    assert await service.cancel_all(ctx, ALL) == Acted(1, more=False)
    assert await service.cancel_all(ctx, ALL) == Acted(0, more=False)
    assert await refused(service.cancel(ctx, removal.id)) is Code.TASK_NOT_CANCELLABLE
    assert (await service.get(ctx, running.id)).cancel_requested
    assert (await service.get(ctx, removal.id)).status is TaskStatus.QUEUED
    # The worker ends its attempt before it has heard: the task isn't put back into the queue.
    await end(ledger, lease, TaskStatus.QUEUED)
    assert (await service.get(ctx, running.id)).status is TaskStatus.CANCELLED
    assert await finished_events(ledger, ctx) == ["cancelled"]


async def test_nobody_acts_on_what_they_may_not_see(ledger: Ledger, service: TaskService) -> None:
    ctx, stranger = await ledger.tenant(), await ledger.tenant()
    found = await document(ledger, ctx, "private")
    [task] = await ledger.add(ctx)
    await ledger.inspector.execute("update tasks set document_id = $1", found)
    for other in (fellow(ctx), stranger):
        for narrow in (ALL, TaskFilter(ids=[task.id]), TaskFilter(document_ids=[found])):
            assert await service.cancel_all(other, narrow) == Acted(0, more=False)
    await bury(ledger)
    for other in (fellow(ctx), stranger):
        for act in (service.retry_all, service.redrive_all, service.discard_all):
            assert await act(other, TaskFilter(ids=[task.id])) == Acted(0, more=False)
        assert await refused(service.dead_letter(other, task.id)) is Code.TASK_NOT_FOUND
        assert await refused(service.discard(other, task.id)) is Code.TASK_NOT_FOUND
    assert await statuses(ledger, ctx) == ["dead"]


async def test_dead_letters_are_listed_and_driven_again(ledger: Ledger, service: TaskService) -> None:
    ctx, other = await ledger.tenant(), await ledger.tenant()
    await ledger.add(ctx, count=3)
    await ledger.add(other)
    await bury(ledger)
    letters, _ = await service.list(ctx, those(TaskStatus.DEAD), limit=10)
    assert [(task.error_code, task.retry_count) for task in letters] == [("x.y", 1)] * 3
    again = await service.redrive(ctx, letters[0].id)
    assert (again.status, again.retry_count, again.error_code) == (TaskStatus.QUEUED, 0, None)
    assert await refused(service.redrive(ctx, letters[0].id)) is Code.TASK_NOT_FOUND
    assert await service.redrive_all(ctx, TaskFilter(error_code="other")) == Acted(0, more=False)
    assert await service.redrive_all(ctx, TaskFilter(error_code="x.y")) == Acted(2, more=False)
    assert await service.list(ctx, those(TaskStatus.DEAD), limit=10) == ([], None)
    assert len((await service.list(other, those(TaskStatus.DEAD), limit=10))[0]) == 1
    attempts = await service.attempts(ctx, letters[0].id)
    assert [(attempt.number, attempt.outcome, attempt.error_code) for attempt in attempts] == [
        (1, Outcome.FAILED, "x.y")
    ]


async def test_dead_letters_are_narrowed(ledger: Ledger, service: TaskService) -> None:
    ctx = await ledger.tenant()
    found = await document(ledger, ctx, "tenant")
    [plain] = await ledger.add(ctx)
    [about] = await ledger.add(ctx, queue=Queue.BATCH)
    await ledger.inspector.execute("update tasks set document_id = $2 where id = $1", about.id, found)
    await bury(ledger)
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    dead = frozenset({TaskStatus.DEAD})
    for narrow, expected in (
        (TaskFilter(statuses=dead), [about.id, plain.id]),
        (TaskFilter(statuses=dead, queue=Queue.BATCH), [about.id]),
        (TaskFilter(statuses=dead, document_ids=[found]), [about.id]),
        (TaskFilter(statuses=dead, kind="other"), []),
        (TaskFilter(statuses=dead, ended_after=now - hour, ended_before=now + hour), [about.id, plain.id]),
        (TaskFilter(statuses=dead, ended_after=now + hour), []),
        (TaskFilter(statuses=dead, ended_before=now - hour), []),
    ):
        assert [task.id for task in (await service.list(ctx, narrow, limit=10))[0]] == expected


async def test_a_dead_letter_tells_its_history_and_what_it_is_about(ledger: Ledger, service: TaskService) -> None:
    ctx = await ledger.tenant()
    found = await document(ledger, ctx, "tenant")
    [task] = await ledger.add(ctx)
    assert await refused(service.dead_letter(ctx, task.id)) is Code.TASK_NOT_FOUND
    await ledger.inspector.execute("update tasks set document_id = $1", found)
    await bury(ledger)
    letter, attempts, matter = await service.dead_letter(ctx, task.id)
    assert (letter.id, letter.error_code, [attempt.worker for attempt in attempts]) == (task.id, "x.y", ["test"])
    assert (matter.filename, matter.media_type, matter.size) == ("a.txt", "text/plain", 1)
    await ledger.inspector.execute("delete from documents")
    assert (await service.dead_letter(ctx, task.id))[2].filename is None


async def test_discarded_letters_have_failed(ledger: Ledger, service: TaskService) -> None:
    ctx = await ledger.tenant()
    first, *_ = await ledger.add(ctx, count=3)
    await bury(ledger)
    await service.discard(ctx, first.id)
    assert await refused(service.discard(ctx, first.id)) is Code.TASK_NOT_FOUND
    assert (await service.get(ctx, first.id)).error_code == "x.y"
    assert await service.discard_all(ctx, ALL) == Acted(2, more=False)
    assert await statuses(ledger, ctx) == ["failed"] * 3
    assert await finished_events(ledger, ctx) == ["dead"] * 3 + ["failed"] * 3
    assert (await service.retry(ctx, first.id)).status is TaskStatus.QUEUED


async def test_old_dead_letters_are_given_up(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    old, _fresh = await ledger.add(ctx, count=2)
    await bury(ledger)
    await ledger.inspector.execute("update tasks set finished_at = now() - interval '91 days' where id = $1", old.id)
    async with ledger.relay():

        async def given_up() -> bool:
            return await statuses(ledger, ctx) == ["failed", "dead"]

        await eventually(given_up)
    assert await finished_events(ledger, ctx) == ["dead", "dead", "failed"], "followers are told"


async def test_the_database_allows_the_same_transitions(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    for before, after in itertools.permutations(TaskStatus, 2):
        transaction = ledger.inspector.transaction()
        await transaction.start()
        try:
            await ledger.inspector.execute("alter table tasks disable trigger tasks_transition")
            [task] = await ledger.inspector.fetch(
                "insert into tasks (tenant_id, id, kind, version, queue, status, user_id, role, request_id, trace_id,"
                " max_retries, lease_until) values ($1, gen_random_uuid(), 'note', 1, 'default', $2, $3, 'owner', '',"
                " '', 1, case $2 when 'running' then now() end) returning id",
                ctx.tenant_id,
                before.value,
                ctx.user_id,
            )
            await ledger.inspector.execute("alter table tasks enable trigger tasks_transition")
            change = ledger.inspector.execute(
                "update tasks set status = $2, lease_until = case $2 when 'running' then now() end where id = $1",
                task["id"],
                after.value,
            )
            if after in TRANSITIONS[before]:
                assert await change == "UPDATE 1"
            else:
                with pytest.raises(asyncpg.CheckViolationError, match=f"{before} can not become {after}"):
                    await change
        finally:
            await transaction.rollback()
