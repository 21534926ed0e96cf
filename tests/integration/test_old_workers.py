"""Workers of the version before, still running during a roll-out, leave alone what they would do wrongly."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from internal.entities.tasks import Lease, Queue, TaskKind
from internal.repositories.store import open_store
from internal.worker.jobs import product_jobs
from pkg.ctxutil import Context
from tests.integration.api import Running, served_on
from tests.servers import Database, Servers

BEFORE_VERSIONS = {"ingest_content": 1, "purge_content": 1, "purge_uploads": 1, "sweep_objects": 1}
"""What a worker understood that knew no versions of documents."""


@pytest.fixture
async def api(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Running]:
    async with served_on(servers, database, tmp_path) as running:
        yield running


async def nothing(_ctx: Context, _lease: Lease) -> dict[str, Any]:
    return {}


async def claimed(database: Database, versions: dict[str, int]) -> list[str]:
    """The kinds of what a worker gets that understands these."""
    relay, worker = await open_store(database.relay), await open_store(database.worker)
    try:
        async with relay.system("test") as tx:
            delivered = (await tx.ledger.dispatch(list(Queue), window=100, per_tenant=100)).values()
        wakeups = [wakeup for queue in delivered for wakeup in queue]
        assert wakeups
        async with worker.system("test") as tx:
            taken = await tx.ledger.claim(wakeups, worker="test", lease_seconds=30, versions=versions)
        return sorted(lease.task.kind for lease, _ in taken)
    finally:
        await relay.close()
        await worker.close()


async def test_an_old_worker_reads_and_removes_nothing_that_may_be_history(api: Running, database: Database) -> None:
    """It would remove the object of a version that a document can go back to, and switch no document to its next."""
    tenant = await api.new_tenant("rolling")
    jobs = product_jobs(**dict.fromkeys(TaskKind, nothing))
    async with api.client(tenant["api_key"]) as client:
        for name in ("kept", "gone"):
            files = {"file": (f"{name}.txt", f"a sentence that is {name}".encode())}
            answer = await client.post("/api/v1/documents", files=files)
            path = f"/api/v1/documents/{answer.json()['document_id']}"
            if name == "kept":
                assert (await client.put(f"{path}/content", files={"file": ("b.txt", b"next")})).status_code == 202
            else:
                assert (await client.delete(path)).status_code == 202
    assert await claimed(database, BEFORE_VERSIONS) == []
    conn = await asyncpg.connect(database.superuser)
    await conn.execute("update tasks set due_at = now() where status = 'queued'")
    await conn.close()
    assert await claimed(database, jobs.versions) == ["ingest_content", "ingest_content", "purge_content"]
