"""Orders about versions of the processing that meet uploads, readings, removals and each other."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import UUID

import pytest

from internal.entities.tasks import Queue, TaskKind
from internal.services.processing import in_nobodys_name
from pkg.apperr import AppError
from tests.integration.processings import Shop, long_text, open_shop
from tests.ledger import eventually
from tests.servers import Database, Servers

SOON = 20
HARBOURS = long_text("harbours")


@pytest.fixture
async def shop(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Shop]:
    async with open_shop(servers, database, tmp_path) as found:
        yield found


async def tried(shop: Shop, *texts: str) -> list[str]:
    """Documents that both versions have read."""
    await shop.trials.start("2", 1.0)
    async with shop.at_work():
        documents = [await shop.upload(text) for text in texts]
        await shop.done()
    return documents


async def test_a_second_document_is_shown_by_the_version_that_came_meanwhile(shop: Shop) -> None:
    """Its reading is of no use any more, but its document waits."""
    await shop.trials.start("2", 1.0)
    second = await shop.upload(HARBOURS, shop.colleague)
    shop.ingest.hold(lambda lease: str(lease.task.document_id) == second)
    async with shop.at_work():
        await asyncio.wait_for(shop.ingest.reached.wait(), SOON)
        await shop.upload(HARBOURS)

        async def both() -> bool:
            return await shop.readings() == [("1", "published"), ("2", "ready")]

        await eventually(both)
        await shop.promote()
        assert await shop.readings() == [("1", "kept"), ("2", "published")]
        shop.ingest.let_go.set()
        await shop.done()
        assert (await shop.colleague.get(f"/api/v1/documents/{second}")).json()["status"] == "ready"
        assert await shop.readings() == [("1", "kept"), ("2", "published")]
        await shop.whole()


async def test_a_way_back_that_is_ordered_in_the_middle_of_a_switch_finds_what_was_kept(shop: Shop) -> None:
    await tried(shop, HARBOURS)
    order = shop.trials.promote()
    await anext(order)
    reader = shop.ledger.inspector.transaction()
    await reader.start()
    await shop.ledger.inspector.execute("select 1 from contents for no key update")
    async with shop.at_work(Queue.HIGH_PRIORITY):
        await eventually(shop.waits_for_a_lock)
        await anext(shop.trials.roll_back())
        await reader.rollback()
        await eventually(lambda: shop.ended(TaskKind.SWITCH_PROCESSING))
        # Nobody reads anything again: `learning` isn't worked on.
        assert await shop.readings() == [("1", "published"), ("2", "retired")]
        await shop.whole()


async def test_a_search_in_the_middle_of_which_a_switch_ends_finds_one_reading(shop: Shop) -> None:
    await tried(shop, HARBOURS)
    order = shop.trials.promote()
    await anext(order)
    found = len(await shop.found("harbours"))
    reader = shop.ledger.inspector.transaction()
    await reader.start()
    await shop.ledger.inspector.execute("lock table chunks in access exclusive mode")  # the last that a search reads
    searching = asyncio.create_task(shop.found("harbours and ships"))
    await eventually(shop.waits_for_a_lock)
    async with shop.at_work(Queue.HIGH_PRIORITY):
        await eventually(lambda: shop.published("2"))
    await reader.rollback()
    assert len(await searching) == found


async def test_uploads_of_known_bytes_go_on_while_a_switch_runs(shop: Shop) -> None:
    first, _second = await tried(shop, HARBOURS, long_text("wharves"))
    order = shop.trials.promote()
    await anext(order)
    async with shop.ledger.app.tenant(await shop.context()) as tx:
        document = await tx.documents.get(UUID(first))
        [other] = await shop.ledger.inspector.fetch("select sha256 from contents where id <> $1", document.content_id)
        assert await tx.contents.find_by_digest(other["sha256"])
        async with shop.at_work(Queue.HIGH_PRIORITY):
            await eventually(lambda: shop.published("2"))
        await tx.versions.begin(document)


async def test_what_one_goes_back_to_is_not_removed_when_the_day_ends_on_the_way(shop: Shop) -> None:
    await tried(shop, HARBOURS)
    async with shop.at_work():
        await shop.promote()
        await shop.done()
    await anext(shop.trials.roll_back())
    await shop.ledger.inspector.execute(
        "update generations set kept_until = now() - interval '1 second' where status = 'kept'"
    )
    await shop.hidden(TaskKind.PURGE_GENERATIONS)
    async with shop.at_work(Queue.LEARNING):
        await eventually(lambda: shop.ended(TaskKind.PURGE_GENERATIONS))
    async with shop.at_work(Queue.HIGH_PRIORITY):
        await eventually(lambda: shop.published("1"))


async def test_a_reading_whose_trial_ended_meanwhile_is_not_compared(shop: Shop) -> None:
    await shop.trials.start("2", 1.0)
    shop.ingest.hold(lambda lease: lease.task.kind == TaskKind.SHADOW_CONTENT)
    await shop.upload(HARBOURS)
    async with shop.at_work():
        await asyncio.wait_for(shop.ingest.reached.wait(), SOON)
        await shop.trials.stop()
        await eventually(lambda: shop.ended(TaskKind.PURGE_GENERATIONS))
        await shop.trials.start("2", 1.0)
        shop.ingest.let_go.set()
        await shop.done()
    assert (await shop.trials.report()).by_media_type == {}
    assert await shop.readings() == [("1", "published")]


async def test_a_document_that_was_deleted_while_its_trial_ran_is_not_compared(shop: Shop) -> None:
    await shop.trials.start("2", 1.0)
    shop.ingest.hold(lambda lease: lease.task.kind == TaskKind.SHADOW_CONTENT)
    document = await shop.upload(HARBOURS)
    async with shop.at_work():
        await asyncio.wait_for(shop.ingest.reached.wait(), SOON)
        await shop.client.delete(f"/api/v1/documents/{document}")
        await eventually(lambda: shop.ended(TaskKind.PURGE_CONTENT))
        shop.ingest.let_go.set()
        await shop.done()
    assert (await shop.trials.report()).by_media_type == {}
    assert await shop.readings() == []


async def test_a_sweep_finds_what_a_trial_and_a_switch_left_behind(shop: Shop) -> None:
    """A worker was late, or a task is among the dead letters: no order will come that mends it."""
    await tried(shop, HARBOURS)
    await shop.ledger.inspector.execute("update processing set candidate = null, share = 0")
    await shop.hidden(TaskKind.SWEEP_OBJECTS)
    async with shop.at_work():
        await shop.done()
    assert await shop.readings() == [("1", "published")]
    await tried(shop, long_text("wharves"))
    await shop.ledger.inspector.execute(
        "update processing set current = '2', previous = '1', promoted_at = now(), candidate = null, share = 0"
    )
    await shop.hidden(TaskKind.SWEEP_OBJECTS)
    async with shop.at_work():
        await shop.done()
    assert ("2", "published") in await shop.readings()
    await shop.whole()


async def test_an_order_tells_of_tenants_that_can_not_follow(shop: Shop) -> None:
    await tried(shop, HARBOURS)

    async def fail(*_: object) -> dict[str, object]:
        raise RuntimeError("for the test")

    shop.handlers[TaskKind.SWITCH_PROCESSING] = fail
    async with shop.at_work():
        with pytest.raises(AppError, match="1 of 1 tenants"):
            await shop.promote()


async def test_a_tenant_that_rests_is_not_waited_for(shop: Shop) -> None:
    await tried(shop, HARBOURS)
    await shop.ledger.inspector.execute("update tenants set status = 'suspended'")
    async with shop.at_work():
        await asyncio.wait_for(shop.promote(), SOON)
        await shop.ledger.inspector.execute("update tenants set status = 'active'")
        await shop.done()
    assert await shop.readings() == [("1", "kept"), ("2", "published")]


async def test_reading_again_is_not_told_as_if_the_document_were_new(shop: Shop) -> None:
    await tried(shop, HARBOURS)
    await shop.ledger.inspector.execute("update generations set status = 'retired' where status = 'ready'")
    async with shop.at_work():
        await shop.promote()
        await shop.done()
    assert await shop.readings() == [("1", "kept"), ("2", "published")]
    assert await shop.ledger.inspector.fetchval("select count(*) from outbox where kind = 'document.ready'") == 1


async def test_the_operators_work_takes_nobody_s_room(shop: Shop) -> None:
    """Neither does it count to the tenant's cap, nor is the tenant alarmed of it."""
    await tried(shop, HARBOURS)
    for _ in range(3):
        await shop.hidden(TaskKind.REREAD_CONTENTS)
    ctx = await shop.context()
    async with shop.ledger.app.tenant(ctx) as tx:
        assert await tx.room.unfinished() == 0
    async with shop.ledger.relay_store.system("look at the test's tenant") as tx:
        assert await tx.watch.pressed(unfinished=1, dead=1, seconds=60) == []
    await shop.ledger.inspector.execute(
        "insert into tasks (tenant_id, id, kind, version, queue, status, user_id, role, request_id, trace_id,"
        " max_retries, finished_at) select tenant_id, gen_random_uuid(), 'reread_contents', 1, 'learning', 'dead',"
        " tenant_id, 'member', '', '', 5, now() from memberships where role = 'owner'"
    )
    async with shop.ledger.relay_store.system("look at the test's tenant") as tx:
        assert await tx.watch.pressed(unfinished=1, dead=1, seconds=60) == []
    assert not in_nobodys_name(ctx)


async def test_a_report_is_of_one_pair_of_versions(shop: Shop) -> None:
    await tried(shop, HARBOURS)
    await shop.ledger.inspector.execute("update shadow_comparisons set against = '0'")
    assert (await shop.trials.report()).by_media_type == {}
