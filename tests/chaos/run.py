"""One run: the stage is set, clients and faults follow their scripts, all is mended, and the history is judged."""

import asyncio
import sys
import time
from pathlib import Path

import asyncpg
import httpx
import msgspec

from tests.chaos import corpus, evidence, nursery, plan
from tests.chaos.checker import Verdict, judge
from tests.chaos.clients import Clients, Tenant
from tests.chaos.faults import Breaker
from tests.chaos.history import History, Limits
from tests.chaos.plan import Scale, Script
from tests.chaos.stage import Stage, opened
from tests.scanner import running_clamd

QUIET_SECONDS = 180.0
"""Until everything has ended after the last fault; a held task waits a minute at most."""
POLL_SECONDS = 0.5


class Outcome(msgspec.Struct, frozen=True):
    """A judged run."""

    history: History
    verdict: Verdict


def settings(scale: Scale, scanner: Path) -> dict[str, str]:
    """What the product is set to: short waits, small pools, and no limit in the way."""
    return {
        "TASKS__LEASE_SECONDS": str(scale.lease_seconds),
        "TASKS__BACKOFF_SECONDS": "0.2",
        "LIMITS__RATE_PER_MINUTE": "10000000",
        "DB__POOL_MAX": "6",
        "SCAN__CLAMD": f"unix:{scanner}/clamd.sock",
        "SCAN__TIMEOUT_SECONDS": "2",
        "AI__TIMEOUT_SECONDS": "3",
    }


async def run(seed: int, scale: Scale) -> Outcome:
    """Plays the schedule of `seed` and judges what came of it."""
    files = corpus.make(seed, scale.files)
    scripts, steps = plan.scripts(seed, scale, files), plan.steps(seed, scale)
    breaker: Breaker | None = None
    with running_clamd() as scanner:

        def born(name: str, pid: int, armed: str) -> None:
            if breaker is not None:
                breaker.born(name, pid, armed)

        def died(name: str, pid: int, code: int, armed: str) -> None:
            if breaker is not None:
                breaker.died(name, pid, code, armed)

        def arm(name: str, start: int) -> str:
            return plan.failpoints(seed, name, start) if breaker is not None else ""

        async with opened(plan.PROCESSES, settings(scale, scanner), arm=arm, born=born, died=died) as stage:
            tenants = [await _new_tenant(stage, name) for name in ("one", "two")]
            breaker = Breaker(stage, seed, scanner)
            clients = Clients(tenants, seed)
            await _play(stage, breaker, clients, scripts, steps)
            history = History(
                seed=seed,
                limits=Limits(batch=nursery.BATCH, lease_seconds=scale.lease_seconds),
                wanted=[wanted for script in scripts for wanted in script.wanted(tenants[script.tenant].id)],
                redriven=await _settle(stage, tenants),
            )
            history.embedded = dict(stage.endpoint.paid)
            history.calls, history.sightings, history.faults = clients.calls, clients.sightings, breaker.faults
            await evidence.read_rows(history, stage.superuser_dsn, stage.blobs)
            await evidence.ask(history, tenants, clients, scripts)
            await breaker.close()
            for tenant in tenants:
                await tenant.http.aclose()
            return Outcome(history, judge(history))


async def _play(
    stage: Stage, breaker: Breaker, clients: Clients, scripts: list[Script], steps: list[plan.Step]
) -> None:
    watchers = [asyncio.create_task(clients.watch()) for _ in range(2)]
    ingest = asyncio.create_task(clients.follow(scripts))
    await breaker.follow(steps)
    await breaker.disarm()
    say("all faults are over")
    _, late = await asyncio.wait({ingest}, timeout=QUIET_SECONDS)
    say("NOT every upload is answered" if late else "every upload is answered")
    await stage.until_answering()
    for task in (*watchers, ingest):
        task.cancel()
    await asyncio.gather(*watchers, ingest, return_exceptions=True)


async def _settle(stage: Stage, tenants: list[Tenant]) -> list[str]:
    """Waits until nothing is left to do. What was taken for poison is tried again, as a person would; its ids."""
    redriven: list[str] = []
    until = time.monotonic() + QUIET_SECONDS
    conn = await asyncpg.connect(stage.superuser_dsn)
    try:
        while time.monotonic() < until:
            left = await conn.fetchval(
                "select (select count(*) from tasks where status in ('queued', 'running'))"
                " + (select count(*) from outbox where published_at is null)"
                f" + ({evidence.UNSETTLED})"
            )
            dead = await conn.fetch(
                "select tenant_id::text, id::text from tasks where status = 'dead' and error_code = 'task.poison'"
            )
            for row in dead:
                (tenant,) = (tenant for tenant in tenants if tenant.id == row["tenant_id"])
                answer = await tenant.http.post(f"/api/v1/dead-letters/{row['id']}/redrive")
                if answer.status_code == httpx.codes.ACCEPTED:
                    redriven.append(row["id"])
            if not left and not dead:
                break
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await conn.close()
    say("nothing is left to do" if time.monotonic() < until else "NOT everything has ended")
    return redriven


async def _new_tenant(stage: Stage, name: str) -> Tenant:
    body = {"name": name, "owner_email": f"{name}@chaos.example", "owner_password": "correct horse battery"}
    async with httpx.AsyncClient(base_url=stage.url, trust_env=False, timeout=30) as client:
        headers = {"Authorization": f"Bearer {stage.platform_token}"}
        made = (await client.post("/api/v1/tenants", json=body, headers=headers)).raise_for_status().json()
    return Tenant(made["id"], made["api_key"], stage.url)


def say(what: str) -> None:
    """Progress, for a person who watches."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
