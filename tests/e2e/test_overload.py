"""Ten times what the product can do, or allows: it refuses with 429 and a true Retry-After, and keeps what it takes."""

import asyncio
import secrets
import time
from collections import Counter
from statistics import quantiles

import asyncpg
import httpx
import msgspec
import pytest

from tests.e2e.product import Product, running_product

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

CAP = 40
FLOOD_SECONDS = 20.0
TIMES = 10
SENDERS = 8
AT_MOST = 2.0
"""Times the usual p95."""
ALLOWED = 600
"""Requests a minute of a key: the default."""


class Sent(msgspec.Struct, frozen=True):
    """One upload's answer; `wait` is its Retry-After."""

    status: int
    code: str
    wait: float
    task: str


def p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1]


async def upload(client: httpx.AsyncClient) -> Sent:
    text = " ".join(secrets.token_hex(4) for _ in range(60)).encode()
    answer = await client.post("/api/v1/documents", files={"file": ("a.txt", text)})
    body = answer.json()
    return Sent(
        answer.status_code, body.get("code", ""), float(answer.headers.get("Retry-After", 0)), body.get("task_id", "")
    )


def speaker(product: Product, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=product.up["url"],
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
        trust_env=False,
        limits=httpx.Limits(max_connections=SENDERS),
    )


async def unfinished(conn: asyncpg.Connection, tenant: str) -> int:
    return await conn.fetchval(
        "select count(*) from tasks where tenant_id = $1::uuid and status in ('queued', 'running')", tenant
    )


async def drained(conn: asyncpg.Connection, tenant: str) -> None:
    until = time.monotonic() + 300
    while await unfinished(conn, tenant):
        assert time.monotonic() < until, "the queue never emptied"
        await asyncio.sleep(0.1)


async def outcomes(conn: asyncpg.Connection, sent: list[Sent]) -> tuple[Counter[str], list[float]]:
    """States of the tasks that were answered for, and the seconds that each took from its upload."""
    rows = await conn.fetch(
        "select status, extract(epoch from finished_at - created_at)::float8 as took from tasks where id = any($1)",
        [item.task for item in sent],
    )
    return Counter(row["status"] for row in rows), [row["took"] for row in rows]


async def fill(client: httpx.AsyncClient, conn: asyncpg.Connection, tenant: str) -> tuple[list[Sent], float]:
    """Keeps the queue nearly full without ever being refused; the answers, and documents a second."""
    sent: list[Sent] = []
    began = time.monotonic()
    while time.monotonic() < began + FLOOD_SECONDS:
        room = CAP - 2 - await unfinished(conn, tenant)
        sent += await asyncio.gather(*(upload(client) for _ in range(max(0, room))))
        await asyncio.sleep(0.02)
    await drained(conn, tenant)
    return sent, len(sent) / (time.monotonic() - began)


async def flood(client: httpx.AsyncClient, rate: float) -> list[Sent]:
    """So many uploads a second, whatever is answered."""
    began, due = time.monotonic(), 0
    running: set[asyncio.Task[Sent]] = set()
    sent: list[Sent] = []
    while time.monotonic() < began + FLOOD_SECONDS:
        while due < (time.monotonic() - began) * rate and len(running) < SENDERS * 4:
            running.add(asyncio.create_task(upload(client)))
            due += 1
        done, running = await asyncio.wait(running, timeout=0.01) if running else (set(), running)
        sent += [task.result() for task in done]
        await asyncio.sleep(0)
    return sent + list(await asyncio.gather(*running))


async def test_ten_times_the_uploads_that_can_be_read_are_refused_but_for_what_is_taken() -> None:
    with running_product(LIMITS__QUEUE_DEPTH=str(CAP), LIMITS__BATCHES="10", LIMITS__RATE_PER_MINUTE="1000000") as up:
        made = up.new_tenant("overload")
        conn = await asyncpg.connect(up.up["postgres_dsn"])
        async with speaker(up, made["api_key"]) as client:
            usual, rate = await fill(client, conn, made["id"])
            found = await flood(client, TIMES * rate)
            last = [item for item in found if item.status == 429][-1]
            await asyncio.sleep(last.wait)
            after = await upload(client)
            await drained(conn, made["id"])
        taken = [item for item in found if item.status == 202]
        _states, before = await outcomes(conn, usual)
        states, during = await outcomes(conn, taken)
        await conn.close()
    refused = [item for item in found if item.status != 202]
    print(
        f"{rate:.1f} documents/s, p95 {p95(before):.2f} s; offered {len(found) / FLOOD_SECONDS:.0f}/s:"
        f" {len(taken)} taken, {len(refused)} refused, p95 {p95(during):.2f} s; told to wait"
        f" {min(item.wait for item in refused):.0f} to {max(item.wait for item in refused):.0f} s"
    )
    assert len(found) > TIMES / 2 * rate * FLOOD_SECONDS, "the flood was none"
    assert {(item.status, item.code) for item in refused} == {(429, "queue.full")}
    assert all(item.wait >= 1 for item in refused)
    assert states == {"succeeded": len(taken)}
    assert len(taken) > rate * FLOOD_SECONDS / 2, "refusing left no time for work"
    assert after.status == 202, "who waits as long as told is taken"
    assert p95(during) <= AT_MOST * p95(before)


async def test_ten_times_the_requests_that_a_key_may_make_are_refused_but_for_its_share() -> None:
    with running_product() as up:
        made = up.new_tenant("flooded")
        async with speaker(up, made["api_key"]) as client:
            body = {"query": "anything", "mode": "keyword"}

            async def search() -> tuple[int, float, float]:
                began = time.monotonic()
                answer = await client.post("/api/v1/search", json=body)
                assert answer.status_code in (200, 429), answer.text
                return answer.status_code, float(answer.headers.get("Retry-After", 0)), time.monotonic() - began

            async def several() -> list[tuple[int, float, float]]:
                return await asyncio.gather(*(search() for _ in range(SENDERS)))

            quiet: list[float] = []
            while len(quiet) < ALLOWED / 3:
                quiet += [took for _status, _wait, took in await several()]
                await asyncio.sleep(SENDERS / (ALLOWED / 60))
            began, asked = time.monotonic(), list[tuple[int, float, float]]()
            while time.monotonic() < began + FLOOD_SECONDS:
                asked += await several()
                await asyncio.sleep(max(0.0, began + len(asked) / (TIMES * ALLOWED / 60) - time.monotonic()))
            for _ in range(3):
                while (refusal := await search())[0] == 200:
                    pass
                await asyncio.sleep(refusal[1])
                assert (await search())[0] == 200, "who waits as long as told is answered"
    taken = [took for status, _wait, took in asked if status == 200]
    waits = [wait for status, wait, _took in asked if status == 429]
    print(
        f"p95 {p95(quiet) * 1000:.1f} ms; offered {len(asked) / FLOOD_SECONDS:.0f}/s: {len(taken)} answered, p95"
        f" {p95(taken) * 1000:.1f} ms, {len(waits)} refused, told to wait {min(waits):.0f} to {max(waits):.0f} s"
    )
    assert min(waits) >= 1
    assert len(taken) <= ALLOWED + ALLOWED / 60 * (FLOOD_SECONDS + 5)
    assert p95(taken) <= AT_MOST * p95(quiet)
