"""A version of the processing beside another one: tried, taken over, taken back; searches answer all the while."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from internal.entities.search import Space
from internal.entities.tasks import TaskKind
from internal.parsers.sandbox import Sandbox
from internal.providers.blobs import open_blobs
from internal.providers.embeddings import OpenAIEmbeddings
from internal.providers.ocr import LocalOcr
from internal.repositories.broadcasts import Megaphone
from internal.repositories.processings import processings
from internal.services.embedder import Embedder
from internal.services.ingest import IngestService
from internal.services.processing import ProcessingService
from internal.services.purge import PurgeService
from internal.services.shadow import ShadowService
from internal.services.sweep import SweepService
from internal.services.trials import TrialService
from internal.worker.jobs import Jobs, product_jobs
from pkg import config
from pkg.apperr import AppError
from tests.fakes.openai_server import running_fake
from tests.integration.api import served_on
from tests.ledger import Ledger, eventually, open_ledger
from tests.servers import Database, Servers

SPACE = Space("multilingual-e5-small", "2", 384)
DAY = "interval '25 hours'"


def long_text(subject: str) -> str:
    return "\n\n".join(f"Paragraph {number} tells of {subject} and of {number} ships. " * 12 for number in range(10))


class Shop:
    """The API with a client, and what an operator and the workers do."""

    def __init__(self, client: httpx.AsyncClient, ledger: Ledger, jobs: Jobs, trials: TrialService) -> None:
        self.client = client
        self.ledger = ledger
        self.trials = trials
        self._jobs = jobs

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        async with self.ledger.relay(), self.ledger.worker(self._jobs):
            yield

    async def upload(self, text: str) -> str:
        """A new document's id."""
        answer = await self.client.post("/api/v1/documents", files={"file": ("a.txt", text.encode())})
        assert answer.status_code == 202, answer.text
        return answer.json()["document_id"]

    async def done(self) -> None:
        """Nothing waits or runs."""

        async def nothing() -> bool:
            return await self.ledger.unfinished() == 0

        await eventually(nothing, seconds=60)
        failed = await self.ledger.inspector.fetch(
            "select kind, status, error_message from tasks where status <> $1", "succeeded"
        )
        assert [tuple(row) for row in failed] == []

    async def found(self, words: str) -> list[dict[str, Any]]:
        answer = await self.client.post("/api/v1/search", json={"query": words, "k": 50, "mode": "keyword"})
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    async def readings(self) -> list[tuple[str, str]]:
        """Version and status of each generation."""
        rows = await self.ledger.inspector.fetch("select version, status from generations order by content_id, version")
        return [tuple(row) for row in rows]

    async def promote(self) -> None:
        async for _left in self.trials.promote():
            pass

    async def roll_back(self) -> None:
        async for _left in self.trials.roll_back():
            pass

    async def whole(self) -> None:
        """Each document answers from one published generation, which alone is counted, and the counts are right."""
        wrong = await self.ledger.inspector.fetch(
            "select d.id, g.version, g.status, g.chunk_count, n.chunks from documents d"
            " left join generations g on g.tenant_id = d.tenant_id and g.id = d.generation_id"
            " left join counted_generations n on n.generation_id = d.generation_id"
            " join contents c on c.id = d.content_id"
            " where g.status is distinct from 'published' or c.generation_id is distinct from d.generation_id"
            " or n.chunks is distinct from g.chunk_count"
            " or g.chunk_count <> (select count(*) from chunks k where k.generation_id = g.id)"
        )
        assert [tuple(row) for row in wrong] == []
        counted = await self.ledger.inspector.fetch(
            "(select t.term, count(*)::int from chunk_terms k join documents d on d.generation_id = k.generation_id"
            " cross join unnest(k.terms) as t (term) group by t.term"
            " except select term, chunks from term_frequencies) union all"
            " (select term, chunks from term_frequencies"
            " except select t.term, count(*)::int from chunk_terms k join documents d on d.generation_id ="
            " k.generation_id cross join unnest(k.terms) as t (term) group by t.term)"
        )
        assert [tuple(row) for row in counted] == []


@pytest.fixture
async def shop(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Shop]:
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(database, servers.redis_url))
        api = await stack.enter_async_context(served_on(servers, database, tmp_path))
        fake = await stack.enter_async_context(running_fake())
        tenant = await api.new_tenant("processing")
        client = await stack.enter_async_context(api.client(tenant["api_key"]))
        worker = ledger.worker_store
        space = await worker.find_space(SPACE)
        assert space is not None
        ai = config.Ai.model_validate({"base_url": fake.base_url, "api_key": "one", "embedding_model": space.model})
        sandbox, ocr, megaphone = Sandbox(config.Limits()), LocalOcr("http://127.0.0.1:9"), Megaphone(servers.redis_url)
        provider = OpenAIEmbeddings(ai, space)
        for part in (sandbox, ocr, megaphone, provider):
            stack.push_async_callback(part.close)
        blobs, embedder = open_blobs(config.Blobs(url=(tmp_path / "blobs").as_uri())), Embedder(provider)
        sweep, purge = SweepService(worker, blobs, orphan_hours=24), PurgeService(worker, blobs)
        ingest = IngestService(worker, blobs, sandbox, ocr, embedder, megaphone, sweep, workdir=tmp_path)
        shadow, processing = ShadowService(worker, ingest, embedder), ProcessingService(worker, space)
        handlers = dict.fromkeys(TaskKind, ingest.ingest_content) | {
            TaskKind.PURGE_CONTENT: purge.purge_content,
            TaskKind.SHADOW_CONTENT: shadow.shadow_content,
            TaskKind.SWITCH_PROCESSING: processing.switch_processing,
            TaskKind.REREAD_CONTENTS: processing.reread_contents,
            TaskKind.PURGE_GENERATIONS: processing.purge_generations,
        }
        trials = TrialService(lambda: processings(database.owner), max_retries=5)
        yield Shop(client, ledger, product_jobs(**handlers), trials)


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
