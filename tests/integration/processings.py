"""The API, the workers and the operator of versions of the processing, in one process on real servers."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from internal.entities.documents import Content, Generation
from internal.entities.processing import Processing
from internal.entities.search import Space
from internal.entities.tasks import Lease, Queue, TaskKind
from internal.entities.usage import Purpose
from internal.parsers.sandbox import Sandbox
from internal.providers.blobs import open_blobs
from internal.providers.embeddings import OpenAIEmbeddings
from internal.providers.ocr import LocalOcr
from internal.repositories.broadcasts import Megaphone
from internal.repositories.processings import processings
from internal.services.embedder import Embedder
from internal.services.ingest import Built, IngestService
from internal.services.processing import ProcessingService
from internal.services.purge import PurgeService
from internal.services.shadow import ShadowService
from internal.services.sweep import SweepService
from internal.services.trials import TrialService
from internal.worker.jobs import Handler, product_jobs
from pkg import config
from pkg.ctxutil import Context, Role
from tests.fakes.openai_server import running_fake
from tests.integration.api import add_member, served_on, sign_in
from tests.ledger import Ledger, eventually, open_ledger
from tests.servers import Database, Servers

SPACE = Space("multilingual-e5-small", "2", 384)


def long_text(subject: str) -> str:
    return "\n\n".join(f"Paragraph {number} tells of {subject} and of {number} ships. " * 12 for number in range(10))


class HeldIngest(IngestService):
    """Reads as the product does. A reading of which `holds` is true waits, read but not published, for `let_go`."""

    holds: Callable[[Lease], bool] = staticmethod(lambda _lease: False)

    def hold(self, holds: Callable[[Lease], bool]) -> None:
        self.holds = holds
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    async def read(
        self,
        ctx: Context,
        lease: Lease,
        content: Content,
        generation: Generation,
        processing: Processing,
        purpose: Purpose,
    ) -> Built:
        built = await super().read(ctx, lease, content, generation, processing, purpose)
        if self.holds(lease):
            self.reached.set()
            await self.let_go.wait()
        return built


class Shop:
    """The API with a client, and what an operator and the workers do."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        colleague: httpx.AsyncClient,
        ledger: Ledger,
        handlers: dict[TaskKind, Handler],
        trials: TrialService,
        ingest: HeldIngest,
    ) -> None:
        self.client = client
        self.colleague = colleague
        self.ledger = ledger
        self.handlers = handlers
        self.trials = trials
        self.ingest = ingest

    @asynccontextmanager
    async def at_work(self, *queues: Queue) -> AsyncGenerator[None]:
        """A relay and a worker of these queues, or of all."""
        jobs = product_jobs(**self.handlers)
        async with self.ledger.relay(), self.ledger.worker(jobs, queues=queues or tuple(Queue)):
            yield

    async def upload(self, text: str, client: httpx.AsyncClient | None = None, **form: str) -> str:
        """A new document's id."""
        files = {"file": ("a.txt", text.encode())}
        answer = await (client or self.client).post("/api/v1/documents", files=files, data=form)
        assert answer.status_code == 202, answer.text
        return answer.json()["document_id"]

    async def context(self) -> Context:
        """The owner's."""
        row = await self.ledger.inspector.fetchrow("select tenant_id, user_id from memberships where role = 'owner'")
        assert row is not None
        return Context(tenant_id=row["tenant_id"], user_id=row["user_id"], role=Role.OWNER, request_id="", trace_id="")

    async def published(self, version: str) -> bool:
        """Whether every document answers by this version."""
        found = await self.ledger.inspector.fetch(
            "select distinct g.version, g.status from documents d join generations g on g.id = d.generation_id"
        )
        return [tuple(row) for row in found] == [(version, "published")]

    async def ended(self, kind: TaskKind) -> bool:
        """Whether there was such a task, and none is unfinished."""
        return bool(
            await self.ledger.inspector.fetchval(
                "select bool_and(status not in ('queued', 'running')) from tasks where kind = $1", kind.value
            )
        )

    async def waits_for_a_lock(self) -> bool:
        """Whether a connection to the test's database waits for another."""
        return bool(
            await self.ledger.inspector.fetch(
                "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            )
        )

    async def hidden(self, kind: TaskKind) -> None:
        """Queues one of the operator's tasks for the tenant."""
        async with processings(self.ledger.database.owner) as tx:
            await tx.queue(kind, Queue.LEARNING, 5)

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
            "with there as (select t.term, count(*)::int as chunks from chunk_terms k cross join unnest(k.terms) as t"
            " (term) where k.generation_id in (select d.generation_id from documents d) group by t.term)"
            " (select term, chunks from there except select term, chunks from term_frequencies)"
            " union all (select term, chunks from term_frequencies except select term, chunks from there)"
        )
        assert [tuple(row) for row in counted] == []
        beyond = await self.ledger.inspector.fetchval(
            "select s.chunks - (select count(*) from chunk_terms k where k.generation_id in"
            " (select d.generation_id from documents d)) from tenant_statistics s"
        )
        assert beyond == 0


@asynccontextmanager
async def open_shop(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Shop]:
    """One tenant with one user."""
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(database, servers.redis_url))
        api = await stack.enter_async_context(served_on(servers, database, tmp_path))
        fake = await stack.enter_async_context(running_fake())
        tenant = await api.new_tenant("processing")
        client = await stack.enter_async_context(api.client(tenant["api_key"]))
        await add_member(api, tenant["api_key"], "member@processing.example", "member")
        signed = await sign_in(api, "member@processing.example")
        colleague = await stack.enter_async_context(api.client(signed.json()["access_token"]))
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
        ingest = HeldIngest(worker, blobs, sandbox, ocr, embedder, megaphone, sweep, workdir=tmp_path)
        shadow, processing = ShadowService(worker, ingest, embedder), ProcessingService(worker, space)
        handlers = dict[TaskKind, Handler](dict.fromkeys(TaskKind, ingest.ingest_content))
        handlers |= {
            TaskKind.PURGE_CONTENT: purge.purge_content,
            TaskKind.SHADOW_CONTENT: shadow.shadow_content,
            TaskKind.SWITCH_PROCESSING: processing.switch_processing,
            TaskKind.REREAD_CONTENTS: processing.reread_contents,
            TaskKind.PURGE_GENERATIONS: processing.purge_generations,
            TaskKind.SWEEP_OBJECTS: sweep.sweep_objects,
        }
        trials = TrialService(lambda: processings(database.owner), max_retries=5)
        yield Shop(client, colleague, ledger, handlers, trials, ingest)
