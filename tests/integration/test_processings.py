"""A version of the processing beside another one: tried, taken over, taken back; searches answer all the while."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from pkg.apperr import AppError
from tests.integration.processings import Shop, long_text, open_shop
from tests.servers import Database, Servers

DAY = "interval '25 hours'"


@pytest.fixture
async def shop(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Shop]:
    async with open_shop(servers, database, tmp_path) as found:
        yield found


async def test_a_trial_is_found_by_nobody_and_reported(shop: Shop) -> None:
    await shop.trials.start("2", 1.0)
    async with shop.at_work():
        document = await shop.upload(long_text("harbours"))
        await shop.done()
    assert await shop.readings() == [("1", "published"), ("2", "ready")]
    await shop.whole()
    items = (await shop.client.get(f"/api/v1/documents/{document}/chunks?limit=100")).json()["items"]
    assert {item["chunk_id"] for item in await shop.found("harbours")} <= {item["id"] for item in items}
    report = await shop.trials.report()
    figures = report.by_media_type["text/plain"]
    assert (figures.contents, figures.errors, figures.text_kept) == (1, {}, 1.0)
    assert figures.chunks is not None and figures.chunks > 1.5
    assert figures.vectors_mean is not None
    tasks = (await shop.client.get("/api/v1/tasks")).json()["items"]
    assert [item["kind"] for item in tasks] == ["ingest_content"]
    usage = (await shop.client.get("/api/v1/usage?group_by=purpose")).json()["items"]
    assert {item["key"] for item in usage} == {"embedding", "reprocessing"}
    # A reading of a trial that was given up is not compared in the next one.
    await shop.ledger.inspector.execute("delete from shadow_comparisons")
    await shop.ledger.inspector.execute("update generations set status = 'retired' where status = 'ready'")
    await shop.ledger.inspector.execute(
        "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, content_id,"
        " max_retries, payload) select tenant_id, gen_random_uuid(), kind, version, queue, user_id, role, '', '',"
        " content_id, 5, payload from tasks where kind = 'shadow_content'"
    )
    async with shop.at_work():
        await shop.done()
        assert (await shop.trials.report()).by_media_type == {}
        await shop.trials.stop()
        await shop.done()
    assert await shop.readings() == [("1", "published")]


async def test_a_version_is_taken_over_and_given_up_while_searches_answer(shop: Shop) -> None:
    await shop.trials.start("2", 1.0)
    looks, wrong = 0, list[Any]()
    stopped = asyncio.Event()

    async def look() -> None:
        nonlocal looks
        conn = await asyncpg.connect(shop.ledger.database.superuser)
        while not stopped.is_set():
            items = await shop.found("harbours")
            versions = await conn.fetch(
                "select distinct g.content_id, g.version from chunks c join generations g on g.id = c.generation_id"
                " where c.id = any($1)",
                [UUID(item["chunk_id"]) for item in items],
            )
            contents = [row["content_id"] for row in versions]
            if len(set(contents)) != len(contents) or len(contents) != 3:
                wrong.append(versions)
            looks += 1
        await conn.close()

    async with shop.at_work():
        for number in range(2):
            await shop.upload(long_text(f"harbours, {number}"))
        await shop.done()
        await shop.trials.stop()
        await shop.trials.start("2", 0.0000001)
        await shop.upload(long_text("harbours, unseen by the trial"))
        await shop.done()
        looking = asyncio.create_task(look())
        await shop.promote()
        await shop.done()
        assert await shop.readings() == [("1", "kept"), ("2", "published")] * 3
        await shop.whole()
        fresh = await shop.upload(long_text("wharves, read after it"))
        await shop.done()
        await shop.roll_back()
        await shop.done()
        stopped.set()
        await looking
    assert (await shop.readings()) == [("1", "published")] * 4
    await shop.whole()
    assert (await shop.client.get(f"/api/v1/documents/{fresh}")).json()["status"] == "ready"
    assert (looks > 0, wrong) == (True, [])


async def test_what_is_kept_goes_after_a_day_and_with_its_document(shop: Shop) -> None:
    await shop.trials.start("2", 1.0)
    async with shop.at_work():
        document = await shop.upload(long_text("harbours"))
        await shop.upload(long_text("wharves"))
        await shop.done()
        await shop.promote()
        await shop.done()
        await shop.client.delete(f"/api/v1/documents/{document}")
        await shop.done()
    assert await shop.readings() == [("1", "kept"), ("2", "published")]
    await shop.ledger.inspector.execute(f"update processing set promoted_at = promoted_at - {DAY}")
    await shop.ledger.inspector.execute(f"update generations set kept_until = kept_until - {DAY}")
    with pytest.raises(AppError, match="was kept until"):
        await shop.roll_back()
    await shop.trials.start("1", 0.5)
    async with shop.at_work():
        await shop.trials.stop()
        await shop.done()
    assert await shop.readings() == [("2", "published")]
    await shop.whole()


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (lambda trials: trials.start("99", 0.05), "no version 99"),
        (lambda trials: trials.start("1", 0.05), "the current one"),
        (lambda trials: trials.start("2", 0.0), "above 0"),
        (lambda trials: trials.stop(), "No version is being tried"),
        (lambda trials: trials.report(), "No version is being tried"),
        (lambda trials: anext(trials.promote()), "No version is being tried"),
        (lambda trials: anext(trials.roll_back()), "nothing to go back to"),
    ],
)
async def test_orders_that_make_no_sense_are_refused(shop: Shop, order: Any, reason: str) -> None:
    with pytest.raises(AppError, match=reason):
        await order(shop.trials)
