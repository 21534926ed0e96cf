"""Places worth dying at that no other test passes: a migration cut short, and a commit whose answer is lost."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from internal.handlers.routes import Api
from internal.providers.antivirus import open_antivirus
from internal.providers.blobs import open_blobs
from internal.repositories import migrate
from internal.repositories.store import Store, Tx
from internal.services.documents import DocumentService
from internal.services.embedder import Embedder
from pkg import config
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from tests.integration.api import is_problem, served, settings_for
from tests.servers import Database, Servers

ROOT = Path(__file__).resolve().parents[2]


def migration(database: Database, failpoints: str) -> int:
    environment = {"DB__OWNER_DSN": database.owner, "DREAMHUB_FAILPOINTS": failpoints}
    command = [sys.executable, "-P", "-m", "dreamhub", "migrate"]
    paths = {"PYTHONPATH": f"{ROOT / 'cmd'}:{ROOT}"}
    return subprocess.run(command, env={**os.environ, **paths, **environment}, check=False).returncode


@pytest.mark.parametrize(
    ("place", "applied"), [("migrate.before_record", 2), ("migrate.after_record", 3)], ids=["in one", "between two"]
)
async def test_a_migration_that_was_killed_goes_on_where_it_stopped(
    empty_database: Database, place: str, applied: int
) -> None:
    files = [item.name for item in migrate.read_all()]
    assert migration(empty_database, f"{place}=crash@3") == -signal.SIGKILL
    assert await migrate.pending(empty_database.app) == files[applied:]
    assert migration(empty_database, "") == 0
    assert await migrate.pending(empty_database.app) == []


class ForgetfulStore(Store):
    """Commits, and then loses the answer, as often as `lost` says."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lost = 0

    @asynccontextmanager
    async def tenant(self, ctx: Context) -> AsyncGenerator[Tx]:
        async with self._store.tenant(ctx) as tx:
            yield tx
        if "outbox" in vars(tx) and self.lost:  # only what is written reaches the outbox
            self.lost -= 1
            raise AppError(Code.DATABASE_UNAVAILABLE, "The answer to the commit was lost.")


async def test_an_upload_keeps_its_object_when_nobody_knows_whether_it_was_committed(
    servers: Servers, database: Database, tmp_path: Path
) -> None:
    settings = settings_for(database, servers.redis_url, tmp_path)
    forgetful: list[ForgetfulStore] = []

    def change(api: Api, store: Store, _embedder: Embedder) -> Api:
        forgetful.append(ForgetfulStore(store))
        return msgspec.structs.replace(api, documents=documents(forgetful[0], settings, tmp_path))

    async with served(settings, change) as api:
        tenant = await api.new_tenant("forgetful")
        async with api.client(tenant["api_key"]) as client:
            form: dict[str, Any] = {"file": ("note.txt", b"committed, but nobody was told")}
            forgetful[0].lost = 1
            is_problem(await client.post("/api/v1/documents", files=form), 503, "database.unavailable")
            again = await client.post("/api/v1/documents", files=form)
            assert (again.status_code, again.json()["duplicate"]) == (200, True)
            content = await client.get(f"/api/v1/documents/{again.json()['document_id']}/content")
            assert content.content == form["file"][1]
    assert len([file for file in (tmp_path / "blobs").rglob("*") if file.is_file()]) == 1
    assert await rows(database, "contents") == await rows(database, "documents") == 1


def documents(store: Store, settings: config.Settings, folder: Path) -> DocumentService:
    spool = folder / "spool"
    spool.mkdir()
    antivirus = open_antivirus(settings.scan)
    return DocumentService(store, open_blobs(settings.blobs), antivirus, spool=spool, max_file_mb=1)


async def rows(database: Database, table: str) -> int:
    conn = await asyncpg.connect(database.superuser)
    try:
        return await conn.fetchval(f"select count(*) from {table}")
    finally:
        await conn.close()
