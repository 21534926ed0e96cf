"""Batches from the request to their end: the API on a socket, a relay, and workers that do a batch's own work."""

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from internal.entities.tasks import Lease, Queue, TaskKind, TaskPolicy
from internal.parsers.sandbox import Sandbox
from internal.providers.antivirus import Antivirus, NoScan
from internal.providers.blobs import open_blobs
from internal.repositories.store import open_store
from internal.services.bulk import BulkService
from internal.services.documents import DocumentService
from internal.services.expansion import ExpansionService
from internal.services.purge import PurgeService
from internal.services.sweep import SweepService
from internal.worker.jobs import product_jobs
from internal.worker.runner import Worker
from pkg import config
from pkg.ctxutil import Context
from tests.integration.api import Running, served, settings_for
from tests.ledger import LEASE_SECONDS, Ledger, eventually, open_ledger
from tests.servers import Database, Servers

ROOT = Path(__file__).resolve().parents[2]
Work = Callable[[Context, Lease], Awaitable[dict[str, Any]]]


class Stage:
    """One tenant's API with a relay; workers come and go."""

    def __init__(self, ledger: Ledger, api: Running, settings: config.Settings, folder: Path) -> None:
        self.ledger = ledger
        self.api = api
        self.settings = settings
        self.folder = folder
        self.read: list[UUID] = []

    async def note(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """Stands for reading a file, which has tests of its own."""
        self.read.append(lease.task.id)
        return {}

    @asynccontextmanager
    async def worker(
        self, *queues: Queue, ingest: Work | None = None, antivirus: Antivirus | None = None
    ) -> AsyncGenerator[Worker]:
        """With the product's own jobs, but for the reading of files."""
        limits, folder = self.settings.limits, self.folder / "work"
        folder.mkdir(exist_ok=True)
        async with AsyncExitStack() as stack:
            store = await open_store(
                self.ledger.database.worker, tasks=TaskPolicy(max_retries=2, queue_depth=limits.queue_depth)
            )
            stack.push_async_callback(store.close)
            sandbox = Sandbox(limits)
            stack.push_async_callback(sandbox.close)
            blobs = open_blobs(self.settings.blobs)
            documents = DocumentService(
                store, blobs, antivirus or NoScan(), spool=folder, max_file_mb=limits.max_file_mb
            )
            expansions = ExpansionService(store, blobs, sandbox, documents, workdir=folder, limits=limits)
            bulk, purge = BulkService(store), PurgeService(store, blobs)
            sweep = SweepService(store, blobs, orphan_hours=24)
            jobs = product_jobs(
                **dict.fromkeys(TaskKind, ingest or self.note)
                | {
                    TaskKind.PURGE_CONTENT: purge.purge_content,
                    TaskKind.PURGE_UPLOADS: purge.purge_uploads,
                    TaskKind.SWEEP_OBJECTS: sweep.sweep_objects,
                    TaskKind.PURGE_BATCHES: purge.purge_batches,
                    TaskKind.EXPAND_ARCHIVE: expansions.expand_archive,
                    TaskKind.RETRY_TASKS: bulk.retry_tasks,
                    TaskKind.DELETE_DOCUMENTS: bulk.delete_documents,
                }
            )
            yield await stack.enter_async_context(self.ledger.worker(jobs, queues=queues or tuple(Queue)))

    @contextmanager
    def process(self, *queues: Queue, failpoints: str = "") -> Generator[subprocess.Popen[bytes]]:
        """`dreamhub work` in a process of its own, to be killed."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dreamhub", "work", "--queues", ",".join(queues)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}:{ROOT / 'cmd'}",
                "DREAMHUB_HOME": str(self.folder / "home"),
                "DREAMHUB_FAILPOINTS": failpoints,
                "DB__DSN": self.ledger.database.worker,
                "REDIS__URL": self.ledger.redis_url,
                "BLOBS__URL": self.settings.blobs.url,
                "MODELS__URL": "http://127.0.0.1:9",
                "TASKS__LEASE_SECONDS": str(LEASE_SECONDS),
                "TASKS__BACKOFF_SECONDS": "0.05",
            },
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    async def over(self, client: httpx.AsyncClient, batch: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
        """The batch at its end."""
        return await self.until(client, batch, lambda found: found["finished_at"] is not None, seconds=seconds)

    async def until(
        self,
        client: httpx.AsyncClient,
        batch: dict[str, Any],
        condition: Callable[[dict[str, Any]], bool],
        seconds: float = 60,
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def there() -> bool:
            nonlocal found
            answer = await client.get(f"/api/v1/batches/{batch['id']}")
            found = answer.json()
            assert answer.status_code == 200, answer.text
            return condition(found)

        await eventually(there, seconds=seconds, what=lambda: str(found))
        return found

    def archives(self) -> list[Path]:
        """Archives that lie among the objects."""
        return list((self.folder / "blobs").glob("*/archives/*"))


@asynccontextmanager
async def staged(servers: Servers, database: Database, folder: Path, **limits: Any) -> AsyncGenerator[Stage]:
    settings = settings_for(database, servers.redis_url, folder, rate_per_minute=100_000, **limits)
    async with (
        open_ledger(database, servers.redis_url) as ledger,
        ledger.relay(),
        served(settings) as api,
    ):
        yield Stage(ledger, api, settings, folder)


async def items_of(client: httpx.AsyncClient, batch: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    """All items, page by page."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        query |= {"cursor": cursor} if cursor else {}
        page = (await client.get(f"/api/v1/batches/{batch['id']}/items", params={"limit": 200, **query})).json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


async def send_archive(client: httpx.AsyncClient, data: bytes, name: str = "many.zip", **fields: str) -> dict[str, Any]:
    answer = await client.post("/api/v1/batches", files={"archive": (name, data)}, data=fields)
    assert answer.status_code == 202, answer.text
    return answer.json()
