"""A relay and workers on real servers, with jobs that count their effects."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
from arq.connections import ArqRedis

from internal.entities.ids import new_id
from internal.entities.tasks import Lease, NewTask, Queue, Task, TaskPolicy, TaskStatus
from internal.repositories.store import Store, open_store
from internal.repositories.wakeup import NewsLine
from internal.worker.jobs import Job, Jobs
from internal.worker.queue import TaskQueue
from internal.worker.relay import Relay
from internal.worker.runner import Worker
from pkg.config import Settings, load
from pkg.ctxutil import Context, Role
from tests.servers import Database

LEASE_SECONDS = 1.0


def task_settings(**tasks: Any) -> Settings:
    """Short leases and waits, so that what takes minutes in life takes seconds here."""
    return load(tasks={"lease_seconds": LEASE_SECONDS, "backoff_seconds": 0.05, "max_retries": 2, **tasks})


class Effects:
    """Counts what jobs did, by task."""

    def __init__(self) -> None:
        self.order: list[UUID] = []

    async def note(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """A job that does nothing but be counted."""
        assert ctx.tenant_id == lease.task.tenant_id
        self.order.append(lease.task.id)
        return {"noted": len(self.order)}


class Ledger:
    """One database with its stores, one Redis, and the relays and workers that a test starts."""

    def __init__(self, database: Database, redis_url: str, settings: Settings) -> None:
        self.database = database
        self.redis_url = redis_url
        self.settings = settings
        self.effects = Effects()
        self._stack = AsyncExitStack()
        self.app: Store
        self.worker_store: Store
        self.relay_store: Store
        self.queue: TaskQueue
        self.inspector: asyncpg.Connection

    async def open(self) -> None:
        policy = TaskPolicy(max_retries=self.settings.tasks.max_retries, queue_depth=self.settings.limits.queue_depth)
        self.app = await open_store(self.database.app, tasks=policy)
        self.worker_store = await open_store(self.database.worker, tasks=policy)
        self.relay_store = await open_store(self.database.relay, tasks=policy)
        self.queue = TaskQueue(self.redis_url)
        self.inspector = await asyncpg.connect(self.database.superuser)
        for close in (self.app.close, self.worker_store.close, self.relay_store.close, self.queue.close):
            self._stack.push_async_callback(close)
        self._stack.push_async_callback(self.inspector.close)

    async def close(self) -> None:
        await self._stack.aclose()

    async def tenant(self) -> Context:
        """A new tenant with one user."""
        tenant, user = new_id(), new_id()
        await self.inspector.execute("insert into tenants (id, name) values ($1, 'probe')", tenant)
        await self.inspector.execute("insert into users (id, email) values ($1, $2)", user, f"{user}@example.org")
        await self.inspector.execute("insert into memberships values ($1, $2, 'owner')", tenant, user)
        return Context(
            tenant_id=tenant, user_id=user, role=Role.OWNER, request_id="request-1", trace_id=secrets.token_hex(16)
        )

    async def add(
        self,
        ctx: Context,
        kind: str = "note",
        *,
        count: int = 1,
        version: int = 1,
        queue: Queue = Queue.DEFAULT,
        payload: dict[str, Any] | None = None,
        priority: int = 0,
    ) -> list[Task]:
        new = NewTask(kind=kind, version=version, queue=queue, payload=payload or {}, priority=priority)
        async with self.app.tenant(ctx) as tx:
            return [await tx.tasks.add(new) for _ in range(count)]

    async def get(self, ctx: Context, task_id: UUID) -> Task:
        async with self.app.tenant(ctx) as tx:
            return await tx.tasks.get(task_id)

    async def outcomes(self, ctx: Context, task_id: UUID) -> list[str | None]:
        async with self.app.tenant(ctx) as tx:
            return [attempt.outcome and attempt.outcome.value for attempt in await tx.tasks.attempts(task_id)]

    async def until(self, ctx: Context, task_id: UUID, *statuses: TaskStatus, seconds: float = 20) -> Task:
        """The task, once it has one of these statuses."""
        wanted = statuses or tuple(status for status in TaskStatus if status.finished)
        found: Task | None = None

        async def there() -> bool:
            nonlocal found
            found = await self.get(ctx, task_id)
            return found.status in wanted

        await eventually(there, seconds=seconds, what=lambda: f"{wanted}, but {found}")
        assert found is not None
        return found

    async def unfinished(self) -> int:
        return await self.inspector.fetchval("select count(*) from tasks where status in ('queued', 'running')")

    @asynccontextmanager
    async def relay(self) -> AsyncGenerator[Relay]:
        relay = Relay(self.relay_store, NewsLine(self.database.relay), self.queue, self.settings)
        async with running(relay):
            yield relay

    @asynccontextmanager
    async def worker(
        self, jobs: Jobs | None = None, *, queues: tuple[Queue, ...] = tuple(Queue), **tasks: Any
    ) -> AsyncGenerator[Worker]:
        settings = self.settings.model_copy(update={"tasks": self.settings.tasks.model_copy(update=tasks)})
        worker = Worker(self.worker_store, self.queue, jobs or self.jobs(), settings, queues=queues)
        async with running(worker):
            yield worker

    def jobs(self, **handlers: Callable[[Context, Lease], Awaitable[dict[str, Any]]]) -> Jobs:
        """The counting job `note`, and the test's own."""
        known = {"note": self.effects.note, **handlers}
        return Jobs(Job(kind=kind, version=1, handler=handler) for kind, handler in known.items())


@asynccontextmanager
async def open_ledger(database: Database, redis_url: str, **tasks: Any) -> AsyncGenerator[Ledger]:
    """An empty ledger and an empty Redis."""
    ledger = Ledger(database, redis_url, task_settings(**tasks))
    await ledger.open()
    await flush(redis_url)
    try:
        yield ledger
    finally:
        await ledger.close()


async def flush(redis_url: str) -> None:
    """What a wiped Redis looks like."""
    redis = ArqRedis.from_url(redis_url)
    await redis.flushall()
    await redis.aclose(close_connection_pool=True)


@asynccontextmanager
async def running(process: Relay | Worker) -> AsyncGenerator[None]:
    """Runs until the block ends, then stops it and waits; whatever it raised is raised here."""
    task = asyncio.create_task(process.run())
    try:
        yield
    finally:
        process.stop()
        await asyncio.wait_for(task, 30)


async def eventually(
    condition: Callable[[], Awaitable[bool]], *, seconds: float = 20, what: Callable[[], str] = lambda: ""
) -> None:
    until = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what()}"
        await asyncio.sleep(0.02)
