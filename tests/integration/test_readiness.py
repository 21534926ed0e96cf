"""/readyz while one dependency after the other is really away."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import httpx
import pytest

from dreamhub.accounts import find_binaries, servers_account
from dreamhub.embedded import Valkey, free_port
from pkg import config
from tests.integration.api import Running, served, settings_for
from tests.scanner import running_clamd
from tests.servers import Database, Servers, launched, reachable_folder

SECONDS = 30.0
ALWAYS_DOWN = {"models"}
"""No model process runs in these tests."""


@pytest.fixture
def clamd() -> Generator[Path]:
    with running_clamd() as found:
        yield found


@pytest.fixture
async def valkey() -> AsyncGenerator[Valkey]:
    """A server of this test's own, prepared and not started."""
    with reachable_folder() as folder:
        binaries, account = find_binaries(), servers_account(folder)
        options = {"binaries": binaries, "account": account, "name": folder.name, "port": free_port()}
        found = Valkey(folder / "redis", password="only-here", **options)
        found.prepare()
        yield found


@pytest.fixture
async def api(database: Database, valkey: Valkey, clamd: Path, tmp_path: Path) -> AsyncGenerator[Running]:
    settings = settings_for(database, valkey.url, tmp_path).model_copy(
        update={"scan": config.Scan(clamd=f"unix:{clamd / 'clamd.sock'}")}
    )
    async with served(settings) as found:
        yield found


async def told(api: Running, *down: str) -> httpx.Response:
    """The answer in which just these are down."""
    async with asyncio.timeout(SECONDS), api.client() as client:
        while True:
            answer = await client.get("/readyz")
            checks = answer.json()["checks"]
            if {name for name, found in checks.items() if found["status"] == "down"} == {*down} | ALWAYS_DOWN:
                return answer
            await asyncio.sleep(0.1)


def is_(answer: httpx.Response, status: str) -> None:
    assert (answer.status_code, answer.json()["status"]) == (503 if status == "unready" else 200, status)
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)


async def test_each_dependency_that_is_away_is_named_and_is_back_when_it_is_back(
    api: Running, servers: Servers, database: Database, valkey: Valkey, clamd: Path, tmp_path: Path
) -> None:
    async with launched(valkey, tmp_path / "log"):
        is_(await told(api), "degraded")
    is_(await told(api, "redis"), "degraded")
    async with launched(valkey, tmp_path / "log"):
        await told(api)

        # The scanner stands still, then is gone.
        daemon = int((clamd / "clamd.pid").read_text())
        os.kill(daemon, signal.SIGSTOP)
        is_(await told(api, "clamd"), "degraded")
        os.kill(daemon, signal.SIGCONT)
        await told(api)

        # Where the objects were lies something else.
        (tmp_path / "blobs").rename(tmp_path / "elsewhere")
        (tmp_path / "blobs").touch()
        is_(await told(api, "objects"), "degraded")
        (tmp_path / "blobs").unlink()
        (tmp_path / "elsewhere").rename(tmp_path / "blobs")
        await told(api)

        # A database that is older than this version.
        conn = await asyncpg.connect(database.superuser)
        rows = await conn.fetch("delete from schema_migrations where name > '0010' returning name, digest")
        assert rows
        is_(await told(api, "migrations"), "unready")
        await conn.executemany(
            "insert into schema_migrations (name, digest) values ($1, $2)", [tuple(row) for row in rows]
        )
        await conn.close()
        await told(api)

        async with AsyncExitStack() as stack:
            conn = await asyncpg.connect(servers.superuser_dsn())
            stack.push_async_callback(conn.close)
            await conn.execute(f"alter database {database.name} with allow_connections false")
            await conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", database.name
            )
            is_(await told(api, "postgres", "migrations"), "unready")
            await conn.execute(f"alter database {database.name} with allow_connections true")
        is_(await told(api), "degraded")
