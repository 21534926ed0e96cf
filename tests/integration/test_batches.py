"""Retry-all and delete-all in the background, what is told of batches, and what becomes of old ones."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from internal.entities.batches import ARCHIVES_KEPT, BATCHES_KEPT
from internal.entities.tasks import Lease, Queue
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from tests.archives import zipped
from tests.integration.api import add_member, sign_in
from tests.integration.batches import Stage, items_of, send_archive, staged
from tests.integration.following import following
from tests.ledger import eventually
from tests.servers import Database, Servers


@pytest.fixture
async def stage(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Stage]:
    async with staged(servers, database, tmp_path) as found:
        yield found


@pytest.fixture
async def tenant(stage: Stage) -> dict[str, Any]:
    return await stage.api.new_tenant("orders")


@pytest.fixture
async def client(stage: Stage, tenant: dict[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
    async with stage.api.client(tenant["api_key"]) as found:
        yield found


async def member_of(stage: Stage, tenant: dict[str, Any], name: str = "member") -> str:
    """Their access token."""
    await add_member(stage.api, tenant["api_key"], f"{name}@orders.example", "member")
    return (await sign_in(stage.api, f"{name}@orders.example")).json()["access_token"]


async def upload(client: httpx.AsyncClient, count: int, mark: str, **fields: str) -> list[dict[str, Any]]:
    files = [("file", (f"{mark} {number}.txt", f"{mark} number {number}".encode())) for number in range(count)]
    answer = await client.post("/api/v1/batches", files=files, data=fields)
    assert answer.status_code == 202, answer.text
    return answer.json()["items"]


async def order(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/batches", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def names(client: httpx.AsyncClient) -> set[str]:
    return {item["filename"] for item in (await client.get("/api/v1/documents?limit=200")).json()["items"]}


async def fails(ctx: Context, lease: Lease) -> dict[str, Any]:
    raise AppError(Code.FILE_NO_TEXT, "No text.")


async def test_retry_all_tries_each_task_once_more(stage: Stage, client: httpx.AsyncClient) -> None:
    """However soon it fails again: else a batch of tasks that fail at once would never end."""
    sent = await upload(client, 20, "retried")
    async with stage.worker(ingest=fails):

        async def failed() -> bool:
            found = (await client.get("/api/v1/tasks?status=failed&limit=200")).json()["items"]
            return len(found) == len(sent)

        await eventually(failed)
        batch = await order(client, action="retry", filter={"kind": "ingest_content"})
        assert (batch["kind"], batch["status"], batch["progress"]) == ("retry", "queued", 0.0)
        over = await stage.over(client, batch)
    assert (over["status"], over["total"], over["failed"]) == ("failed", 20, 20)
    for item in await items_of(client, batch):
        task = (await client.get(f"/api/v1/tasks/{item['task_id']}")).json()
        assert [attempt["outcome"] for attempt in task["attempts"]] == ["failed", "failed"]
    async with stage.worker():
        again = (await client.post(f"/api/v1/batches/{batch['id']}/retry")).json()
        assert again["finished_at"] is None
        over = await stage.over(client, batch)
    assert (over["status"], over["succeeded"], over["progress"]) == ("succeeded", 20, 1.0)


async def test_delete_all_deletes_what_one_may_delete(
    stage: Stage, tenant: dict[str, Any], client: httpx.AsyncClient
) -> None:
    await upload(client, 5, "owners")
    await upload(client, 1, "secret", visibility="private")
    token = await member_of(stage, tenant)
    async with stage.api.client(token) as member, stage.worker():
        await upload(member, 30, "members", tags="old")
        await upload(member, 2, "kept", tags="new")
        batch = await order(member, action="delete", filter={"tag": "old"})
        over = await stage.over(member, batch)
        assert (over["kind"], over["status"], over["total"], over["succeeded"]) == ("delete", "succeeded", 30, 30)
        assert {name.split()[0] for name in await names(member)} == {"owners", "kept"}
        assert {item["filename"] for item in await items_of(member, batch)} == {None}
        everything = await order(member, action="delete", filter={})
        assert (await stage.over(member, everything))["total"] == 2
        assert {name.split()[0] for name in await names(member)} == {"owners"}
        await upload(member, 2, "hidden", visibility="private")
        # An admin deletes all that they see, and nothing that they don't.
        over = await stage.over(client, await order(client, action="delete", filter={}))
        assert (over["status"], over["total"]) == ("succeeded", 6)
        assert await names(client) == set()
        assert {name.split()[0] for name in await names(member)} == {"hidden"}
    assert await stage.ledger.inspector.fetchval("select count(*) from contents") == 2


async def test_named_documents_are_answered_one_by_one(
    stage: Stage, tenant: dict[str, Any], client: httpx.AsyncClient
) -> None:
    own = (await upload(client, 2, "own"))[0]["document_id"]
    stranger = await stage.api.new_tenant("strangers")
    async with stage.api.client(stranger["api_key"]) as other:
        foreign = (await upload(other, 1, "foreign"))[0]["document_id"]
    token = await member_of(stage, tenant)
    unknown = own[:-6] + "000000"
    async with stage.api.client(token) as member, stage.worker():
        mine = (await upload(member, 1, "mine"))[0]["document_id"]
        batch = await order(member, action="delete", document_ids=[mine, own, foreign, unknown, mine])
        over = await stage.over(member, batch)
        assert (over["status"], over["total"], over["succeeded"], over["refused"]) == ("failed", 4, 1, 3)
        items = await items_of(member, batch)
        assert [item["error"] and item["error"]["code"] for item in items] == [
            None,
            "auth.forbidden",
            "document.not_found",
            "document.not_found",
        ]
        assert items[2]["error"] == items[3]["error"]
    async with stage.api.client(stranger["api_key"]) as other:
        assert await names(other) == {"foreign 0.txt"}


async def test_a_deletion_goes_on_where_its_worker_died(stage: Stage, client: httpx.AsyncClient) -> None:
    await upload(client, 60, "gone")
    batch = await order(client, action="delete", filter={"name": "gone"})
    with stage.process(Queue.BATCH, failpoints="bulk.after_item=crash@20") as doomed:
        assert await asyncio.to_thread(doomed.wait, 60) == -signal.SIGKILL
    # What comes later isn't meant.
    await upload(client, 1, "gone later")
    async with stage.worker(Queue.BATCH):
        over = await stage.over(client, batch)
    assert (over["status"], over["total"], over["succeeded"]) == ("succeeded", 60, 60)
    assert await names(client) == {"gone later 0.txt"}
    purges = "select count(*) from tasks where kind = 'purge_content'"
    assert await stage.ledger.inspector.fetchval(purges) == 60


async def test_a_cancelled_deletion_deletes_nothing_more(stage: Stage, client: httpx.AsyncClient) -> None:
    await upload(client, 60, "spared")
    batch = await order(client, action="delete", filter={})
    with stage.process(Queue.BATCH, failpoints="bulk.after_item=delay:0.2"):
        await stage.until(client, batch, lambda found: found["total"] > found["waiting"])
        # On an overloaded machine a deletion may hold the batch for longer than a request waits.
        while (answer := await client.post(f"/api/v1/batches/{batch['id']}/cancel")).status_code == 503:
            await asyncio.sleep(float(answer.headers["retry-after"]))
        assert answer.status_code == 202, answer.text
        left = await names(client)
        over = await stage.over(client, batch)
    assert over["status"] == "cancelled"
    assert await names(client) == left
    assert 0 < len(left) < 60


async def test_who_began_a_batch_is_told_and_nobody_else(
    stage: Stage, tenant: dict[str, Any], client: httpx.AsyncClient
) -> None:
    token = await member_of(stage, tenant)
    gate = asyncio.Event()

    async def waits(ctx: Context, lease: Lease) -> dict[str, Any]:
        if len(stage.read) >= 5:
            await gate.wait()
        return await stage.note(ctx, lease)

    async with (
        following(stage.api.url, tenant["api_key"]) as own,
        following(stage.api.url, token) as other,
        stage.worker(ingest=waits),
    ):
        data = zipped({f"{number}.txt": f"told {number}".encode() for number in range(10)})
        batch = await send_archive(client, data)
        begun = (await own.until("batch.progress"))[-1]
        assert begun["data"]["batch_id"] == batch["id"]
        assert 0 < begun["data"]["progress"] < 1
        assert "id" not in begun
        gate.set()
        end = (await own.until("batch.finished"))[-1]
        assert end["data"] == {
            "batch_id": batch["id"],
            "kind": "archive",
            "status": "succeeded",
            "progress": 1.0,
            "total": 10,
            "succeeded": 10,
            "failed": 0,
            "dead": 0,
            "cancelled": 0,
            "refused": 0,
        }
        assert isinstance(end["id"], int)
        marker = await upload(client, 1, "marker")
        heard: list[dict[str, Any]] = []
        while marker[0]["document_id"] not in str(heard[-1:]):
            heard.append(await other.next(progress=True))
        assert batch["id"] not in str(heard)
        assert any(item["type"] == "task.succeeded" for item in heard)  # the documents are everyone's
    async with following(stage.api.url, tenant["api_key"], last_event_id=0) as late:
        assert (await late.until("batch.finished"))[-1] == end


async def test_old_batches_go_and_archives_before_them(stage: Stage, client: httpx.AsyncClient) -> None:
    kept = await send_archive(client, zipped({"kept.txt": b"kept"}))
    stopped = await send_archive(client, zipped({"stopped.txt": b"stopped"}))
    old = await send_archive(client, zipped({"old.txt": b"old"}))
    for batch in (stopped, old):
        assert (await client.post(f"/api/v1/batches/{batch['id']}/cancel")).status_code == 202
        await stage.over(client, batch)

    async def settled() -> bool:
        return await stage.ledger.inspector.fetchval("select count(*) from batches where settled_at is not null") == 2

    await eventually(settled)
    assert len(stage.archives()) == 3
    for batch, days in ((stopped, 2), (old, 31)):
        await stage.ledger.inspector.execute(
            "update batches set settled_at = now() - make_interval(days => $2) where id = $1", UUID(batch["id"]), days
        )
    async with stage.ledger.relay_store.system("test") as tx:
        assert await tx.ledger.expire_batches(batches=BATCHES_KEPT, archives=ARCHIVES_KEPT, max_retries=2) == 1
        assert await tx.ledger.expire_batches(batches=BATCHES_KEPT, archives=ARCHIVES_KEPT, max_retries=2) == 0
    async with stage.worker(Queue.DEFAULT):
        await eventually(lambda: gone(client, old["id"]))
    assert [path.name for path in stage.archives()] == [kept["id"]]
    assert (await client.get(f"/api/v1/batches/{stopped['id']}")).status_code == 200
    assert await stage.ledger.inspector.fetchval("select count(*) from batches") == 2


async def gone(client: httpx.AsyncClient, batch: str) -> bool:
    return (await client.get(f"/api/v1/batches/{batch}")).status_code == 404
