"""/api/v1/cache"""

from collections.abc import Iterable

import msgspec
from litestar import get
from litestar.di import NamedDependency
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from internal.handlers.auth import access
from internal.services.caching import CacheCounts, TwoLevelCache
from pkg.ctxutil import Context, Role


class CacheMetrics(Collector):
    """What this server's caches were asked, by kind and where the answer came from."""

    def __init__(self, caching: TwoLevelCache) -> None:
        self._caching = caching

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry needn't ask for values to learn the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """`level` is memory, redis, shared or miss."""
        family = CounterMetricFamily("cache_requests", "Answers asked of a cache", labels=["kind", "level"])
        for (kind, level), count in self._caching.totals.items():
            family.add_metric([kind.value, level.value], count)
        yield family


class CacheKindOut(msgspec.Struct, frozen=True, kw_only=True):
    """Of one kind of answer. `shared` came from the same question that was being answered at that moment."""

    hits: int
    misses: int
    hit_rate: float
    memory: int
    redis: int
    shared: int


class CacheMemoryOut(msgspec.Struct, frozen=True, kw_only=True):
    """What the server that answers keeps in its memory, for all tenants."""

    entries: int
    bytes: int


class CacheStatsOut(msgspec.Struct, frozen=True, kw_only=True):
    """Your tenant's questions of the last 30 days, over all servers, counted with a delay of some seconds.

    `redis` is false where the server must do without it.
    """

    hits: int
    misses: int
    hit_rate: float
    kinds: dict[str, CacheKindOut]
    memory: CacheMemoryOut
    redis: bool


@get("/api/v1/cache/stats", opt=access(Role.VIEWER))
async def get_cache_stats(ctx: NamedDependency[Context], caching: NamedDependency[TwoLevelCache]) -> CacheStatsOut:
    """How often your searches, and the embeddings of their words, were answered from memory."""
    state = await caching.state(ctx)
    total = CacheCounts(
        memory=sum(counts.memory for counts in state.kinds.values()),
        redis=sum(counts.redis for counts in state.kinds.values()),
        shared=sum(counts.shared for counts in state.kinds.values()),
        misses=sum(counts.misses for counts in state.kinds.values()),
    )
    return CacheStatsOut(
        hits=total.hits,
        misses=total.misses,
        hit_rate=round(total.hit_rate, 4),
        kinds={kind.value: _kind_out(counts) for kind, counts in state.kinds.items()},
        memory=CacheMemoryOut(entries=state.entries, bytes=state.size),
        redis=state.redis,
    )


def _kind_out(counts: CacheCounts) -> CacheKindOut:
    return CacheKindOut(
        hits=counts.hits,
        misses=counts.misses,
        hit_rate=round(counts.hit_rate, 4),
        memory=counts.memory,
        redis=counts.redis,
        shared=counts.shared,
    )
