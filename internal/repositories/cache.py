"""Redis: what may be forgotten at any moment. Every key is made by `key`, which begins with the tenant."""

import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import cast
from uuid import UUID

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from pkg.apperr import AppError, Code

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2.0

# KEYS[1] is a bucket; ARGV: its capacity, tokens refilled a second, tokens wanted (negative gives back).
# Answers the tokens granted and, where none were, the milliseconds until the next one. The server's clock decides.
TAKE = """
local now = redis.call('TIME')
local seconds = tonumber(now[1]) + tonumber(now[2]) / 1000000
local capacity, rate, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local state = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = tonumber(state[1]) or capacity
local at = tonumber(state[2]) or seconds
tokens = math.min(capacity, tokens + math.max(0, seconds - at) * rate)
local granted = math.min(wanted, math.floor(tokens))
tokens = math.min(capacity, tokens - granted)
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', tostring(seconds))
redis.call('PEXPIRE', KEYS[1], math.ceil(capacity / rate * 1000) + 1000)
local wait = 0
if granted == 0 then wait = math.ceil((1 - tokens) / rate * 1000) end
return {granted, wait}
"""


def key(tenant_id: UUID, kind: str, *parts: str) -> str:
    """`t:{tenant}:{kind}:{sha256 of the parts}`; content never stands in a key."""
    digest = hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
    return f"t:{tenant_id}:{kind}:{digest}"


def visitor_key(kind: str, *parts: str) -> str:
    """A key for somebody whose tenant isn't known yet."""
    return f"v:{kind}:{hashlib.sha256(chr(0).join(parts).encode('utf-8', 'surrogatepass')).hexdigest()}"


class Cache:
    """A few verbs of Redis. Everything raises REDIS_UNAVAILABLE, within seconds, when it can't be reached."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(TAKE)

    async def get(self, name: str) -> bytes | None:
        """The value, or None."""
        async with reachable():
            return await self._redis.get(name)

    async def set(self, name: str, value: bytes, *, seconds: float) -> None:
        """Keeps the value for at most `seconds`."""
        async with reachable():
            await self._redis.set(name, value, px=max(1, int(seconds * 1000)))

    async def add_counts(self, name: str, counts: dict[str, int], *, seconds: float) -> bool:
        """Adds to the fields of a hash, which is forgotten `seconds` after the last addition. True when it is done."""
        async with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for field, count in counts.items():
                pipe.hincrby(name, field, count)
            pipe.pexpire(name, max(1, int(seconds * 1000)))
            await pipe.execute()
        return True

    async def counts(self, name: str) -> dict[str, int]:
        """Every field of a hash of counts; none where there is no hash."""
        async with reachable():
            found = await cast("Awaitable[dict[bytes, bytes]]", self._redis.hgetall(name))
        return {field.decode(): int(count) for field, count in found.items()}

    async def remove(self, name: str) -> None:
        """Forgets the value."""
        async with reachable():
            await self._redis.delete(name)

    async def take_tokens(self, name: str, *, capacity: int, per_second: float, wanted: int) -> tuple[int, float]:
        """Tokens granted from a bucket, and the seconds until the next one where none were."""
        async with reachable():
            granted, wait_ms = await self._take(keys=[name], args=[capacity, per_second, wanted])
            return int(granted), int(wait_ms) / 1000

    async def ping(self) -> float:
        """Milliseconds that an answer took."""
        started = time.perf_counter()
        async with reachable():
            await self._redis.ping()
        return (time.perf_counter() - started) * 1000

    async def close(self) -> None:
        """Closes every connection."""
        await self._redis.aclose()


def open_cache(url: str, *, answer_seconds: float = ANSWER_SECONDS) -> Cache:
    """Connects when first used. Waits are short: nothing here is worth a request's time."""
    return Cache(
        Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=answer_seconds,
            retry=Retry(NoBackoff(), 1),
            max_connections=64,
        )
    )


@asynccontextmanager
async def reachable() -> AsyncGenerator[None]:
    """Turns what the client raises when Redis doesn't answer into REDIS_UNAVAILABLE."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise AppError(Code.REDIS_UNAVAILABLE, "Redis can't be reached; try again shortly.", retry_after=2) from error
