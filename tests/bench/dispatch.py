"""No-op tasks a second through the whole ledger, beside arq and saq: `python -m tests.bench.dispatch`.

Ours goes from a committed row through dispatch, Redis, claim, attempt, ending and event; relay and worker are processes
of their own. arq's and saq's jobs go through Redis only: arq with its defaults but for JSON and no kept results, saq
with its defaults but for as many jobs at a time as our worker takes. All of them on uvloop. They take turns, `--rounds`
times, and the medians count.
"""

import argparse
import asyncio
import logging
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from statistics import median
from typing import Any

import msgspec
import uvloop
from arq.connections import ArqRedis
from arq.worker import Worker as ArqWorker
from arq.worker import func
from saq import Queue as SaqQueue
from saq import Worker as SaqWorker

from internal.entities.tasks import Lease, Queue
from internal.repositories.store import open_store
from internal.repositories.wakeup import NewsLine
from internal.worker.jobs import Job, Jobs
from internal.worker.queue import TaskQueue
from internal.worker.relay import Relay
from internal.worker.runner import Worker
from pkg import logger
from pkg.config import Settings, load
from pkg.ctxutil import Context
from tests.ledger import Ledger, flush
from tests.servers import Database, borrowed_database, running_servers

TENANTS = 20
TASKS = 4_000
ARQ_JOBS = 1_000
SAQ_JOBS = 4_000
CONCURRENCY = 48


def bench_settings() -> Settings:
    return load(tasks={"window": 256, "inflight_per_tenant": 32, "concurrency": CONCURRENCY})


async def arq_default(redis_url: str, count: int) -> float:
    """Jobs a second of arq's worker as it comes."""
    redis = ArqRedis.from_url(redis_url)
    redis.job_serializer, redis.job_deserializer = msgspec.json.encode, msgspec.json.decode
    await redis.flushall()
    done = 0

    async def nothing(_ctx: dict[Any, Any]) -> None:
        nonlocal done
        done += 1

    for _ in range(count):
        await redis.enqueue_job("nothing")
    worker = ArqWorker(
        [func(nothing, name="nothing")],
        redis_pool=redis,
        handle_signals=False,
        keep_result=0,
        job_serializer=msgspec.json.encode,
        job_deserializer=msgspec.json.decode,
    )
    started = time.perf_counter()
    loop = asyncio.create_task(worker.async_run())
    while done < count:
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - started
    loop.cancel()
    await asyncio.wait({loop})
    await redis.aclose(close_connection_pool=True)
    return count / seconds


async def saq_rate(redis_url: str, count: int) -> float:
    """Jobs a second of saq's worker."""
    await flush(redis_url)
    queue = SaqQueue.from_url(redis_url)
    await queue.connect()
    done = 0

    async def nothing(_ctx: Any) -> None:
        nonlocal done
        done += 1

    for _ in range(count):
        await queue.enqueue("nothing")
    worker = SaqWorker(queue, [("nothing", nothing)], concurrency=CONCURRENCY)
    worker.SIGNALS = []
    started = time.perf_counter()
    loop = asyncio.create_task(worker.start())
    while done < count:
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - started
    worker.event.set()
    await asyncio.wait({loop})
    await queue.disconnect()
    return count / seconds


async def ledger_rate(database: Database, redis_url: str, count: int, workers: int) -> float:
    """Tasks a second from the first dispatch to the last ending."""
    ledger = Ledger(database, redis_url, bench_settings())
    await ledger.open()
    await flush(redis_url)
    await ledger.inspector.execute("truncate tasks, task_attempts, outbox")
    for _ in range(TENANTS):
        await ledger.add(await ledger.tenant(), "nothing", count=count // TENANTS)
    with ExitStack() as stack:
        started: list[subprocess.Popen[bytes]] = []
        roles = [("relay", database.relay), *[("worker", database.worker)] * workers]
        for role, dsn in roles:
            process = subprocess.Popen([sys.executable, "-m", "tests.bench.dispatch", "--role", role, dsn, redis_url])
            stack.callback(process.wait)
            started.append(process)
        while await ledger.unfinished():
            await asyncio.sleep(0.05)
        for process in started:
            process.terminate()
    first, last, total = await ledger.inspector.fetchrow(
        "select min(started_at), max(finished_at), count(*) filter (where status = 'succeeded') from tasks"
    )
    assert total == count
    await ledger.close()
    return count / (last - first).total_seconds()


async def run_role(role: str, dsn: str, redis_url: str) -> None:
    """A relay or a worker, until it is terminated."""
    settings = bench_settings()
    store, queue = await open_store(dsn), TaskQueue(redis_url)

    async def nothing(_ctx: Context, _lease: Lease) -> dict[str, Any]:
        return {}

    jobs = Jobs([Job(kind="nothing", version=1, handler=nothing)])
    process = (
        Relay(store, NewsLine(dsn), queue, settings)
        if role == "relay"
        else Worker(store, queue, jobs, settings, queues=(Queue.DEFAULT,))
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, process.stop)
    await process.run()
    await queue.close()
    await store.close()


async def compare(database: Database, redis_url: str, rounds: int) -> None:
    """Whoever is measured takes turns with the others, for the machine may have other work to do."""
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        rates.setdefault("arq", []).append(await arq_default(redis_url, ARQ_JOBS))
        rates.setdefault("saq", []).append(await saq_rate(redis_url, SAQ_JOBS))
        for workers in (1, 2):
            rates.setdefault(f"{workers} worker(s)", []).append(await ledger_rate(database, redis_url, TASKS, workers))
    found = {name: median(values) for name, values in rates.items()}
    arq, saq = found.pop("arq"), found.pop("saq")
    for name, rate in found.items():
        print(
            f"dispatch, {name}: {rate:7.0f} tasks/s through the ledger, {rate / arq:4.1f} x arq's default"
            f" ({arq:.0f} jobs/s), {rate / saq:5.2f} x saq ({saq:.0f} jobs/s)"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", nargs=3, metavar=("ROLE", "DSN", "REDIS"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logger.configure(log_format="json", level="warning", process="bench")
    for name in ("arq", "saq"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if arguments.role:
        uvloop.run(run_role(*arguments.role))
        return
    with running_servers() as servers:

        async def bench() -> None:
            async with borrowed_database(servers) as database:
                await compare(database, servers.redis_url, arguments.rounds)

        uvloop.run(bench())


if __name__ == "__main__":
    main()
