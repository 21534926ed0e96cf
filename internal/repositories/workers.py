"""Live workers in Redis: who serves which queue, how long tasks took them lately. Forgotten when they are silent."""

from typing import Any

import msgspec
from redis.asyncio import Redis

from internal.entities.waiting import Roll, WorkerReport
from internal.repositories.cache import ANSWER_SECONDS, CONNECT_SECONDS, reachable
from pkg.apperr import AppError, Code
from pkg.resilience import CircuitBreaker

WORKERS_KEY = "dreamhub:workers"
SINCE_KEY = "dreamhub:workers:since"
REPORT_KEY = "dreamhub:worker:"
MOST_READ = 500
COMPLETE_SECONDS = 6.0
"""A live worker beats more often, so after so long a Redis that was wiped knows all of them again."""

# KEYS: the workers by the time when they are forgotten, the time of the first word about them, one worker's report.
# ARGV: its name, the seconds that it is remembered, its report. All clocks are Redis's own.
BEAT = """
local now = redis.call('TIME')
local seconds = tonumber(now[1]) + tonumber(now[2]) / 1000000
redis.call('SET', KEYS[2], seconds, 'NX')
redis.call('ZADD', KEYS[1], seconds + tonumber(ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', seconds)
redis.call('SET', KEYS[3], ARGV[3], 'PX', math.ceil(tonumber(ARGV[2]) * 1000))
"""
# KEYS: the first two of those. ARGV: how many are wanted. Answers the seconds since the first word, and names.
ALIVE = """
local now = redis.call('TIME')
local seconds = tonumber(now[1]) + tonumber(now[2]) / 1000000
redis.call('SET', KEYS[2], seconds, 'NX')
local since = tonumber(redis.call('GET', KEYS[2]))
return {tostring(seconds - since), redis.call('ZRANGEBYSCORE', KEYS[1], seconds, '+inf', 'LIMIT', 0, ARGV[1])}
"""


class WorkerRegistry:
    """Every method raises REDIS_UNAVAILABLE when Redis doesn't answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._beat = redis.register_script(BEAT)
        self._alive = redis.register_script(ALIVE)
        self._circuit = CircuitBreaker(threshold=1, cooldown=5.0)

    async def beat(self, report: WorkerReport, alive_seconds: float) -> None:
        """Tells that a worker lives; it is forgotten after so long without a beat."""
        keys = [WORKERS_KEY, SINCE_KEY, REPORT_KEY + report.name]
        async with reachable():
            await self._beat(keys=keys, args=[report.name, alive_seconds, msgspec.json.encode(report)])

    async def leave(self, name: str) -> None:
        """Forgets a worker that has stopped."""
        async with reachable():
            await self._redis.zrem(WORKERS_KEY, name)
            await self._redis.delete(REPORT_KEY + name)

    async def roll(self) -> Roll:
        """What each of them told last. A Redis that didn't answer isn't asked again for some seconds."""
        if wait := self._circuit.open_for:
            raise AppError(Code.REDIS_UNAVAILABLE, "Redis didn't answer a moment ago.", retry_after=wait)
        try:
            async with reachable():
                answer: Any = await self._alive(keys=[WORKERS_KEY, SINCE_KEY], args=[MOST_READ])
                seconds, names = answer
                told = await self._redis.mget([REPORT_KEY + name.decode() for name in names]) if names else []
        except AppError:
            self._circuit.fail()
            raise
        self._circuit.succeed()
        reports = [report for report in map(_report, told) if report is not None]
        return Roll(reports=reports, complete=float(seconds) >= COMPLETE_SECONDS and len(reports) == len(names))

    async def close(self) -> None:
        """Closes every connection."""
        await self._redis.aclose()


def _report(told: bytes | None) -> WorkerReport | None:
    """None for a worker of another version, which tells nothing or something else."""
    try:
        return None if told is None else msgspec.json.decode(told, type=WorkerReport)
    except msgspec.MsgspecError:
        return None


def open_workers(url: str) -> WorkerRegistry:
    """Connects when first used."""
    return WorkerRegistry(
        Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS, max_connections=16)
    )
