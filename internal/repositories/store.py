"""The only door to the database. No repository exists without a transaction, and no transaction without a tenant."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import cast
from uuid import UUID

import asyncpg
import numpy as np
import numpy.typing as npt
from asyncpg.pool import PoolConnectionProxy
from pgvector.asyncpg import register_vector

from internal.entities.search import Filters, QueryTerms, Space
from internal.entities.tasks import TaskPolicy
from internal.repositories.batch_work import BatchWorkRepository
from internal.repositories.batches import BatchRepository
from internal.repositories.chunks import ChunkRepository
from internal.repositories.collections import CollectionRepository
from internal.repositories.contents import ContentRepository
from internal.repositories.conversations import ConversationRepository
from internal.repositories.documents import DocumentRepository
from internal.repositories.generations import GenerationRepository
from internal.repositories.idempotency import IdempotencyRepository
from internal.repositories.identity import DirectoryRepository, IdentityRepository
from internal.repositories.ledger import LedgerRepository
from internal.repositories.lexicon import LexiconRepository
from internal.repositories.memories import MemoryRepository
from internal.repositories.messages import MessageRepository
from internal.repositories.migrate import lacking
from internal.repositories.notices import NoticeRepository
from internal.repositories.objects import ObjectRepository
from internal.repositories.outbox import OutboxRepository
from internal.repositories.processing import ProcessingRepository
from internal.repositories.room import RoomRepository
from internal.repositories.search import CacheScope, Found, cache_scope, search
from internal.repositories.spaces import find_space
from internal.repositories.standings import StandingRepository
from internal.repositories.task_batches import TaskBatchRepository
from internal.repositories.tasks import TaskRepository
from internal.repositories.token_codes import TokenCodeRepository
from internal.repositories.uploads import UploadRepository
from internal.repositories.usage import UsageRepository
from internal.repositories.vectors import VectorRepository
from internal.repositories.versions import VersionRepository
from internal.repositories.watch import InstallationRepository, WatchRepository
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

# The server is away or full, or a lock could not be had: the same again may well succeed.
UNAVAILABLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    ConnectionError,
)


class Tx:
    """One transaction of one tenant and user, and the repositories that live in it."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context, tasks: TaskPolicy) -> None:
        self._conn = conn
        self._ctx = ctx
        self._tasks = tasks

    @cached_property
    def collections(self) -> CollectionRepository:
        """Named groups of documents."""
        return CollectionRepository(self._conn, self._ctx)

    @cached_property
    def contents(self) -> ContentRepository:
        """What was uploaded, once for each digest."""
        return ContentRepository(self._conn, self._ctx)

    @cached_property
    def documents(self) -> DocumentRepository:
        """Users' handles on contents."""
        return DocumentRepository(self._conn, self._ctx)

    @cached_property
    def conversations(self) -> ConversationRepository:
        """Conversations of the context's user."""
        return ConversationRepository(self._conn, self._ctx)

    @cached_property
    def messages(self) -> MessageRepository:
        """Turns of the context's user's conversations."""
        return MessageRepository(self._conn, self._ctx, self._ctx.user_id)

    def messages_of(self, user_id: UUID) -> MessageRepository:
        """The same of another user, for a worker that digests them in nobody's name."""
        return MessageRepository(self._conn, self._ctx, user_id)

    @cached_property
    def memories(self) -> MemoryRepository:
        """What is remembered of the context's user's conversations."""
        return MemoryRepository(self._conn, self._ctx, self._ctx.user_id)

    def memories_of(self, user_id: UUID) -> MemoryRepository:
        """The same of another user, for a worker that digests in nobody's name."""
        return MemoryRepository(self._conn, self._ctx, user_id)

    @cached_property
    def identity(self) -> IdentityRepository:
        """Members, API keys and sign-ins."""
        return IdentityRepository(self._conn, self._ctx)

    @cached_property
    def idempotency(self) -> IdempotencyRepository:
        """Which POST was done before."""
        return IdempotencyRepository(self._conn, self._ctx)

    @cached_property
    def generations(self) -> GenerationRepository:
        """Processing versions of contents."""
        return GenerationRepository(self._conn, self._ctx)

    @cached_property
    def chunks(self) -> ChunkRepository:
        """Passages of a generation."""
        return ChunkRepository(self._conn, self._ctx)

    @cached_property
    def vectors(self) -> VectorRepository:
        """Vectors of passages."""
        return VectorRepository(self._conn, self._ctx)

    @cached_property
    def token_codes(self) -> TokenCodeRepository:
        """Codes of the tokens of passages."""
        return TokenCodeRepository(self._conn, self._ctx)

    @cached_property
    def lexicon(self) -> LexiconRepository:
        """Terms of passages and their frequencies."""
        return LexiconRepository(self._conn, self._ctx)

    @cached_property
    def tasks(self) -> TaskRepository:
        """Work that outlasts a request, and the writes of a lease's holder."""
        return TaskRepository(self._conn, self._ctx, self._tasks)

    @cached_property
    def room(self) -> RoomRepository:
        """How much the tenant may still add to the queues."""
        return RoomRepository(self._conn, self._ctx, self._tasks)

    @cached_property
    def standings(self) -> StandingRepository:
        """Where a queued task stands among all."""
        return StandingRepository(self._conn)

    @cached_property
    def task_batches(self) -> TaskBatchRepository:
        """Many tasks at once."""
        return TaskBatchRepository(self._conn, self._ctx)

    @cached_property
    def batches(self) -> BatchRepository:
        """What one request began for many, as its user sees it."""
        return BatchRepository(self._conn, self._ctx)

    @cached_property
    def batch_work(self) -> BatchWorkRepository:
        """The same for the worker that does it."""
        return BatchWorkRepository(self._conn, self._ctx)

    @cached_property
    def versions(self) -> VersionRepository:
        """What documents' contents were and will be."""
        return VersionRepository(self._conn, self._ctx)

    @cached_property
    def uploads(self) -> UploadRepository:
        """Files that come in pieces."""
        return UploadRepository(self._conn, self._ctx)

    @cached_property
    def processing(self) -> ProcessingRepository:
        """Which version reads, and what it replaced."""
        return ProcessingRepository(self._conn, self._ctx)

    @cached_property
    def usage(self) -> UsageRepository:
        """What model calls took, and what is kept."""
        return UsageRepository(self._conn, self._ctx)

    @cached_property
    def objects(self) -> ObjectRepository:
        """Which objects are held, and which are missing."""
        return ObjectRepository(self._conn, self._ctx)

    @cached_property
    def outbox(self) -> OutboxRepository:
        """Events on their way out."""
        return OutboxRepository(self._conn, self._ctx)

    @cached_property
    def notices(self) -> NoticeRepository:
        """Events and progress for those who follow them."""
        return NoticeRepository(self._conn, self._ctx)


class SystemTx:
    """One transaction without a tenant: only allow-listed functions answer, with ids and counts."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    @cached_property
    def ledger(self) -> LedgerRepository:
        """Dispatch, claims, sweeps and the outbox, across tenants."""
        return LedgerRepository(self._conn)

    @cached_property
    def watch(self) -> WatchRepository:
        """Looks at queues, and alerts."""
        return WatchRepository(self._conn)

    @cached_property
    def installation(self) -> InstallationRepository:
        """What was seen of the whole installation."""
        return InstallationRepository(self._conn)


class Store:
    """A pool of connections of one login role, handed out as tenant transactions."""

    def __init__(self, pool: asyncpg.Pool, tasks: TaskPolicy) -> None:
        self._pool = pool
        self._tasks = tasks
        self._log = logger.get("store")

    @asynccontextmanager
    async def tenant(self, ctx: Context) -> AsyncGenerator[Tx]:
        """A transaction that sees the context's tenant and user and nothing else; commits unless the block raises."""
        _require(ctx)
        async with self._connection() as conn:
            # Begin and set in one round trip. Both values are UUID objects, so nothing foreign gets into the text.
            await conn.execute(
                f"begin; set local app.tenant_id = '{ctx.tenant_id}'; set local app.user_id = '{ctx.user_id}'"
            )
            try:
                yield Tx(conn, ctx, self._tasks)
            except Exception:
                if not _is_gone(conn):
                    await conn.execute("rollback")
                raise
            # Cancelled, the connection isn't free yet; then the pool's reset rolls back.
            await conn.execute("commit")

    @asynccontextmanager
    async def directory(self) -> AsyncGenerator[DirectoryRepository]:
        """Before it is known who asks: a few allow-listed functions, each a transaction of its own; no table."""
        async with self._connection() as conn:
            yield DirectoryRepository(conn)

    async def ping(self) -> float:
        """Milliseconds that an answer took. Raises DATABASE_UNAVAILABLE."""
        started = time.perf_counter()
        async with self._connection() as conn:
            await conn.execute("select 1")
        return (time.perf_counter() - started) * 1000

    async def check_schema(self, migrations: Sequence[str]) -> None:
        """Raises DATABASE_UNAVAILABLE when the database lacks some of these."""
        async with self._connection() as conn:
            missing = await lacking(conn, migrations)
        if missing:
            raise AppError(Code.DATABASE_UNAVAILABLE, f"{len(missing)} migrations are missing: run `dreamhub migrate`.")

    async def find_space(self, space: Space) -> Space | None:
        """The registered embedding space with this model, version and dimension."""
        async with self._connection() as conn:
            return await find_space(conn, space)

    @asynccontextmanager
    async def system(self, reason: str) -> AsyncGenerator[SystemTx]:
        """A transaction that belongs to no tenant, for the few jobs across tenants; `reason` goes to the log."""
        self._log.debug("system transaction", reason=reason)
        async with self._connection() as conn:
            await conn.execute("begin")
            yield SystemTx(conn)
            await conn.execute("commit")

    async def search(
        self,
        ctx: Context,
        space: Space,
        *,
        embedding: npt.NDArray[np.float32] | None,
        terms: QueryTerms | None,
        filters: Filters,
        k: int,
        reranked: int = 0,
    ) -> Found:
        """One round trip: the database function sets tenant and user for itself. See repositories/search.py."""
        _require(ctx)
        async with self._connection() as conn:
            return await search(
                conn, ctx, space, embedding=embedding, terms=terms, filters=filters, k=k, reranked=reranked
            )

    async def cache_scope(self, ctx: Context) -> CacheScope:
        """What a remembered search depends on; one round trip, as a search."""
        _require(ctx)
        async with self._connection() as conn:
            return await cache_scope(conn, ctx)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[asyncpg.Connection]:
        try:
            acquired = await self._pool.acquire(timeout=10)
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError) as error:
            raise _unavailable() from error
        try:
            # A pool hands out proxies that offer the whole interface of a connection.
            yield cast(asyncpg.Connection, acquired)
        except UNAVAILABLE as error:
            raise _unavailable() from error
        except (asyncpg.DataError, ValueError) as error:
            if isinstance(error, ValueError) and not isinstance(error, asyncpg.InterfaceError):
                raise  # not what asyncpg says of a value that it can't encode
            self._log.warning("a value was refused by the database", cause=type(error).__name__)
            raise AppError(Code.REQUEST_INVALID, "A value in the request can't be stored or compared.") from error
        except asyncpg.InterfaceError as error:
            if _is_gone(acquired):
                raise _unavailable() from error
            raise
        except asyncpg.InternalClientError as error:
            # What asyncpg says when the server's goodbye arrives between two queries.
            acquired.terminate()
            raise _unavailable() from error
        finally:
            await self._pool.release(acquired)

    async def close(self) -> None:
        """Waits for running transactions, at most 10 s, then closes every connection."""
        await self._pool.close()


def _is_gone(acquired: PoolConnectionProxy | asyncpg.Connection) -> bool:
    """Whether the server has closed it; the pool takes such a connection back at once, and then asking it raises."""
    try:
        return acquired.is_closed()
    except asyncpg.InterfaceError:
        return True


def _unavailable() -> AppError:
    return AppError(Code.DATABASE_UNAVAILABLE, "The database can't be reached; try again shortly.", retry_after=2)


def _require(ctx: Context) -> None:
    """Fails closed before any SQL when somebody forged or forgot a tenant."""
    if ctx.tenant_id.int == 0 or ctx.user_id.int == 0:
        raise AppError(Code.INTERNAL, "A query was attempted without a tenant.")


async def open_store(
    dsn: str,
    *,
    pool_min: int = 1,
    pool_max: int = 10,
    connect_seconds: float = 10.0,
    tasks: TaskPolicy | None = None,
) -> Store:
    """Opens the pool as the role that `dsn` names. Refuses a role that row-level security doesn't bind."""
    pool = await asyncpg.create_pool(
        dsn, min_size=pool_min, max_size=pool_max, timeout=connect_seconds, init=register_vector, reset=_reset
    )
    async with pool.acquire() as conn:
        unbound = await conn.fetchval("select rolsuper or rolbypassrls from pg_roles where rolname = current_user")
    if unbound:
        await pool.close()
        raise AppError(
            Code.SETTING_INVALID,
            "DB__DSN: this role can bypass row-level security; use dreamhub_app, dreamhub_worker or dreamhub_relay.",
        )
    return Store(pool, tasks or TaskPolicy())


async def _reset(conn: asyncpg.Connection) -> None:
    """Nothing is ever set at session level, so ending a transaction that a cancelled request left is all there is.

    asyncpg's own reset costs another 100 µs a request; tests/integration/test_store.py proves that nothing stays.
    """
    if conn.is_in_transaction():
        await conn.execute("rollback")
