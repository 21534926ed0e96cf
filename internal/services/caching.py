"""Two levels before slower work: this process's memory, and Redis, which all servers share and anybody may wipe.

What is kept is never invalidated: its name says what it depends on, such as the data version of a tenant, which the
transaction raises that changes the data. A name that nobody asks for any more is pushed out or expires.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import NamedTuple, TypeVar
from uuid import UUID

import msgspec

from internal.repositories.cache import Cache, key
from pkg import logger
from pkg.apperr import AppError
from pkg.ctxutil import Context
from pkg.resilience import CircuitBreaker
from pkg.sealing import Sealer

T = TypeVar("T")

MEMORY_BYTES = 32 * 1024 * 1024
LARGEST_BYTES = 512 * 1024
"""A larger value isn't worth its room."""
OVERHEAD_BYTES = 300
"""Of an entry besides its bytes: key, references, hash table."""
COOLDOWN_SECONDS = 5.0
"""For so long nobody waits for a Redis that didn't answer."""
TELL_SECONDS = 2.0
"""How often counts go to Redis, where those of all servers are added up."""
COUNTS_SECONDS = 30 * 86_400.0


class CacheKind(StrEnum):
    """What is kept, with its longest life in Redis in seconds."""

    SEARCH = "search"
    EMBEDDING = "embedding"
    CHUNKS = "chunks"

    @property
    def seconds(self) -> float:
        """Text goes after an hour, whatever becomes of its document; the embedding of a question says little."""
        return 86_400.0 if self is CacheKind.EMBEDDING else 3600.0


class Level(StrEnum):
    """Where an answer came from. `shared`: from whoever asked the same at the same moment."""

    MEMORY = "memory"
    REDIS = "redis"
    SHARED = "shared"
    MISS = "miss"


class CacheCounts(msgspec.Struct, frozen=True):
    """How often one kind was asked for, by where the answer came from."""

    memory: int = 0
    redis: int = 0
    shared: int = 0
    misses: int = 0

    @property
    def hits(self) -> int:
        """Whatever wasn't computed anew."""
        return self.memory + self.redis + self.shared

    @property
    def hit_rate(self) -> float:
        """From 0 to 1; 0 where nothing was asked."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class CacheState(msgspec.Struct, frozen=True):
    """A tenant's counts over all servers, and what this server's memory holds of everybody's."""

    kinds: dict[CacheKind, CacheCounts]
    entries: int
    size: int
    redis: bool


class Passing(bytes):
    """A value that isn't kept: good enough for those who ask at this moment."""


class Kept(NamedTuple):
    """Bytes, and where they came from."""

    data: bytes
    level: Level


class SharedLevel(NamedTuple):
    """The level that all servers share, and what seals values there: Redis sees nothing of them, and who writes there
    can't make an answer or move one to another tenant."""

    redis: Cache
    sealer: Sealer


class TwoLevelCache:
    """Values by tenant, kind and name. Without a shared level the memory alone, as where Redis doesn't answer."""

    def __init__(self, shared: SharedLevel | None, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._shared = shared
        self._room = memory_bytes
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._flights: dict[str, asyncio.Task[Kept]] = {}
        self._untold: Counter[tuple[UUID, str]] = Counter()
        self._totals: Counter[tuple[CacheKind, Level]] = Counter()
        self._circuit = CircuitBreaker(threshold=1, cooldown=COOLDOWN_SECONDS)
        self._teller: asyncio.Task[None] | None = None
        self._log = logger.get("cache")

    @property
    def totals(self) -> dict[tuple[CacheKind, Level], int]:
        """What this server was asked, for all tenants."""
        return dict(self._totals)

    def start(self) -> None:
        """Begins to hand counts on, until `close`."""
        self._teller = asyncio.create_task(self._tell_on())

    async def close(self) -> None:
        """Ends what runs in the background."""
        for task in (*self._flights.values(), *([self._teller] if self._teller else ())):
            task.cancel()
            await asyncio.wait((task,))

    async def through(
        self, ctx: Context, kind: CacheKind, parts: tuple[str, ...], compute: Callable[[], Awaitable[bytes]]
    ) -> Kept:
        """What is kept under this name, else what `compute` gives, asked once however many wait for it here.

        What it gives as `Passing` isn't kept. Raises what `compute` raises, for all who wait.
        """
        name = key(ctx.tenant_id, kind, *parts)
        data = self._memory.get(name)
        if data is not None:
            self._memory.move_to_end(name)
            self._count(ctx, kind, Level.MEMORY)
            return Kept(data, Level.MEMORY)
        flight = self._flights.get(name)
        if flight is not None:
            self._count(ctx, kind, Level.SHARED)
            return Kept((await asyncio.shield(flight)).data, Level.SHARED)
        # A task of its own: who asked first may leave, and the others still wait.
        flight = self._flights[name] = asyncio.create_task(self._fetch(name, kind, compute))
        flight.add_done_callback(lambda _done: self._land(name, flight))
        kept = await asyncio.shield(flight)
        self._count(ctx, kind, kept.level)
        return kept

    async def state(self, ctx: Context) -> CacheState:
        """What the tenant's requests found, over all servers as far as they have told."""
        counts: dict[str, int] = {}
        if await self._tell(ctx.tenant_id):
            counts = await self._ask(lambda shared: shared.redis.counts(_counts_key(ctx.tenant_id))) or {}
        else:
            counts = {field: count for (tenant, field), count in self._untold.items() if tenant == ctx.tenant_id}
        kinds = {kind: CacheCounts(*(counts.get(f"{kind}.{level}", 0) for level in Level)) for kind in CacheKind}
        return CacheState(kinds, len(self._memory), self._size, self._shared is not None and not self._circuit.open_for)

    async def _fetch(self, name: str, kind: CacheKind, compute: Callable[[], Awaitable[bytes]]) -> Kept:
        sealed = await self._ask(lambda shared: shared.redis.get(name))
        data = self._shared.sealer.open(name, sealed) if self._shared and sealed else None
        if data is not None:
            self._keep(name, data)
            return Kept(data, Level.REDIS)
        made = await compute()
        if isinstance(made, Passing):
            return Kept(made, Level.MISS)
        self._keep(name, made)
        if len(made) <= LARGEST_BYTES:
            await self._ask(lambda shared: shared.redis.set(name, shared.sealer.seal(name, made), seconds=kind.seconds))
        return Kept(made, Level.MISS)

    def _land(self, name: str, flight: "asyncio.Task[Kept]") -> None:
        del self._flights[name]
        if not flight.cancelled():
            flight.exception()  # whoever still waits is told; nobody may be left who does

    def _keep(self, name: str, data: bytes) -> None:
        if len(data) > LARGEST_BYTES:
            return
        before = self._memory.pop(name, None)
        if before is not None:
            self._size -= len(before) + OVERHEAD_BYTES
        self._memory[name] = data
        self._size += len(data) + OVERHEAD_BYTES
        while self._size > self._room:
            _name, oldest = self._memory.popitem(last=False)
            self._size -= len(oldest) + OVERHEAD_BYTES

    async def _ask(self, verb: Callable[[SharedLevel], Awaitable[T]]) -> T | None:
        """What Redis answers; None where it doesn't, or hasn't a moment ago."""
        if self._shared is None or self._circuit.open_for:
            return None
        try:
            found = await verb(self._shared)
        except AppError:
            self._circuit.fail()
            self._log.warning("redis is away; this server's memory is all that is cached")
            return None
        self._circuit.succeed()
        return found

    def _count(self, ctx: Context, kind: CacheKind, level: Level) -> None:
        self._totals[kind, level] += 1
        if self._shared is not None:
            self._untold[ctx.tenant_id, f"{kind}.{level}"] += 1

    async def _tell_on(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            for tenant in {tenant for tenant, _field in self._untold}:
                await self._tell(tenant)

    async def _tell(self, tenant: UUID) -> bool:
        """Hands a tenant's counts to Redis; False where it doesn't take them, and they wait."""
        counts = {field: count for (owner, field), count in self._untold.items() if owner == tenant}
        told = await self._ask(
            lambda shared: shared.redis.add_counts(_counts_key(tenant), counts, seconds=COUNTS_SECONDS)
        )
        if told:
            self._untold -= Counter({(tenant, field): count for field, count in counts.items()})
        return bool(told)


def _counts_key(tenant: UUID) -> str:
    return key(tenant, "cache-counts")
