"""The sweeper of objects: what no row holds goes, what a row has lost is told and comes back; no more is touched."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from internal.entities.ids import new_id
from internal.entities.tasks import Lease, NewTask, TaskStatus
from internal.parsers.sandbox import Sandbox
from internal.providers.blobs import BlobStore, open_blobs
from internal.providers.embeddings import LocalEmbeddings
from internal.providers.ocr import LocalOcr
from internal.repositories.broadcasts import Megaphone
from internal.services.embedder import Embedder
from internal.services.ingest import IngestService
from internal.services.sweep import SweepService
from internal.worker.jobs import Jobs
from internal.worker.relay import SWEEP_OBJECTS
from pkg import config
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from tests.integration.api import Running, add_member, is_problem, served_on, sign_in
from tests.ledger import Ledger, eventually, open_ledger
from tests.servers import SPACE, Database, Servers


class Place:
    """The objects of one installation in a folder, and who sweeps them."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.folder = folder / "blobs"
        self.blobs = open_blobs(config.Blobs(url=self.folder.as_uri()))
        self.service = SweepService(ledger.worker_store, self.blobs, orphan_hours=24)

    async def put(self, key: str, *, hours: float = 0) -> str:
        """An object of a certain age."""
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bytes")
        then = time.time() - hours * 3600
        os.utime(path, (then, then))
        return key

    async def content(self, ctx: Context, *, hours: float = 48, purged: bool = False) -> tuple[UUID, str]:
        """A row with its object."""
        number = new_id()
        key = BlobStore.key(ctx.tenant_id, number)
        await self.ledger.inspector.execute(
            "insert into contents (tenant_id, id, sha256, size, media_type, source_type, blob_key, purged_at)"
            " values ($1, $2, $3, 5, 'text/plain', 'document', $4, case when $5 then now() end)",
            ctx.tenant_id,
            number,
            os.urandom(32),
            key,
            purged,
        )
        return number, await self.put(key, hours=hours)

    async def document(self, ctx: Context, content: UUID, visibility: str = "tenant") -> UUID:
        number = new_id()
        await self.ledger.inspector.execute(
            "insert into documents (tenant_id, id, content_id, owner_id, filename, visibility, source_type)"
            " values ($1, $2, $3, $4, 'secret name.txt', $5, 'document')",
            ctx.tenant_id,
            number,
            content,
            ctx.user_id,
            visibility,
        )
        return number

    def there(self, key: str) -> bool:
        return (self.folder / key).exists()

    def jobs(self) -> Jobs:
        return self.ledger.jobs(sweep_objects=self.service.sweep_objects)

    async def due(self, ctx: Context) -> None:
        """It is this tenant's turn."""
        await self.ledger.inspector.execute(
            "update tenants set created_at = now() - interval '1 day' where id = $1", ctx.tenant_id
        )
        await self.ledger.inspector.execute(
            "update object_sweeps set queued_at = now() - interval '1 day' where tenant_id = $1", ctx.tenant_id
        )

    async def sweep(self, ctx: Context) -> dict[str, Any]:
        """Queued by the relay, done by a worker; its result."""
        await self.due(ctx)
        async with self.ledger.relay(), self.ledger.worker(self.jobs()):

            async def done() -> bool:
                return await self._last(ctx) == "succeeded"

            await eventually(done)
        return msgspec.json.decode(
            await self.ledger.inspector.fetchval(
                "delete from tasks where tenant_id = $1 and kind = 'sweep_objects' returning result", ctx.tenant_id
            )
        )

    async def _last(self, ctx: Context) -> str | None:
        return await self.ledger.inspector.fetchval(
            "select status from tasks where tenant_id = $1 and kind = 'sweep_objects'", ctx.tenant_id
        )

    async def alerts(self, ctx: Context) -> list[dict[str, Any]]:
        rows = await self.ledger.inspector.fetch(
            "select payload from outbox where tenant_id = $1 and kind = 'alert.raised' order by created_at",
            ctx.tenant_id,
        )
        return [msgspec.json.decode(row["payload"]) for row in rows]


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url) as found:
        yield found


@pytest.fixture
def place(ledger: Ledger, tmp_path: Path) -> Place:
    return Place(ledger, tmp_path)


async def test_only_old_objects_of_a_known_kind_that_no_row_holds_are_removed(place: Place) -> None:
    ctx, other = await place.ledger.tenant(), await place.ledger.tenant()
    mine = f"{ctx.tenant_id}"
    _, held = await place.content(ctx)
    _, condemned = await place.content(ctx, purged=True)
    kept = [held, condemned]
    kept.append(await place.put(f"{mine}/{new_id()}", hours=23))
    kept.append(await place.put(f"{mine}/{new_id()}"))
    kept.append(await place.put(f"{mine}/archives/{new_id()}", hours=23))
    kept.append(await place.put(f"{mine}/exports/{new_id()}", hours=99))
    kept.append(await place.put(f"{mine}/no-id", hours=99))
    kept.append(await place.put(f"{other.tenant_id}/{new_id()}", hours=99))
    kept.append(await place.put(f"{new_id()}/{new_id()}", hours=99))
    kept.append(await part(place, ctx))
    orphans = [await place.put(f"{mine}/{new_id()}", hours=25) for _ in range(3)]
    orphans.append(await place.put(f"{mine}/uploads/{new_id()}", hours=25))
    orphans.append(await place.put(f"{mine}/archives/{new_id()}", hours=25))
    found = await place.sweep(ctx)
    assert found == {"objects": 13, "removed": 5, "missing": 0}
    assert [key for key in orphans if place.there(key)] == []
    assert [key for key in kept if not place.there(key)] == []
    row = await place.ledger.inspector.fetchrow("select objects, removed, finished_at from object_sweeps")
    assert (row["objects"], row["removed"], row["finished_at"] is not None) == (13, 5, True)
    assert await place.sweep(ctx) == {"objects": 8, "removed": 0, "missing": 0}


async def part(place: Place, ctx: Context) -> str:
    """The object of a resumable upload that is under way."""
    upload, number = new_id(), new_id()
    await place.ledger.inspector.execute(
        "insert into uploads (tenant_id, id, user_id, length, metadata, request, expires_at)"
        " values ($1, $2, $3, 20, '', '{}', now() + interval '1 day')",
        ctx.tenant_id,
        upload,
        ctx.user_id,
    )
    await place.ledger.inspector.execute(
        "insert into upload_parts (tenant_id, id, upload_id) values ($1, $2, $3)", ctx.tenant_id, number, upload
    )
    return await place.put(BlobStore.part_key(ctx.tenant_id, number), hours=40)


async def test_a_sweep_that_may_not_remove_only_counts(place: Place) -> None:
    ctx = await place.ledger.tenant()
    place.service = SweepService(place.ledger.worker_store, place.blobs, orphan_hours=0)
    orphan = await place.put(f"{ctx.tenant_id}/{new_id()}", hours=9999)
    assert await place.sweep(ctx) == {"objects": 1, "removed": 0, "missing": 0}
    assert place.there(orphan)


async def test_a_lost_object_is_told_once_to_those_who_see_its_documents(place: Place) -> None:
    ctx = await place.ledger.tenant()
    number, key = await place.content(ctx)
    shared = await place.document(ctx, number)
    hidden_number, hidden_key = await place.content(ctx)
    hidden = await place.document(ctx, hidden_number, "private")
    _, gone = await place.content(ctx, purged=True)
    for lost in (key, hidden_key, gone):
        (place.folder / lost).unlink()
    assert await place.sweep(ctx) == {"objects": 0, "removed": 0, "missing": 2}
    assert await place.sweep(ctx) == {"objects": 0, "removed": 0, "missing": 2}
    alerts = await place.alerts(ctx)
    assert {(alert["document_id"], alert["active"], alert["visibility"]) for alert in alerts} == {
        (str(shared), True, "private"),
        (str(hidden), True, "private"),
    }
    assert "secret" not in repr(alerts)
    colleague = msgspec.structs.replace(ctx, user_id=new_id())
    async with place.ledger.app.tenant(colleague) as tx:
        seen = await tx.notices.events(after=0, upto=100)
    assert [event.payload["document_id"] for event in seen if event.kind == "alert.raised"] == [str(shared)]


async def test_a_restored_object_is_told_and_what_failed_for_want_of_it_begins_anew(place: Place) -> None:
    ctx = await place.ledger.tenant()
    number, key = await place.content(ctx)
    document = await place.document(ctx, number)
    (place.folder / key).unlink()
    await place.sweep(ctx)
    task, other = new_id(), new_id()
    for failed, code in ((task, "file.missing"), (other, "file.no_text")):
        await place.ledger.inspector.execute(
            "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries,"
            " status, content_id, error_code, finished_at)"
            " values ($1, $2, 'ingest_content', 1, 'learning', $3, 'owner', '', '', 5, 'failed', $4, $5, now())",
            ctx.tenant_id,
            failed,
            ctx.user_id,
            number,
            code,
        )
    await place.put(key)
    assert (await place.sweep(ctx))["missing"] == 0
    assert [(alert["document_id"], alert["active"]) for alert in await place.alerts(ctx)] == [
        (str(document), True),
        (str(document), False),
    ]
    assert (await place.ledger.get(ctx, task)).status is TaskStatus.QUEUED
    assert (await place.ledger.get(ctx, other)).status is TaskStatus.FAILED


async def test_two_relays_queue_one_sweep_and_nobody_sees_it(place: Place) -> None:
    ctx, fresh = await place.ledger.tenant(), await place.ledger.tenant()
    await place.due(ctx)
    async with place.ledger.relay(), place.ledger.relay():

        async def queued() -> bool:
            return await place.ledger.unfinished() > 0

        await eventually(queued)
        stores = [place.ledger.relay_store] * 4

        async def again(store: Any) -> int:
            async with store.system("test") as tx:
                return await tx.ledger.expire_uploads(max_retries=1) + await tx.ledger.queue_sweeps(
                    every=SWEEP_OBJECTS, max_retries=1
                )

        assert await asyncio.gather(*map(again, stores)) == [0, 0, 0, 0]
    rows = await place.ledger.inspector.fetch("select tenant_id, user_id, queue from tasks")
    assert [(row["tenant_id"], row["user_id"], row["queue"]) for row in rows] == [
        (ctx.tenant_id, ctx.tenant_id, "batch")
    ]
    assert fresh.tenant_id != ctx.tenant_id
    async with place.ledger.app.tenant(ctx) as tx:
        assert await tx.notices.events(after=0, upto=100) == []


async def test_a_purge_beside_the_sweep_is_no_loss(place: Place) -> None:
    """The object goes before the row: a look in between must not raise an alert."""
    ctx = await place.ledger.tenant()
    number, key = await place.content(ctx)
    await place.document(ctx, number)
    (place.folder / key).unlink()
    lease = await leased(place, ctx)
    await place.ledger.inspector.execute("update contents set purged_at = now() where id = $1", number)
    assert not await place.service.report_missing(ctx, lease, number, key)
    await place.ledger.inspector.execute("update contents set purged_at = null where id = $1", number)
    await place.put(key)
    assert not await place.service.report_missing(ctx, lease, number, key)
    assert await place.alerts(ctx) == []


async def leased(place: Place, ctx: Context) -> Lease:
    [task] = await place.ledger.add(ctx)
    async with place.ledger.relay_store.system("test") as tx:
        [[wakeup]] = (await tx.ledger.dispatch([task.queue], window=9, per_tenant=9)).values()
    async with place.ledger.worker_store.system("test") as tx:
        [(lease, _payload)] = await tx.ledger.claim([wakeup], worker="test", lease_seconds=60, versions={"note": 1})
    return lease


async def test_a_sweep_that_lost_its_lease_removes_nothing(place: Place) -> None:
    ctx = await place.ledger.tenant()
    orphan = await place.put(f"{ctx.tenant_id}/{new_id()}", hours=48)
    lease = await leased(place, ctx)
    await place.ledger.inspector.execute("update tasks set fence = fence + 1")
    with pytest.raises(AppError) as error:
        await place.service.sweep_objects(ctx, lease)
    assert error.value.code is Code.TASK_FENCED
    assert place.there(orphan)


@pytest.fixture
async def api(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Running]:
    async with served_on(servers, database, tmp_path) as found:
        yield found


async def send(client: httpx.AsyncClient, data: bytes) -> httpx.Response:
    return await client.post("/api/v1/documents", files={"file": ("a.txt", data)}, data={"visibility": "private"})


async def test_uploading_the_same_bytes_brings_a_lost_file_back(api: Running, place: Place) -> None:
    tenant = await api.new_tenant("lost")
    await add_member(api, tenant["api_key"], "member@lost.example", "member")
    token = (await sign_in(api, "member@lost.example")).json()["access_token"]
    async with api.client(tenant["api_key"]) as owner, api.client(token) as member:
        first = (await send(owner, b"some bytes")).json()
        path = f"/api/v1/documents/{first['document_id']}/content"
        assert (await owner.get(path)).content == b"some bytes"
        [key] = await keys(place)
        (place.folder / key).unlink()
        is_problem(await owner.get(path), 410, "file.missing")
        await fail(place, first["task_id"])
        again = await send(owner, b"some bytes")
        assert (again.status_code, again.json()["document_id"]) == (200, first["document_id"])
        assert again.json()["task_id"] == first["task_id"]
        assert (await owner.get(path)).content == b"some bytes"
        assert (await owner.get(f"/api/v1/tasks/{first['task_id']}")).json()["status"] == "queued"
        (place.folder / key).unlink()
        assert (await send(member, b"some bytes")).status_code == 202
        assert (await owner.get(path)).content == b"some bytes"
        assert [item async for item in stored(place)] == [key]


async def test_reading_a_lost_file_fails_at_once_and_raises_the_alert(place: Place, tmp_path: Path) -> None:
    ctx = await place.ledger.tenant()
    number, key = await place.content(ctx)
    document = await place.document(ctx, number)
    (place.folder / key).unlink()
    nowhere, space = "http://127.0.0.1:9", await place.ledger.worker_store.find_space(SPACE)
    assert space is not None
    async with AsyncExitStack() as stack:
        sandbox, ocr, embeddings = Sandbox(config.Limits()), LocalOcr(nowhere), LocalEmbeddings(nowhere, space)
        megaphone = Megaphone(place.ledger.redis_url)
        for part in (sandbox, ocr, embeddings, megaphone):
            stack.push_async_callback(part.close)
        ingest = IngestService(
            *(place.ledger.worker_store, place.blobs, sandbox, ocr, Embedder(embeddings), megaphone, place.service),
            workdir=tmp_path,
        )
        async with place.ledger.relay(), place.ledger.worker(place.ledger.jobs(ingest_content=ingest.ingest_content)):
            new = NewTask(kind="ingest_content", version=1, document_id=document, content_id=number)
            async with place.ledger.app.tenant(ctx) as tx:
                task = await tx.tasks.add(new)
            ended = await place.ledger.until(ctx, task.id)
    assert (ended.status, ended.error_code, ended.retry_count) == (TaskStatus.FAILED, Code.FILE_MISSING, 0)
    assert [alert["name"] for alert in await place.alerts(ctx)] == ["document.file_missing"]


async def keys(place: Place) -> list[str]:
    return [row["blob_key"] for row in await place.ledger.inspector.fetch("select blob_key from contents")]


async def stored(place: Place):
    async for page in place.blobs.pages("", size=10):
        for item in page:
            yield item.key


async def fail(place: Place, task_id: str) -> None:
    """As a worker that found no object."""
    for change in (
        "status = 'running', lease_until = now()",
        "status = 'failed', lease_until = null, error_code = 'file.missing', finished_at = now()",
    ):
        await place.ledger.inspector.execute(f"update tasks set {change} where id = $1", UUID(task_id))
