"""Live workers in Redis: who serves which queue, how long tasks took them lately. Forgotten when they are silent."""

import time

import msgspec
from redis.asyncio import Redis

from internal.entities.waiting import WorkerReport
from internal.repositories.cache import ANSWER_SECONDS, CONNECT_SECONDS, reachable

WORKERS_KEY = "dreamhub:workers"
REPORT_KEY = "dreamhub:worker:"
MOST_READ = 500


class WorkerRegistry:
    """Every method raises REDIS_UNAVAILABLE when Redis doesn't answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def beat(self, report: WorkerReport, alive_seconds: float) -> None:
        """Tells that a worker lives; it is forgotten after so long without a beat."""
        now = time.time()
        async with reachable(), self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(WORKERS_KEY, {report.name: now + alive_seconds})
            pipe.zremrangebyscore(WORKERS_KEY, "-inf", now)
            pipe.set(REPORT_KEY + report.name, msgspec.json.encode(report), px=int(alive_seconds * 1000))
            await pipe.execute()

    async def leave(self, name: str) -> None:
        """Forgets a worker that has stopped."""
        async with reachable():
            await self._redis.zrem(WORKERS_KEY, name)
            await self._redis.delete(REPORT_KEY + name)

    async def count(self) -> int:
        """How many workers live."""
        async with reachable():
            return await self._redis.zcount(WORKERS_KEY, time.time(), "+inf")

    async def reports(self) -> list[WorkerReport]:
        """What each of them told last."""
        async with reachable():
            names = await self._redis.zrangebyscore(WORKERS_KEY, time.time(), "+inf", start=0, num=MOST_READ)
            found = await self._redis.mget([REPORT_KEY + name.decode() for name in names]) if names else []
        return [msgspec.json.decode(report, type=WorkerReport) for report in found if report is not None]

    async def close(self) -> None:
        """Closes every connection."""
        await self._redis.aclose()


def open_workers(url: str) -> WorkerRegistry:
    """Connects when first used."""
    return WorkerRegistry(
        Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS, max_connections=16)
    )
