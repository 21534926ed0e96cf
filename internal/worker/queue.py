"""The only file that knows arq: task ids on their way from the dispatcher to a free worker.

The queues have arq's format, so that its tools can look into them. Redis holds ids and nothing else, and only a small
window of them; the ledger decides everything. No result is kept, no try is counted, and nothing is pickled.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.jobs import serialize_job

from internal.entities.events import BatchMoved, PublishedEvent
from internal.entities.tasks import Queue, Wakeup
from internal.repositories.broadcasts import events_channel
from internal.repositories.cache import reachable
from internal.repositories.workers import WorkerRegistry
from pkg import logger

FUNCTION = "run_task"
DAY_SECONDS = 86_400
TURN_MS = 60_000
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0

Receive = Callable[[Wakeup], Coroutine[Any, Any, None]]
"""Takes one delivery and lets nothing out."""


class TaskQueue:
    """One arq queue for each priority class. Every method raises REDIS_UNAVAILABLE when Redis doesn't answer."""

    def __init__(self, url: str) -> None:
        self._redis = ArqRedis.from_url(
            url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS, health_check_interval=30
        )
        self.workers = WorkerRegistry(self._redis)
        self._redis.job_serializer = _dumps
        self._redis.job_deserializer = _loads

    async def enqueue(self, queue: Queue, wakeups: Sequence[Wakeup]) -> None:
        """Puts wake-ups into Redis, in one round trip, and drops what earlier numbers left there.

        A tenant's first turn passes what lies there of others' later turns, for a minute a turn: nobody's single task
        stands behind another's share of the window, and nobody's share waits for ever. To arq's own worker a score in
        the future would be a delay; ours pops the lowest.
        """
        if not wakeups:
            return
        now = time.time_ns() // 1_000_000
        name = queue_name(queue)
        async with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for place, wakeup in enumerate(wakeups):
                if wakeup.number > 1:
                    earlier = Wakeup(wakeup.task_id, wakeup.number - 1).job_id
                    pipe.zrem(name, earlier)
                    pipe.zrem(firsts_name(queue), earlier)
                    pipe.delete(job_key_prefix + earlier)
                job = serialize_job(FUNCTION, (str(wakeup.task_id), wakeup.number), {}, None, now, serializer=_dumps)
                pipe.psetex(job_key_prefix + wakeup.job_id, DAY_SECONDS * 1000, job)
                # A fraction of a millisecond keeps the order of the batch.
                score = now + wakeup.turn * TURN_MS + place / len(wakeups)
                pipe.zadd(name, {wakeup.job_id: score})
                if 0 < wakeup.turn <= 1:
                    pipe.zadd(firsts_name(queue), {wakeup.job_id: score})
            await pipe.execute()

    async def missing(self, queue: Queue, wakeups: Sequence[Wakeup]) -> list[Wakeup]:
        """Which of these don't wait in Redis: wiped, or taken by a worker that never claimed them."""
        if not wakeups:
            return []
        async with reachable():
            scores = await self._redis.zmscore(queue_name(queue), [wakeup.job_id for wakeup in wakeups])
        return [wakeup for wakeup, score in zip(wakeups, scores, strict=True) if score is None]

    async def broadcast(self, events: Sequence[PublishedEvent | BatchMoved]) -> None:
        """Tells each tenant's listeners that something happened; who wants to know more reads it as that tenant."""
        async with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for event in events:
                pipe.publish(events_channel(event.tenant_id), msgspec.json.encode(event))
            await pipe.execute()

    async def ping(self) -> None:
        """Asks whether Redis answers."""
        async with reachable():
            await self._redis.ping()

    def consumer(self, queues: Sequence[Queue], *, slots: int, receive: Receive) -> "Consumer":
        """Hands wake-ups of these queues, the first queue's first, to `receive`, at most `slots` at a time."""
        return Consumer(self._redis, queues, slots=slots, receive=receive)

    async def close(self) -> None:
        """Closes every connection."""
        await self._redis.aclose(close_connection_pool=True)


class Consumer:
    """Several queues over one set of slots, polled by its owner, in the place of arq's own worker.

    Jobs are popped. arq leaves them in place until they are done, marks those that run, counts their tries and polls
    past them, all in Redis: twice the work for each task, blocked jobs after a crash, and nothing that the ledger
    doesn't do. Who dies after the pop loses nothing, for the relay sends again what nobody claims.
    """

    def __init__(self, redis: ArqRedis, queues: Sequence[Queue], *, slots: int, receive: Receive) -> None:
        self._redis = redis
        self._queues = tuple(queues)
        self._slots = slots
        self._receive = receive
        self._rounds = 0
        self._seen: dict[bytes, float] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._log = logger.get("queue")

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return len(self._running) >= self._slots

    @property
    def closed(self) -> bool:
        """Whether the guest's place is taken too."""
        return len(self._running) > self._slots

    async def poll(self) -> bool:
        """Starts as many waiting jobs as there are free slots; True when it started one. Raises REDIS_UNAVAILABLE.

        Every eighth round goes from the last queue to the first, so that a busy queue doesn't starve those behind it.
        """
        self._rounds += 1
        started = 0
        for queue in self._queues if self._rounds % 8 else self._queues[::-1]:
            free = self._slots - len(self._running)
            if free:
                started += await self._start(queue, free)
        return started > 0

    async def poll_guest(self, *, after: float) -> bool:
        """With every slot taken: starts the first task of a tenant that has nothing running; True when it did.

        So long tasks of one tenant don't hold up another's. A task is taken that was seen `after` seconds ago already,
        for another worker may have a slot for it. Raises REDIS_UNAVAILABLE.
        """
        async with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for queue in self._queues:
                pipe.zrange(firsts_name(queue), 0, 0)
            heads: list[list[bytes]] = await pipe.execute()
        now, before = time.monotonic(), self._seen
        self._seen = {head[0]: before.get(head[0], now) for head in heads if head}
        for queue, head in zip(self._queues, heads, strict=True):
            if head and now - self._seen[head[0]] >= after and await self._take(queue, head[0]):
                return True
        return False

    async def _take(self, queue: Queue, job_id: bytes) -> bool:
        """Starts a task unless somebody else has it."""
        async with reachable(), self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(firsts_name(queue), job_id)
            pipe.zrem(queue_name(queue), job_id)
            _, mine = await pipe.execute()
        return bool(mine) and await self._run(queue, [job_id.decode(errors="replace")]) > 0

    async def _start(self, queue: Queue, limit: int) -> int:
        """Pops and starts up to `limit` jobs, the oldest first; answers how many."""
        async with reachable():
            popped: list[tuple[bytes, float]] = await self._redis.zpopmin(queue_name(queue), limit)
        return await self._run(queue, [job_id.decode(errors="replace") for job_id, _score in popped])

    async def _run(self, queue: Queue, job_ids: Sequence[str]) -> int:
        """Starts jobs that were taken out of the queue, and drops what else Redis has of them."""
        for job_id in job_ids:
            try:
                wakeup = Wakeup.of(job_id)
            except ValueError:
                # Not of our making; what the ledger wants done is sent again.
                self._log.warning("unreadable job in the queue", queue=queue.value)
                continue
            running = asyncio.ensure_future(self._receive(wakeup))
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        if job_ids:
            async with reachable(), self._redis.pipeline(transaction=False) as pipe:
                pipe.unlink(*(job_key_prefix + job_id for job_id in job_ids))
                pipe.zrem(firsts_name(queue), *job_ids)
                await pipe.execute()
        return len(job_ids)

    async def drain(self, seconds: float) -> bool:
        """Waits for the jobs under way; False when some are still at it after so long."""
        if not self._running:
            return True
        _done, pending = await asyncio.wait(self._running, timeout=seconds)
        return not pending


def queue_name(queue: Queue) -> str:
    """Name of the sorted set."""
    return f"arq:{queue.value}"


def firsts_name(queue: Queue) -> str:
    """Name of the sorted set of those waiting tasks whose tenant has nothing else running or lying in the queue."""
    return f"dreamhub:firsts:{queue.value}"


def _dumps(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value)


def _loads(data: bytes) -> dict[str, Any]:
    return msgspec.json.decode(data)
