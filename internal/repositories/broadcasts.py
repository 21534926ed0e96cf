"""Redis as a megaphone: one channel for each tenant, ids only. Whoever hears something reads it as that tenant."""

import asyncio
from collections.abc import Callable, Mapping
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from internal.entities.events import TaskMoved
from internal.entities.tasks import Lease
from internal.repositories.cache import ANSWER_SECONDS, CONNECT_SECONDS, reachable
from pkg import logger
from pkg.apperr import AppError
from pkg.ctxutil import Context
from pkg.resilience import CircuitBreaker, backoff

LISTEN_SECONDS = 0.05
"""How long a new tenant may wait to be listened to; until then its readers are served by polling."""

Heard = Callable[[UUID, UUID | None], None]
"""Takes the tenant of which something was heard, and the task or batch if it was one's progress."""


class News(msgspec.Struct, frozen=True):
    """The part of a broadcast that says what to look at; without a task or batch it is an event."""

    task_id: UUID | None = None
    batch_id: UUID | None = None


def events_channel(tenant_id: UUID) -> str:
    """Where one tenant's events are broadcast."""
    return f"t:{tenant_id}:events"


class Megaphone:
    """A worker's end. What isn't heard is only late: the end of a task is an event, which nothing loses."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS)
        self._circuit = CircuitBreaker(threshold=1, cooldown=5.0)
        self._log = logger.get("broadcasts")

    async def task_moved(self, ctx: Context, lease: Lease) -> None:
        """Tells that the task has come further; raises nothing, and doesn't wait for a Redis that is away."""
        if self._circuit.open_for > 0:
            return
        moved = TaskMoved(tenant_id=ctx.tenant_id, task_id=lease.task.id)
        try:
            async with reachable():
                await self._redis.publish(events_channel(ctx.tenant_id), msgspec.json.encode(moved))
            self._circuit.succeed()
        except AppError as error:
            self._circuit.fail()
            self._log.debug("progress not told", code=error.code.value)

    async def close(self) -> None:
        """Closes every connection."""
        await self._redis.aclose()


class Listener:
    """A server's end: one connection for all tenants that have readers here."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, health_check_interval=10)
        self._wanted: dict[str, UUID] = {}
        self._followed = asyncio.Event()
        self._log = logger.get("broadcasts")
        self.connected = False

    def follow(self, tenant_id: UUID) -> None:
        """Listens to a tenant from soon on; that it does so is heard as news of the tenant."""
        self._wanted[events_channel(tenant_id)] = tenant_id
        self._followed.set()

    def unfollow(self, tenant_id: UUID) -> None:
        """Listens no more."""
        self._wanted.pop(events_channel(tenant_id), None)

    async def run(self, heard: Heard) -> None:
        """Listens until it is cancelled, and connects again as often as it takes."""
        failures = 0
        while True:
            await self._followed.wait()
            try:
                async with reachable(), self._redis.pubsub() as line:
                    await self._listen(line, heard)
            except AppError as error:
                failures = 1 if self.connected else failures + 1
                self._log.warning("not listening", code=error.code.value)
                await asyncio.sleep(backoff(failures, base=0.2, cap=3.0))
            finally:
                self.connected = False

    async def _listen(self, line: PubSub, heard: Heard) -> None:
        """Until nobody is followed any more. Raises what redis raises."""
        subscribed: set[str] = set()
        while self._wanted:
            new, gone = self._wanted.keys() - subscribed, subscribed - self._wanted.keys()
            if new:
                await line.subscribe(*new)
            if gone:
                await line.unsubscribe(*gone)
            subscribed = (subscribed | new) - gone
            self.connected = True
            message = await line.get_message(timeout=LISTEN_SECONDS)
            if message and message["type"] in ("message", "subscribe"):
                self._hear(message, heard)
        self._followed.clear()

    def _hear(self, message: Mapping[str, object], heard: Heard) -> None:
        channel = message["channel"]
        tenant_id = self._wanted.get(channel.decode()) if isinstance(channel, bytes) else None
        if tenant_id is not None:
            heard(tenant_id, _moved(message["data"]))

    async def close(self) -> None:
        """Closes the connection."""
        await self._redis.aclose()


def _moved(data: object) -> UUID | None:
    """The task or batch in a broadcast. What isn't of our making is news all the same: it costs one look."""
    try:
        news = msgspec.json.decode(data, type=News) if isinstance(data, bytes) else News()
    except msgspec.MsgspecError:
        return None
    return news.task_id or news.batch_id
