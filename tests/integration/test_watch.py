"""What stands still is told to whom it concerns, once, and once more when it is over."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection

from internal.entities.tasks import Queue
from internal.entities.waiting import WorkerReport
from internal.entities.watch import CALM_SECONDS, LOOK_SECONDS
from internal.repositories import workers
from internal.services.health import HealthService
from internal.worker.watch import Watch
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from tests.integration.api import Running, served_on
from tests.integration.following import socket_of
from tests.ledger import Ledger, eventually, open_ledger
from tests.relay_process import relay_process
from tests.servers import Database, Servers

MINUTE = 60.0


class Lookout:
    """Looks without waiting: between two of them the test lets ten seconds pass in the state."""

    def __init__(self, ledger: Ledger, *, cap: int = 10) -> None:
        self.ledger = ledger
        self.dependencies = {"redis": True, "clamd": True}
        checks = {name: self._check(name) for name in self.dependencies}
        self.watches = [
            Watch(
                ledger.relay_store,
                ledger.queue.workers,
                HealthService(checks, needed=(), fresh_seconds=0),
                cap=cap,
            )
            for _ in range(2)
        ]
        self._turns = 0

    def _check(self, name: str):
        async def check() -> None:
            if not self.dependencies[name]:
                raise AppError(Code.SCAN_UNAVAILABLE, "down")

        return check

    async def look(self, times: int = 1) -> None:
        """By one relay after the other."""
        for _ in range(times):
            self._turns += 1
            assert await self.watches[self._turns % 2].look()
            await self.pass_by(LOOK_SECONDS)

    async def pass_by(self, seconds: float) -> None:
        state = msgspec.json.decode(await self.ledger.inspector.fetchval("select state from watch"))
        for look in state["looks"]:
            look["at"] -= seconds
        for condition in state["conditions"].values():
            condition["since"] -= seconds
            condition["seen"] -= seconds
        await self.ledger.inspector.execute(
            "update watch set state = $1, watched_at = watched_at - make_interval(secs => $2)",
            msgspec.json.encode(state).decode(),
            seconds,
        )

    async def alerts(self, ctx: Context) -> list[tuple[str, bool]]:
        rows = await self.ledger.inspector.fetch(
            "select payload from outbox where tenant_id = $1 and kind = 'alert.raised' order by created_at",
            ctx.tenant_id,
        )
        found = [msgspec.json.decode(row["payload"]) for row in rows]
        return [(event["name"], event["active"]) for event in found]

    async def work(self, queue: Queue = Queue.DEFAULT) -> None:
        await self.ledger.queue.workers.beat(WorkerReport(name="host:1:abc", queues=[queue], slots=1), 600)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that has just been emptied needn't wait for workers that may not have told yet."""
    monkeypatch.setattr(workers, "COMPLETE_SECONDS", 0.0)


@pytest.fixture
async def ledger(database: Database, redis_url: str) -> AsyncGenerator[Ledger]:
    async with open_ledger(database, redis_url) as found:
        yield found


@pytest.fixture
def lookout(ledger: Ledger) -> Lookout:
    return Lookout(ledger)


async def late(ledger: Ledger) -> None:
    """Every queued task has been due for a while."""
    await ledger.inspector.execute("update tasks set due_at = now() - interval '20 seconds' where status = 'queued'")


async def test_only_tenants_with_tasks_hear_of_a_queue_without_worker(lookout: Lookout) -> None:
    ledger = lookout.ledger
    ctx, idle, elsewhere = [await ledger.tenant() for _ in range(3)]
    await ledger.add(ctx)
    await ledger.add(elsewhere, queue=Queue.BATCH)
    await lookout.work(Queue.BATCH)
    await late(ledger)
    await lookout.look(5)
    assert sorted(await lookout.alerts(ctx)) == [("queue.no_worker.default", True), ("queue.soft_deadlock", True)]
    assert await lookout.alerts(elsewhere) == [("queue.soft_deadlock", True)]
    assert await lookout.alerts(idle) == []
    await ledger.add(idle)
    await lookout.look()
    assert sorted(await lookout.alerts(idle)) == [("queue.no_worker.default", True), ("queue.soft_deadlock", True)]
    await ledger.inspector.execute("update tasks set status = 'cancelled', finished_at = now()")
    await lookout.look(4)
    assert sorted(await lookout.alerts(ctx)) == [
        ("queue.no_worker.default", False),
        ("queue.no_worker.default", True),
        ("queue.soft_deadlock", False),
        ("queue.soft_deadlock", True),
    ]
    assert await ledger.inspector.fetchval("select count(*) from alerts") == 0


async def test_many_due_for_one_that_runs(lookout: Lookout) -> None:
    ctx = await lookout.ledger.tenant()
    await lookout.work()
    await lookout.ledger.inspector.execute(
        "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries,"
        " status, lease_until) select $1, gen_random_uuid(), 'note', 1, 'default', $2, 'owner', '', '', 5,"
        " case when n = 0 then 'running' else 'queued' end, case when n = 0 then now() + interval '1 hour' end"
        " from generate_series(0, 501) n",
        ctx.tenant_id,
        ctx.user_id,
    )
    watch = Lookout(lookout.ledger, cap=10_000)
    await watch.look(3)
    assert await watch.alerts(ctx) == [("queue.soft_deadlock", True)]


async def test_a_dependency_that_is_down_is_everybodys(lookout: Lookout) -> None:
    first, second = await lookout.ledger.tenant(), await lookout.ledger.tenant()
    lookout.dependencies["clamd"] = False
    await lookout.look(3)
    assert await lookout.alerts(first) == []
    await lookout.look(3)
    assert await lookout.alerts(first) == await lookout.alerts(second) == [("dependency.down.clamd", True)]
    lookout.dependencies["clamd"] = True
    await lookout.look(4)
    assert await lookout.alerts(first) == [("dependency.down.clamd", True), ("dependency.down.clamd", False)]


async def test_a_tenant_hears_of_its_own_cap_and_dead_letters_only(lookout: Lookout) -> None:
    ledger = lookout.ledger
    full, failing, other = [await ledger.tenant() for _ in range(3)]
    await lookout.work()
    await ledger.add(full, count=9)
    await ledger.add(failing, count=10)
    for change in (
        "'running', lease_until = now()",
        "'dead', lease_until = null, finished_at = now()",
    ):
        await ledger.inspector.execute(f"update tasks set status = {change} where tenant_id = $1", failing.tenant_id)
    await ledger.inspector.execute(
        "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries,"
        " status, lease_until) values ($1, gen_random_uuid(), 'note', 1, 'default', $2, 'owner', '', '', 5, 'running',"
        " now() + interval '1 hour')",
        other.tenant_id,
        other.user_id,
    )
    await lookout.look(3)
    assert await lookout.alerts(full) == [("tenant.near_cap", True)]
    assert await lookout.alerts(failing) == [("dead_letters.growing", True)]
    assert await lookout.alerts(other) == []
    async with ledger.app.system("test") as tx:
        found = await tx.installation.get()
    assert found.last is not None
    assert found.last.alerts == {"tenant.near_cap": 1, "dead_letters.growing": 1}
    assert found.last.dead == 10
    assert str(full.tenant_id) not in repr(found)


async def test_one_relay_looks_at_a_time(lookout: Lookout) -> None:
    assert sorted(await asyncio.gather(*(watch.look() for watch in lookout.watches * 3))) == [False] * 5 + [True]


async def test_alerts_outlive_a_relay_and_redis_that_is_away_hides_none(lookout: Lookout, ledger: Ledger) -> None:
    ctx = await ledger.tenant()
    await ledger.add(ctx)
    await late(ledger)
    lookout.dependencies["redis"] = False
    await lookout.look(6)
    heir = Lookout(ledger)
    heir.dependencies["redis"] = False
    await heir.look(6)
    told = await heir.alerts(ctx)
    assert sorted(told) == [
        ("dependency.down.redis", True),
        ("queue.no_worker.default", True),
        ("queue.soft_deadlock", True),
    ]


async def metric(api: Running, name: str) -> float | None:
    async with api.client() as client:
        text = (await client.get("/metrics")).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])


async def told(socket: ClientConnection, name: str, *, active: bool) -> dict[str, Any]:
    """The next notice of this alert, however long it takes."""
    async for text in socket:
        found = json.loads(text)
        if found["type"] == "alert" and (found["data"]["name"], found["data"]["active"]) == (name, active):
            return found["data"]
    raise EOFError


@pytest.mark.long
async def test_followers_and_metrics_know_within_a_minute(
    servers: Servers, database: Database, ledger: Ledger, tmp_path: Path
) -> None:
    """A real relay, no worker: then one comes."""
    async with served_on(servers, database, tmp_path) as api:
        tenant = await api.new_tenant("stuck")
        with relay_process(database, servers.redis_url):
            async with socket_of(api.url, tenant["api_key"]) as socket, api.client(tenant["api_key"]) as client:
                async with asyncio.timeout(MINUTE):
                    answer = await client.post("/api/v1/documents", files={"file": ("a.txt", b"some text")})
                    assert answer.status_code == 202
                    assert await metric(api, "soft_deadlock") in (None, 0.0)
                    await told(socket, "queue.soft_deadlock", active=True)
                    await eventually(lambda: equals(api, "soft_deadlock", 1.0), seconds=10)
                    await eventually(lambda: equals(api, 'alerts_active{name="queue.no_worker.default"}', 1.0))
                assert await metric(api, 'queue_due{queue="default"}') == 1.0
                async with ledger.worker(ledger.jobs(ingest_content=ledger.effects.note)):
                    async with asyncio.timeout(MINUTE):
                        await told(socket, "queue.soft_deadlock", active=False)
                        await eventually(lambda: equals(api, "soft_deadlock", 0.0), seconds=10)
    assert CALM_SECONDS + 2 * LOOK_SECONDS < MINUTE


async def equals(api: Running, name: str, value: float) -> bool:
    return await metric(api, name) == value
