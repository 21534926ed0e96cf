"""Rate limits: token buckets in Redis, leased in blocks so that most requests never ask it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from internal.repositories.cache import Cache
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.resilience import CircuitBreaker

BLOCKS = 20
LONGEST_LEASE = 10.0
SUBJECTS = 10_000
REFUSAL_SECONDS = 1.0


class Limit(msgspec.Struct, frozen=True):
    """`capacity` requests at once, refilled evenly over `seconds`."""

    capacity: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Tokens that come back each second."""
        return self.capacity / self.seconds

    @property
    def block(self) -> int:
        """Tokens leased at a time; a small limit is counted one by one."""
        return max(1, self.capacity // BLOCKS)


class _Lease:
    """What this process holds of a bucket: tokens until a time, or a refusal until a time."""

    __slots__ = ("asking", "refused_until", "tokens", "until")

    def __init__(self) -> None:
        self.tokens = 0
        self.until = 0.0
        self.refused_until = 0.0
        self.asking = asyncio.Lock()

    def spend(self, now: float) -> bool:
        """Uses up a token; False when there is none. Raises RATE_LIMITED during a refusal."""
        if self.tokens > 0 and now < self.until:
            self.tokens -= 1
            return True
        if now < self.refused_until:
            raise _limited(self.refused_until - now)
        return False


class RateLimiter:
    """Counts requests by subject over all servers. Without Redis each server counts alone, with the same limit."""

    def __init__(self, cache: Cache, limit: Limit, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._limit = limit
        self._clock = clock
        self._leases: OrderedDict[str, _Lease] = OrderedDict()
        self._alone: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._circuit = CircuitBreaker(threshold=1, cooldown=5.0, clock=clock)
        self._log = logger.get("rate_limits")

    async def take(self, bucket: str) -> None:
        """Takes one token of the bucket with this Redis key. Raises RATE_LIMITED with the seconds to wait."""
        lease = self._lease(bucket)
        if lease.spend(self._clock()):
            return
        async with lease.asking:
            # Whoever asked Redis before may have brought enough for all who waited.
            if lease.spend(self._clock()):
                return
            granted, wait = await self._ask(bucket, self._limit.block)
            now = self._clock()
            if granted < 1:
                lease.refused_until = now + min(wait, REFUSAL_SECONDS)
                raise _limited(wait)
            lease.tokens, lease.until = granted - 1, now + LONGEST_LEASE

    async def give_back(self, bucket: str) -> None:
        """Returns a token that turned out not to count."""
        await self._ask(bucket, -1)

    def _lease(self, bucket: str) -> _Lease:
        lease = self._leases.get(bucket)
        if lease is None:
            lease = self._leases[bucket] = _Lease()
            if len(self._leases) > SUBJECTS:
                self._leases.popitem(last=False)
        return lease

    async def _ask(self, bucket: str, wanted: int) -> tuple[int, float]:
        limit = self._limit
        if self._circuit.open_for == 0:
            try:
                answer = await self._cache.take_tokens(
                    bucket, capacity=limit.capacity, per_second=limit.per_second, wanted=wanted
                )
            except AppError:
                self._circuit.fail()
                self._log.warning("redis is away; this server limits rates alone")
            else:
                self._circuit.succeed()
                return answer
        return self._take_alone(bucket, wanted)

    def _take_alone(self, bucket: str, wanted: int) -> tuple[int, float]:
        now, limit = self._clock(), self._limit
        tokens, at = self._alone.pop(bucket, (float(limit.capacity), now))
        tokens = min(limit.capacity, tokens + (now - at) * limit.per_second)
        granted = min(wanted, int(tokens))
        tokens = min(limit.capacity, tokens - granted)
        self._alone[bucket] = (tokens, now)
        if len(self._alone) > SUBJECTS:
            self._alone.popitem(last=False)
        return granted, (1 - tokens) / limit.per_second if granted == 0 else 0.0


def _limited(wait: float) -> AppError:
    return AppError(
        Code.RATE_LIMITED,
        "Too many requests in a short time; wait as long as Retry-After says, then go on more slowly.",
        retry_after=wait,
    )
