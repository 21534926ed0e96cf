"""How fair the queue is and how true its forecasts are: `python -m tests.bench.queue [--quick]`.

Jobs sleep for a known time, so that nothing but the queue decides. Delay: a single file of a small tenant while another
has ten thousand queued, against the same file on an idle system. Estimates: of tasks drawn from a mixed backlog of two
tenants, told while they wait, against when they really started.
"""

import argparse
import asyncio
import random
import time
from datetime import UTC, datetime
from statistics import median, quantiles
from typing import Any

from internal.entities.tasks import Lease, TaskStatus
from internal.services.forecasts import ForecastService
from internal.worker import runner
from internal.worker.jobs import Jobs
from pkg import logger
from pkg.ctxutil import Context
from tests.bench.ratios import Ratio
from tests.ledger import Ledger, open_ledger
from tests.servers import Database, borrowed_database, running_servers

SLOTS = 4
SECONDS = {"quick": 0.2, "slow": 0.6}
BACKLOG = 10_000


def jobs(ledger: Ledger) -> Jobs:
    async def run(_ctx: Context, lease: Lease) -> dict[str, Any]:
        await asyncio.sleep(SECONDS[lease.task.kind])
        return {}

    return ledger.jobs(quick=run, slow=run)


async def fill(ledger: Ledger, ctx: Context, count: int, kinds: list[str]) -> None:
    """Queues tasks of these kinds in turn, past the API, which would take minutes."""
    await ledger.inspector.execute(
        "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries,"
        " due_at) select $1, gen_random_uuid(), ($4::text[])[1 + n % array_length($4, 1)], 1, 'default', $2, 'owner',"
        " '', '', 5, clock_timestamp() from generate_series(1, $3) n",
        ctx.tenant_id,
        ctx.user_id,
        count,
        kinds,
    )


async def single(ledger: Ledger, ctx: Context) -> float:
    """Seconds from the upload of one file to its end."""
    [task] = await ledger.add(ctx, "quick")
    done = await ledger.until(ctx, task.id, TaskStatus.SUCCEEDED, seconds=120)
    assert done.finished_at is not None
    return (done.finished_at - done.created_at).total_seconds()


async def fairness(ledger: Ledger, rounds: int) -> list[Ratio]:
    crowd, small = await ledger.tenant(), await ledger.tenant()
    async with ledger.relay(), ledger.worker(jobs(ledger), concurrency=SLOTS):
        idle = median([await single(ledger, small) for _ in range(rounds)])
        await fill(ledger, crowd, BACKLOG, ["quick"])
        await asyncio.sleep(3)
        busy = [await single(ledger, small) for _ in range(rounds)]
        [last] = await ledger.inspector.fetch(
            "select id from tasks where tenant_id = $1 and status = 'queued' order by due_at desc, id desc limit 1",
            crowd.tenant_id,
        )
        forecasts = ForecastService(ledger.app, ledger.queue.workers)
        asked = []
        for _ in range(20):
            task = await ledger.get(crowd, last["id"])
            began = time.perf_counter()
            await forecasts.waiting(crowd, task)
            asked.append((time.perf_counter() - began) * 1000)
    await ledger.inspector.execute("delete from task_attempts; delete from tasks")
    print(f"single file: idle {idle:.2f} s, beside {BACKLOG} of another {median(busy):.2f} s, worst {max(busy):.2f}")
    return [
        Ratio(
            "queue: delay beside 10,000 of another tenant / idle time", (median(busy) - idle) / idle, 2.0, at_most=True
        ),
        Ratio("queue: worst delay / idle time", (max(busy) - idle) / idle, 2.0, at_most=True),
        Ratio("queue: asking why a task waits among 10,000, ms, p50", median(asked), 20.0, at_most=True),
    ]


async def estimates(ledger: Ledger, count: int) -> list[Ratio]:
    """Errors of the estimated starts and ends, as shares of how long the tasks really waited and took."""
    first, second = await ledger.tenant(), await ledger.tenant()
    forecasts = ForecastService(ledger.app, ledger.queue.workers)
    starts, ends = [], []
    async with ledger.relay(), ledger.worker(jobs(ledger), concurrency=SLOTS):
        await fill(ledger, first, count, ["quick", "slow", "quick"])
        await fill(ledger, second, count // 3, ["slow"])
        await asyncio.sleep(2 * runner.BEAT_SECONDS + 1)  # until the worker has told of its first tasks
        asked: list[tuple[Any, ...]] = []
        for ctx in (first, second):
            rows = await ledger.inspector.fetch(
                "select id from tasks where tenant_id = $1 and status = 'queued'", ctx.tenant_id
            )
            for row in random.Random(7).sample(rows, min(30, len(rows))):
                task = await ledger.get(ctx, row["id"])
                now = datetime.now(UTC)
                waiting = await forecasts.waiting(ctx, task)
                if waiting is not None and waiting.estimated_start_at and waiting.estimated_end_at:
                    asked.append((ctx, task.id, now, waiting.estimated_start_at, waiting.estimated_end_at))
        for ctx, task_id, now, start, end in asked:
            done = await ledger.until(ctx, task_id, TaskStatus.SUCCEEDED, seconds=300)
            assert done.started_at is not None
            assert done.finished_at is not None
            for errors, told, real in ((starts, start, done.started_at), (ends, end, done.finished_at)):
                errors.append(abs((told - real).total_seconds()) / max(1.0, (real - now).total_seconds()))
    print(f"{len(asked)} estimates; error of the start: median {median(starts):.2f}, of the end {median(ends):.2f}")
    return [
        Ratio("queue: estimated start, p90 error / real wait", quantiles(starts, n=10)[-1], 0.5, at_most=True),
        Ratio("queue: estimated end, p90 error / real time", quantiles(ends, n=10)[-1], 0.5, at_most=True),
    ]


async def measure(database: Database, redis_url: str, *, quick: bool) -> None:
    async with open_ledger(database, redis_url, inflight_per_tenant=4, window=64, lease_seconds=15.0) as ledger:
        ratios = await fairness(ledger, 3 if quick else 10)
        ratios += await estimates(ledger, 120 if quick else 600)
    for ratio in ratios:
        print(ratio.line())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    logger.configure(log_format="json", level="error", process="bench")
    with running_servers() as servers:

        async def bench() -> None:
            async with borrowed_database(servers) as database:
                await measure(database, servers.redis_url, quick=arguments.quick)

        asyncio.run(bench())


if __name__ == "__main__":
    main()
