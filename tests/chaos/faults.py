"""Breaks what the schedule says, mends it again, and writes down when."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from internal.entities.tasks import Queue, Wakeup
from internal.worker.queue import TaskQueue
from pkg.apperr import AppError
from tests.chaos.history import Fault
from tests.chaos.plan import Step
from tests.chaos.stage import Stage

BACKLOG_SECONDS = 90.0
POLL_SECONDS = 0.25
DELIVERIES = 10
LYING = (
    "select id, queue, dispatches from tasks where status = 'queued' and dispatched_at is not null"
    " and ($1::uuid[] is null or id = any($1)) limit 200"
)


class Breaker:
    """Carries out steps on a stage; each runs by itself, so that a pause doesn't hold up a kill."""

    def __init__(self, stage: Stage, seed: int, scanner: Path) -> None:
        self.faults: list[Fault] = []
        self._stage = stage
        self._socket = scanner / "clamd.sock"
        self._clamd = _clamd_pid(scanner)
        self._draw = random.Random(f"{seed}/faults")
        self._queue = TaskQueue(stage.redis_url)
        self._under_way: set[asyncio.Task[None]] = set()
        self._actions: dict[str, Callable[[Step], Awaitable[None]]] = {
            "kill": self._kill,
            "term": self._term,
            "pause": self._pause,
            "flush": self._flush,
            "redis": self._redis,
            "postgres": self._postgres,
            "cut": self._cut,
            "clamd": self._scanner,
            "endpoint": self._endpoint,
            "repeat": self._repeat,
        }

    async def follow(self, steps: list[Step]) -> None:
        """Does each step at its time; returns when all are over and mended."""
        began = time.monotonic()
        for step in steps:
            await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
            task = asyncio.create_task(self._actions[step.kind](step))
            self._under_way.add(task)
        await asyncio.gather(*self._under_way)

    async def close(self) -> None:
        await self._queue.close()

    async def disarm(self) -> None:
        """No failpoint is left after this."""
        for name in self._stage.disarm():
            await self._kill(Step(0, "kill", name))

    def born(self, name: str, pid: int, armed: str) -> None:
        """A process began, perhaps with failpoints."""
        if armed:
            self._note(kind="armed", target=f"{name} {armed}", pid=pid)

    def died(self, name: str, pid: int, code: int, armed: str) -> None:
        """A process ended or stopped; where nobody of ours did it, a failpoint did."""
        if code == -signal.SIGSTOP:
            until = time.time() + self._stage.patience
            self._note(kind="stopped", target=f"{name} {armed}", pid=pid, until=until)
        elif code == -signal.SIGKILL and not any(fault.pid == pid and fault.kind == "kill" for fault in self.faults):
            self._note(kind="crash", target=f"{name} {armed}", pid=pid)

    async def _kill(self, step: Step) -> None:
        while not (pid := self._stage.signal(step.target, signal.SIGKILL)):
            await asyncio.sleep(0.02)  # between two lives
        self._note(kind="kill", target=step.target, pid=pid)

    async def _term(self, step: Step) -> None:
        if pid := self._stage.signal(step.target, signal.SIGTERM):
            self._note(kind="term", target=step.target, pid=pid)

    async def _pause(self, step: Step) -> None:
        process = self._stage.processes[step.target]
        while not process.pid or process.planned:
            await asyncio.sleep(0.02)
        process.planned = True
        pid = self._stage.signal(step.target, signal.SIGSTOP)
        self._note(kind="pause", target=step.target, pid=pid, until=time.time() + step.seconds)
        await asyncio.sleep(step.seconds)
        self._stage.resume(step.target, pid)
        if process.pid == pid:
            process.planned = False

    async def _flush(self, _step: Step) -> None:
        async with self._stage.redis.lock:
            redis = Redis.from_url(self._stage.redis_url)
            lying = await self._lying(None)
            at = time.time()
            try:
                await redis.flushall()
            finally:
                await redis.aclose()
        took = await self._until_back({wakeup.task_id for wakeups in lying.values() for wakeup in wakeups}, at)
        self.faults.append(Fault(at=at, kind="flush", took=took))

    async def _until_back(self, tasks: set[object], since: float) -> float | None:
        """Seconds until each of these tasks was claimed or lies in Redis again; None when that took too long."""
        while time.time() < since + BACKLOG_SECONDS:
            with contextlib.suppress(AppError, OSError, asyncpg.PostgresError):
                left = await self._lying(list(tasks))
                if not [task for queue, wakeups in left.items() for task in await self._queue.missing(queue, wakeups)]:
                    return round(time.time() - since, 2)
            await asyncio.sleep(POLL_SECONDS)
        return None

    async def _lying(self, tasks: list[object] | None) -> dict[Queue, list[Wakeup]]:
        conn = await self._connect()
        try:
            found: dict[Queue, list[Wakeup]] = {}
            for row in await conn.fetch(LYING, tasks):
                found.setdefault(Queue(row["queue"]), []).append(Wakeup(row["id"], row["dispatches"]))
            return found
        finally:
            await conn.close()

    async def _redis(self, step: Step) -> None:
        await self._restart("redis", step)

    async def _postgres(self, step: Step) -> None:
        await self._restart("postgres", step)

    async def _restart(self, kind: str, step: Step) -> None:
        server = self._stage.postgres if kind == "postgres" else self._stage.redis
        async with server.lock:
            at = time.time()
            await server.stop()
            await asyncio.sleep(step.seconds)
            await server.start()
            self._note(at=at, kind=kind, until=time.time())

    async def _cut(self, step: Step) -> None:
        """Ends sessions of the product in the middle of whatever they do."""
        conn = await self._connect()
        try:
            rows = await conn.fetch("select pid from pg_stat_activity where usename like 'dreamhub%'")
            count = {"one": 1, "half": len(rows) // 2, "all": len(rows)}[step.target]
            for row in self._draw.sample(rows, min(count, len(rows))):
                await conn.fetchval("select pg_terminate_backend($1)", row["pid"])
        finally:
            await conn.close()
        self._note(kind="cut", target=step.target)

    async def _scanner(self, step: Step) -> None:
        """A scanner that takes calls and doesn't answer, or one that nobody can call."""
        away = self._socket.with_name(f"away-{step.at}")
        if step.target == "pause":
            os.kill(self._clamd, signal.SIGSTOP)
        elif self._socket.exists():
            self._socket.rename(away)
        self._note(kind="clamd", target=step.target, until=time.time() + step.seconds)
        await asyncio.sleep(step.seconds)
        if step.target == "pause":
            os.kill(self._clamd, signal.SIGCONT)
        elif away.exists():
            away.rename(self._socket)

    async def _endpoint(self, step: Step) -> None:
        self._stage.endpoint.turn(step.target)
        self._note(kind="endpoint", target=step.target, until=time.time() + step.seconds)
        await asyncio.sleep(step.seconds)
        self._stage.endpoint.turn("ok")

    async def _repeat(self, _step: Step) -> None:
        """Delivers wake-ups of tasks that wait or run again and again, to whichever worker asks."""
        conn = await self._connect()
        try:
            rows = await conn.fetch(
                "select id, queue, dispatches from tasks where status in ('queued', 'running') and dispatches > 0"
                " order by random() limit 3"
            )
        finally:
            await conn.close()
        for _ in range(DELIVERIES):
            for row in rows:
                with contextlib.suppress(AppError):
                    await self._queue.enqueue(Queue(row["queue"]), [Wakeup(row["id"], row["dispatches"])])
            await asyncio.sleep(0.02)
        self._note(kind="repeat")

    async def _connect(self) -> asyncpg.Connection:
        """As the superuser, as soon as the server is there."""
        while True:
            try:
                return await asyncpg.connect(self._stage.superuser_dsn, timeout=5)
            except (OSError, TimeoutError, asyncpg.PostgresError):
                await asyncio.sleep(0.1)

    def _note(self, **fields: object) -> None:
        self.faults.append(Fault(**{"at": time.time(), **fields}))


def _clamd_pid(folder: Path) -> int:
    """The scanner that reads its configuration from this folder."""
    found = subprocess.run(["pgrep", "-f", f"clamd -c {folder}/clamd.conf"], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])
