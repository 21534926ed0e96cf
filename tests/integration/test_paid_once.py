"""No passage is embedded twice: not after an endpoint has gone away midway, nor for another file with the same text."""

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from internal.entities.search import Space
from internal.entities.tasks import Lease, TaskKind
from internal.parsers.sandbox import Sandbox
from internal.providers.blobs import BlobStore, open_blobs
from internal.providers.embeddings import OpenAIEmbeddings
from internal.providers.ocr import LocalOcr
from internal.repositories.broadcasts import Megaphone
from internal.repositories.store import Store, open_store
from internal.services.ingest import IngestService
from internal.services.purge import PurgeService
from internal.services.sweep import SweepService
from internal.worker.jobs import product_jobs
from pkg import config
from pkg.apperr import AppError, Code
from tests.fakes.openai_server import FakeOpenAI, running_fake
from tests.integration.api import Running, served_on
from tests.integration.processings import long_text
from tests.integration.test_overtaken import Gate, Shop
from tests.servers import Database, Servers

SPACE = Space("multilingual-e5-small", "2", 384)


class Factory:
    """Workers that share nothing but the database; each knows a new model client, as one that has just started."""

    def __init__(
        self, fake: FakeOpenAI, client: httpx.AsyncClient, relay: Store, worker: Store, space: Space, parts: list[Any]
    ) -> None:
        self.fake = fake
        self._client = client
        self._relay = relay
        self._worker = worker
        self._space = space
        self._parts = parts

    def shop(self, stack: AsyncExitStack) -> Shop:
        ai = config.Ai.model_validate(
            {
                "base_url": self.fake.base_url,
                "api_key": "one",
                "embedding_model": self._space.model,
                "embedding_batch": 2,
                "timeout_seconds": 1.0,
            }
        )
        provider = OpenAIEmbeddings(ai, self._space)
        stack.push_async_callback(provider.close)
        sandbox, ocr, megaphone, blobs, workdir = self._parts
        gate, sweep = Gate(provider), SweepService(self._worker, blobs, orphan_hours=24)
        ingest = IngestService(self._worker, blobs, sandbox, ocr, gate, megaphone, sweep, workdir=workdir)
        purge = PurgeService(self._worker, blobs)
        handlers = dict.fromkeys(TaskKind, ingest.ingest_content) | {TaskKind.PURGE_CONTENT: purge.purge_content}
        return Shop(self._client, self._relay, self._worker, product_jobs(**handlers), gate)

    async def read(self, lease: Lease | None = None) -> Lease:
        """A new worker reads what waits, or what an earlier one had begun. Raises what the job raises."""
        async with AsyncExitStack() as stack:
            shop = self.shop(stack)
            if lease is None:
                (lease,) = (await shop.claim()).values()
            await shop.run(lease)
            return lease

    async def upload(self, name: str, text: str) -> str:
        answer = await self._client.post("/api/v1/documents", files={"file": (name, text.encode())})
        assert answer.status_code == 202, answer.text
        return answer.json()["document_id"]

    async def claim(self) -> Lease:
        async with AsyncExitStack() as stack:
            (lease,) = (await self.shop(stack).claim()).values()
            return lease


@pytest.fixture
async def factory(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Factory]:
    nowhere = "http://127.0.0.1:9"
    async with AsyncExitStack() as stack:
        api: Running = await stack.enter_async_context(served_on(servers, database, tmp_path))
        tenant = await api.new_tenant("paid-once")
        client = await stack.enter_async_context(api.client(tenant["api_key"]))
        fake = await stack.enter_async_context(running_fake(dimension=SPACE.dim))
        relay, worker = await open_store(database.relay), await open_store(database.worker)
        space = await worker.find_space(SPACE)
        assert space is not None
        sandbox, ocr, megaphone = Sandbox(config.Limits()), LocalOcr(nowhere), Megaphone(servers.redis_url)
        for part in (relay, worker, sandbox, ocr, megaphone):
            stack.push_async_callback(part.close)
        blobs: BlobStore = open_blobs(config.Blobs(url=(tmp_path / "blobs").as_uri()))
        yield Factory(fake, client, relay, worker, space, [sandbox, ocr, megaphone, blobs, tmp_path])


@pytest.fixture
async def conn(database: Database) -> AsyncGenerator[asyncpg.Connection]:
    found = await asyncpg.connect(database.superuser)
    yield found
    await found.close()


async def test_what_was_paid_for_when_the_endpoint_went_away_is_not_paid_for_again(
    factory: Factory, conn: asyncpg.Connection
) -> None:
    await factory.upload("ships.txt", long_text("harbours"))
    lease = await factory.claim()
    fake = factory.fake
    budget = 2

    def serve(_texts: list[str]) -> tuple[int, dict[str, Any]] | None:
        nonlocal budget
        budget -= 1
        return (503, {"error": {"message": "overloaded"}}) if budget < 0 else None

    fake.too_big = serve
    codes: list[Code] = []
    while len(codes) < 10:
        budget = 2
        try:
            await factory.read(lease)
        except AppError as error:
            codes.append(error.code)
            assert await conn.fetchval("select count(*) from chunks") == len(fake.embedded_texts)
        else:
            break
    assert set(codes) == {Code.MODEL_UNAVAILABLE}
    assert len(codes) < 10
    assert max(Counter(fake.embedded_texts).values()) == 1
    assert await conn.fetchval("select count(*) from chunks") == len(fake.embedded_texts)
    tokens = sum(len(text) for text in fake.embedded_texts) / 4
    paid = await conn.fetchval("select sum(prompt_tokens) from usage_entries")
    assert float(paid) == pytest.approx(tokens, rel=0.05)  # each call is in the books, and once


async def test_a_passage_that_another_file_holds_is_not_paid_for_again(factory: Factory) -> None:
    await factory.upload("one.txt", long_text("harbours"))
    await factory.read()
    paid = len(factory.fake.embedded_texts)
    assert paid > 1
    # Another file, so that it is read; its passages are the same but for the last.
    await factory.upload("two.txt", long_text("harbours") + "\n\nAnd of a lighthouse.")
    await factory.read()
    assert len(factory.fake.embedded_texts) - paid <= 2
