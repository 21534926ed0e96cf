"""Versions that are overtaken, forgotten or removed while they wait or are read."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from internal.entities.search import Space
from internal.entities.tasks import Lease, Queue, TaskKind
from internal.parsers.sandbox import Sandbox
from internal.providers.blobs import open_blobs
from internal.providers.embedding_wire import Embedded
from internal.providers.embeddings import EmbeddingProvider, OpenAIEmbeddings
from internal.providers.ocr import LocalOcr
from internal.repositories.broadcasts import Megaphone
from internal.repositories.store import Store, open_store
from internal.services.embedder import Embedder
from internal.services.ingest import IngestService
from internal.services.purge import PurgeService
from internal.services.sweep import SweepService
from internal.worker.jobs import Jobs, product_jobs
from pkg import config
from pkg.ctxutil import Context
from tests.fakes.openai_server import running_fake
from tests.integration.api import Running, served_on
from tests.servers import Database, Servers

SPACE = Space("multilingual-e5-small", "2", 384)
SLOW = "slowly"
KEPT = 2


class Gate(Embedder):
    """Lets texts with SLOW in them through when a test says so: all of them at once, each of its two calls."""

    def __init__(self, provider: EmbeddingProvider) -> None:
        super().__init__(provider)
        self.counting, self.embedding = asyncio.Event(), asyncio.Event()
        self.counted, self.embedded = asyncio.Event(), asyncio.Event()

    async def count_tokens(self, ctx: Context, texts: Sequence[str]) -> list[int]:
        if SLOW in texts[0]:
            self.counting.set()
            await self.counted.wait()
        return await super().count_tokens(ctx, texts)

    async def embed_batch(self, ctx: Context, texts: Sequence[str], *, partly: bool = False) -> Embedded:
        if SLOW in texts[0]:
            self.embedding.set()
            await self.embedded.wait()
        return await super().embed_batch(ctx, texts, partly=partly)


class Shop:
    """The API with a client, and a worker whose jobs a test runs one by one."""

    def __init__(self, client: httpx.AsyncClient, relay: Store, worker: Store, jobs: Jobs, gate: Gate) -> None:
        self.client = client
        self.worker = worker
        self.gate = gate
        self._relay = relay
        self._jobs = jobs

    async def upload(self, text: str) -> str:
        """A new document's id."""
        answer = await self.client.post("/api/v1/documents", files={"file": ("a.txt", text.encode())})
        assert answer.status_code == 202, answer.text
        return answer.json()["document_id"]

    async def replace(self, document: str, text: str) -> UUID:
        """The task that reads the next version."""
        files = {"file": ("a.txt", text.encode())}
        answer = await self.client.put(f"/api/v1/documents/{document}/content", files=files)
        assert answer.status_code == 202, answer.text
        return UUID(answer.json()["task_id"])

    async def get(self, path: str) -> Any:
        answer = await self.client.get(f"/api/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def claim(self) -> dict[UUID, Lease]:
        """Leases on all that waits, by task."""
        async with self._relay.system("test") as tx:
            found = await tx.ledger.dispatch(list(Queue), window=100, per_tenant=100)
        async with self.worker.system("test") as tx:
            delivered = [wakeup for queue in found.values() for wakeup in queue]
            taken = await tx.ledger.claim(delivered, worker="test", lease_seconds=60, versions=self._jobs.versions)
        return {lease.task.id: lease for lease, _ in taken}

    async def run(self, lease: Lease) -> dict[str, Any]:
        """Does a task's work; the task itself stays as it is."""
        task = lease.task
        ctx = Context(
            tenant_id=task.tenant_id,
            user_id=task.user_id,
            role=task.role,
            request_id=task.request_id,
            trace_id=task.trace_id,
        )
        return await self._jobs.run(ctx, lease)

    async def run_all(self) -> None:
        """Does whatever waits, and what comes of that."""
        while leases := await self.claim():
            for lease in leases.values():
                await self.run(lease)


async def unexpected(_ctx: Context, lease: Lease) -> dict[str, Any]:
    raise AssertionError(f"nobody asked for {lease.task.kind}")


@pytest.fixture
async def shop(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Shop]:
    nowhere = "http://127.0.0.1:9"
    async with AsyncExitStack() as stack:
        api: Running = await stack.enter_async_context(served_on(servers, database, tmp_path, versions=KEPT))
        tenant = await api.new_tenant("overtaken")
        client = await stack.enter_async_context(api.client(tenant["api_key"]))
        fake = await stack.enter_async_context(running_fake(dimension=SPACE.dim))
        relay, worker = await open_store(database.relay), await open_store(database.worker)
        space = await worker.find_space(SPACE)
        assert space is not None
        ai = config.Ai.model_validate(
            {"base_url": fake.base_url, "api_key": "one", "embedding_model": space.model, "timeout_seconds": 5.0}
        )
        sandbox, ocr, megaphone = Sandbox(config.Limits()), LocalOcr(nowhere), Megaphone(servers.redis_url)
        provider = OpenAIEmbeddings(ai, space)
        for part in (relay, worker, sandbox, ocr, megaphone, provider):
            stack.push_async_callback(part.close)
        blobs = open_blobs(config.Blobs(url=(tmp_path / "blobs").as_uri()))
        gate, sweep, purge = Gate(provider), SweepService(worker, blobs, orphan_hours=24), PurgeService(worker, blobs)
        ingest = IngestService(worker, blobs, sandbox, ocr, gate, megaphone, sweep, workdir=tmp_path)
        jobs = product_jobs(
            **dict.fromkeys(TaskKind, unexpected)
            | {TaskKind.INGEST_CONTENT: ingest.ingest_content, TaskKind.PURGE_CONTENT: purge.purge_content}
        )
        yield Shop(client, relay, worker, jobs, gate)


@pytest.fixture
async def conn(database: Database) -> AsyncGenerator[asyncpg.Connection]:
    found = await asyncpg.connect(database.superuser)
    yield found
    await found.close()


async def versions(shop: Shop, document: str) -> list[tuple[int, str]]:
    items = (await shop.get(f"documents/{document}/versions"))["items"]
    return [(item["number"], item["status"]) for item in items]


async def only_what_answers_is_kept(shop: Shop, conn: asyncpg.Connection, document: str) -> None:
    """Of what was read there is one generation, complete and counted, and the document answers from it."""
    rows = await conn.fetch(
        "select g.status, g.chunk_count, (select count(*) from chunks c where c.generation_id = g.id) as chunks,"
        " (select n.chunks from counted_generations n where n.generation_id = g.id) as counted,"
        " exists (select 1 from documents d where d.id = $1 and d.generation_id = g.id) as answers from generations g",
        UUID(document),
    )
    assert [tuple(row) for row in rows] == [("published", 1, 1, 1, True)]
    shown = await shop.get(f"documents/{document}/chunks")
    assert len(shown["items"]) == 1


@pytest.mark.parametrize("removed", ["while it is embedded", "before it is published", "later"])
async def test_a_version_that_was_overtaken_while_it_was_read_is_not_published(
    shop: Shop, conn: asyncpg.Connection, removed: str
) -> None:
    document = await shop.upload("The first text.")
    await shop.run_all()
    slow = await shop.replace(document, f"The second text, which is read {SLOW}.")
    fast = await shop.replace(document, "The third text.")
    leases = await shop.claim()
    if removed == "before it is published":
        # An attempt that is cut short before its end; the next one finds all passages written.
        shop.gate.counted.set()
        shop.gate.embedded.set()
        await cut_short(shop, conn, leases[slow])
        shop.gate.counting.clear()
        shop.gate.counted.clear()
    else:
        shop.gate.counted.set()
    reading = asyncio.create_task(shop.run(leases[slow]))
    await (shop.gate.counting if removed == "before it is published" else shop.gate.embedding).wait()
    assert await shop.run(leases[fast]) == {"chunks": 1}
    if removed != "later":
        await shop.run_all()
    shop.gate.counted.set()
    shop.gate.embedded.set()
    assert set(await reading) == {"skipped"}
    await shop.run_all()
    assert (await versions(shop, document))[:2] == [(3, "current"), (2, "superseded")]
    await only_what_answers_is_kept(shop, conn, document)

    restored = await shop.client.post(f"/api/v1/documents/{document}/versions/2/restore")
    assert restored.status_code == 202, restored.text
    await shop.run_all()
    assert (await versions(shop, document))[0] == (4, "current")
    await only_what_answers_is_kept(shop, conn, document)


async def cut_short(shop: Shop, conn: asyncpg.Connection, lease: Lease) -> None:
    """An attempt whose passages are written, and that is lost while it waits for its turn to publish."""
    waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    async with conn.transaction():
        await conn.execute("select 1 from tenant_statistics for update")
        lost = asyncio.create_task(shop.run(lease))
        while not await conn.fetchval(waits):
            await asyncio.sleep(0.01)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
    assert await conn.fetchval("select count(*) from chunks where text like $1", f"%{SLOW}%") == 1


async def test_a_version_that_is_forgotten_before_it_was_read_has_its_reading_cancelled(
    shop: Shop, conn: asyncpg.Connection
) -> None:
    document = await shop.upload("The first text.")
    await shop.run_all()
    tasks = [await shop.replace(document, f"The text with the number {number}.") for number in range(2, 5)]
    states = [(await shop.get(f"tasks/{task}"))["status"] for task in tasks]
    assert states == ["cancelled", "queued", "queued"]
    await shop.run_all()
    assert [number for number, _ in await versions(shop, document)] == [4, 3, 1]
    await only_what_answers_is_kept(shop, conn, document)
