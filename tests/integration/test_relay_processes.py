"""Relays in processes of their own: one is killed, one sleeps and wakes; nothing is lost, and one leads at a time."""

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import msgspec
import psutil
import pytest
from arq.connections import ArqRedis

from internal.entities.events import DocumentReady
from internal.entities.ids import new_id
from internal.repositories.broadcasts import events_channel
from internal.repositories.wakeup import RELAY_LOCK
from pkg.ctxutil import Context
from tests.ledger import Ledger, eventually, open_ledger
from tests.relay_process import relay_process
from tests.servers import Database


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url) as found:
        yield found


class Tenant:
    """What a tenant's listeners hear, as (position, id of the event)."""

    def __init__(self, ledger: Ledger, ctx: Context) -> None:
        self.ledger = ledger
        self.ctx = ctx
        self.heard: list[tuple[int, str]] = []
        self.written = 0

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        redis = ArqRedis.from_url(self.ledger.redis_url)
        line = redis.pubsub()
        await line.subscribe(events_channel(self.ctx.tenant_id))

        async def listen() -> None:
            async for message in line.listen():
                if message["type"] == "message":
                    event = msgspec.json.decode(message["data"])
                    self.heard.append((event["position"], event["id"]))

        hearing = asyncio.create_task(listen())
        try:
            yield
        finally:
            hearing.cancel()
            await asyncio.wait({hearing})
            await line.aclose()
            await redis.aclose(close_connection_pool=True)

    async def write(self, count: int) -> None:
        for _ in range(count):
            async with self.ledger.app.tenant(self.ctx) as tx:
                await tx.outbox.add(DocumentReady(document_id=new_id(), chunk_count=1))
            self.written += 1
            await asyncio.sleep(0.01)


async def leaders(ledger: Ledger) -> list[int]:
    """Client ports of the sessions that hold the relay's lock: never more than one."""
    rows = await ledger.inspector.fetch(
        "select a.client_port from pg_locks l join pg_stat_activity a on a.pid = l.pid"
        " where l.locktype = 'advisory' and l.granted and l.objid = $1 and a.datname = current_database()",
        RELAY_LOCK,
    )
    assert len(rows) <= 1
    return [row["client_port"] for row in rows]


async def leads(ledger: Ledger, process: subprocess.Popen[bytes]) -> bool:
    ports = {connection.laddr.port for connection in psutil.Process(process.pid).net_connections() if connection.laddr}
    return any(port in ports for port in await leaders(ledger))


async def test_a_killed_and_a_sleeping_leader_cost_no_event_and_no_task(ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    tenant = Tenant(ledger, ctx)

    def relay(failpoints: str = "") -> subprocess.Popen[bytes]:
        more = {"DREAMHUB_FAILPOINTS": failpoints} if failpoints else {}
        return stack.enter_context(relay_process(ledger.database, ledger.redis_url, **more))

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(tenant.listening())
        await stack.enter_async_context(ledger.worker())
        # Both end after events were handed on and before they are marked: the worst moment.
        doomed = relay("relay.after_broadcast=crash@5")
        await eventually(lambda: leads(ledger, doomed), seconds=60)
        sleeper = relay("relay.after_broadcast=stop@5*1")
        tasks = await ledger.add(ctx, count=20)
        writing = asyncio.create_task(tenant.write(400))

        await eventually(lambda: ended(doomed), seconds=60)
        assert doomed.returncode == -signal.SIGKILL
        await eventually(lambda: sleeps(sleeper), seconds=60)
        heir = relay()
        tasks += await ledger.add(ctx, count=20)
        await eventually(lambda: leads(ledger, heir), seconds=60)

        sleeper.send_signal(signal.SIGCONT)
        await writing
        await tenant.write(50)
        tasks += await ledger.add(ctx, count=20)
        await eventually(lambda: quiet(ledger), seconds=60)
        assert await leads(ledger, heir)
        assert sleeper.poll() is None
        heir.kill()
        await eventually(lambda: leads(ledger, sleeper), seconds=60)
        await tenant.write(5)
        await eventually(lambda: quiet(ledger), seconds=60)
        await asyncio.sleep(0.5)

    rows = await ledger.inspector.fetch(
        "select position, id from outbox where tenant_id = $1 order by position", ctx.tenant_id
    )
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) == tenant.written + len(tasks)
    assert set(tenant.heard) == {(row["position"], str(row["id"])) for row in rows}
    twice = sorted(position for (position, _), times in Counter(tenant.heard).items() if times > 1)
    assert max(Counter(tenant.heard).values()) == 2, "more than the two rounds that were cut off came again"
    assert 0 < len(twice) < len(rows) / 4
    assert sum(after - before > 1 for before, after in pairwise(twice)) <= 1, twice
    assert sorted(ledger.effects.order) == sorted(task.id for task in tasks)


async def ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


async def sleeps(process: subprocess.Popen[bytes]) -> bool:
    return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


async def quiet(ledger: Ledger) -> bool:
    """Everything is handed on and done."""
    await leaders(ledger)
    return await ledger.unfinished() == 0 and not await ledger.inspector.fetchval(
        "select exists (select 1 from outbox where published_at is null)"
    )
