"""Redis away and PostgreSQL restarted under a running relay and worker: they wait, then everything ends."""

import asyncio
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from dreamhub.accounts import find_binaries, servers_account
from dreamhub.embedded import Postgres, Valkey, free_port
from internal.entities.events import DocumentReady
from internal.entities.ids import new_id
from internal.entities.tasks import TaskStatus
from internal.repositories import migrate
from tests.ledger import Ledger, eventually, open_ledger
from tests.servers import SPACE, Database, reachable_folder, start, stop, until_ready

PASSWORD = "only-for-this-test"


class Fragile:
    """A server that a test stops and starts."""

    def __init__(self, server: Postgres | Valkey, log: Path) -> None:
        self._server = server
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._process = start(self._server.program(), self._log)
        await until_ready(self._server, self._log)

    def stop(self) -> None:
        """SIGQUIT: PostgreSQL's immediate shutdown, without a checkpoint or a word to its clients."""
        if self._process is not None:
            stop(self._process)
            self._process = None


class Outage:
    """A pair of servers of this test's own."""

    def __init__(self, folder: Path) -> None:
        binaries, account = find_binaries(), servers_account(folder / "postgres" / "data")
        names = {"binaries": binaries, "account": account, "name": folder.name}
        self.postgres = Postgres(folder / "postgres", port=free_port(), **names)
        self.valkey = Valkey(folder / "redis", port=free_port(), password=PASSWORD, **names)
        self.postgres.prepare(PASSWORD, durable=True)
        self.valkey.prepare()
        self.database_server = Fragile(self.postgres, folder / "log")
        self.redis_server = Fragile(self.valkey, folder / "log")

    def dsn(self, role: str) -> str:
        return self.postgres.dsn(role, PASSWORD, "outage")


@pytest.fixture(scope="module")
async def outage() -> AsyncGenerator[Outage]:
    with reachable_folder() as folder:
        found = Outage(folder)
        servers = (found.database_server, found.redis_server)
        for server in servers:
            await server.start()
        yield found
        for server in servers:
            server.stop()


@pytest.fixture
async def ledger(outage: Outage) -> AsyncGenerator[Ledger]:
    superuser = outage.postgres.dsn("postgres", PASSWORD, "postgres")
    await migrate.bootstrap(superuser, dict.fromkeys(migrate.LOGIN_ROLES, PASSWORD), database="outage")
    await migrate.migrate(outage.dsn(migrate.OWNER), SPACE)
    database = Database(
        name="outage",
        superuser=outage.dsn("postgres"),
        owner=outage.dsn(migrate.OWNER),
        app=outage.dsn(migrate.APP),
        worker=outage.dsn(migrate.WORKER),
        relay=outage.dsn(migrate.RELAY),
        backup=outage.dsn(migrate.BACKUP),
    )
    async with open_ledger(database, outage.valkey.url) as found:
        yield found


async def test_tasks_wait_out_a_redis_that_is_away(outage: Outage, ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    async with ledger.relay(), ledger.worker():
        before = await ledger.add(ctx, count=5)
        outage.redis_server.stop()
        during = await ledger.add(ctx, count=5)
        await asyncio.sleep(0.5)
        await outage.redis_server.start()
        for task in before + during:
            await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED, seconds=30)
    assert sorted(ledger.effects.order) == sorted(task.id for task in before + during)


async def test_events_have_their_places_and_leases_end_while_redis_is_away(outage: Outage, ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    (lost,) = await ledger.add(ctx)
    await ledger.inspector.execute(
        "update tasks set status = 'running', worker = 'gone', fence = 1, attempts = 1,"
        " dispatched_at = now() - interval '1 hour', lease_until = now() - interval '1 hour' where id = $1",
        lost.id,
    )
    outage.redis_server.stop()
    try:
        async with ledger.relay():
            async with ledger.app.tenant(ctx) as tx:
                for number in range(3):
                    await tx.outbox.add(DocumentReady(document_id=new_id(), chunk_count=number))

            async def numbered() -> bool:
                found = await ledger.inspector.fetch(
                    "select position from outbox where tenant_id = $1 order by position", ctx.tenant_id
                )
                return [row["position"] for row in found] == [1, 2, 3]

            await eventually(numbered)
            await ledger.until(ctx, lost.id, TaskStatus.QUEUED)
    finally:
        await outage.redis_server.start()
    async with ledger.relay(), ledger.worker():
        await ledger.until(ctx, lost.id, TaskStatus.SUCCEEDED, seconds=30)


async def test_tasks_outlive_a_database_that_is_stopped_at_once(outage: Outage, ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    async with ledger.relay(), ledger.worker():
        tasks = await ledger.add(ctx, count=10)
        await asyncio.to_thread(outage.database_server.stop)
        await outage.database_server.start()

        async def answers() -> bool:
            try:
                await ledger.get(ctx, tasks[0].id)
            except Exception:  # noqa: BLE001 - each of the pool's old connections fails once
                return False
            return True

        await eventually(answers)
        for task in tasks:
            await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED, seconds=30)
    assert set(ledger.effects.order) == {task.id for task in tasks}
