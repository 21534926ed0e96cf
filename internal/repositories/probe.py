"""What a PostgreSQL or a Redis server says of itself, for start-up checks and `dreamhub doctor`."""

import asyncio
import math

import asyncpg
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from internal.entities.search import Space
from internal.entities.watch import Installation
from internal.repositories.search_function import EXACT_CHUNKS
from internal.repositories.spaces import find_space
from internal.repositories.watch import InstallationRepository
from pkg.apperr import AppError, Code

RECALL_TENANTS, RECALL_QUERIES = 5, 20
RECALL_SECONDS = 60.0


class PostgresFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The login role and what the server offers. `pgvector` is None where the extension isn't in the database."""

    version: str
    major: int
    role: str
    superuser: bool
    bypasses_rls: bool
    pgvector: str | None


async def postgres(dsn: str, timeout: float) -> PostgresFacts:  # noqa: ASYNC109 - asyncpg's own
    """Logs in once. Raises AppError(DATABASE_UNAVAILABLE) with the reason, and without the password."""
    try:
        conn = await asyncpg.connect(dsn, timeout=math.ceil(timeout))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise AppError(Code.DATABASE_UNAVAILABLE, f"no login to PostgreSQL: {_reason(error)}") from None
    try:
        row = await conn.fetchrow(
            "select rolname, rolsuper, rolbypassrls, current_setting('server_version') as version,"
            " (select extversion from pg_extension where extname = 'vector') as pgvector"
            " from pg_roles where rolname = current_user"
        )
    finally:
        await conn.close(timeout=timeout)
    if row is None:
        raise AppError(Code.DATABASE_UNAVAILABLE, "PostgreSQL doesn't know the login role")
    return PostgresFacts(
        version=row["version"].split()[0],
        major=conn.get_server_version().major,
        role=row["rolname"],
        superuser=row["rolsuper"],
        bypasses_rls=row["rolbypassrls"],
        pgvector=row["pgvector"],
    )


async def installation(dsn: str, timeout: float) -> Installation:  # noqa: ASYNC109 - asyncpg's own
    """What relays and sweeps have seen. Raises AppError(DATABASE_UNAVAILABLE) also for a login that may not ask."""
    try:
        conn = await asyncpg.connect(dsn, timeout=math.ceil(timeout))
        try:
            return await InstallationRepository(conn).get()
        finally:
            await conn.close(timeout=timeout)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise AppError(Code.DATABASE_UNAVAILABLE, f"what relays have seen can't be read: {_reason(error)}") from None


class Recall(msgspec.Struct, frozen=True):
    """How many of the ten nearest passages the vector index finds, as a share, over `queries` stored passages of the
    `tenants` whose searches use it."""

    tenants: int
    queries: int
    share: float


async def recall(dsn: str, space: Space, timeout: float) -> Recall | None:  # noqa: ASYNC109 - asyncpg's own
    """Asks a sample of the largest tenants' own passages for their neighbours, by the index and one by one.

    `dsn` is the owner's. None where no tenant has so many passages that its searches use the index, or where the space
    isn't in the database. Raises AppError(DATABASE_UNAVAILABLE).
    """
    try:
        conn = await asyncpg.connect(dsn, timeout=math.ceil(timeout))
        try:
            async with asyncio.timeout(RECALL_SECONDS):
                return await _recall(conn, space)
        finally:
            await conn.close(timeout=timeout)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise AppError(Code.DATABASE_UNAVAILABLE, f"the index can't be tried: {_reason(error)}") from None


async def _recall(conn: asyncpg.Connection, wanted: Space) -> Recall | None:
    space = await find_space(conn, wanted)
    if space is None:
        return None
    tenants = await conn.fetch(
        "select tenant_id from tenant_statistics where chunks > $1 order by chunks desc limit $2",
        EXACT_CHUNKS,
        RECALL_TENANTS,
    )
    # As a search sets it, and for the exact list no index.
    await conn.execute(
        "set hnsw.iterative_scan = 'relaxed_order'; set hnsw.ef_search = 100; set plan_cache_mode = 'force_custom_plan'"
    )
    distance = f"embedding <=> $2::text::{space.storage}"
    near = f"select chunk_id from {space.table} where tenant_id = $1 order by"  # noqa: S608 - a name made by code
    shares: list[float] = []
    for (tenant,) in tenants:
        sample = await conn.fetch(
            f"select embedding::text from {space.table} where tenant_id = $1 order by random() limit $2",  # noqa: S608 - likewise
            tenant,
            RECALL_QUERIES,
        )
        for (embedding,) in sample:
            quick = await conn.fetch(f"{near} {distance} limit 10", tenant, embedding)
            exact = await conn.fetch(f"{near} ({distance}) + 0 limit 10", tenant, embedding)
            shares.append(len(set(quick) & set(exact)) / len(exact))
    return Recall(len(tenants), len(shares), sum(shares) / len(shares)) if shares else None


async def redis(url: str, timeout: float) -> str:  # noqa: ASYNC109 - seconds for the whole exchange
    """The server's version, for example `9.1.2`. Raises AppError(REDIS_UNAVAILABLE) with the reason."""
    try:
        async with asyncio.timeout(timeout), Redis.from_url(url) as client:
            info = await client.info("server")
    except (OSError, TimeoutError, RedisError, ValueError) as error:
        raise AppError(Code.REDIS_UNAVAILABLE, f"no login to Redis: {_reason(error)}") from None
    return str(info.get("valkey_version", info.get("redis_version", "unknown")))


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
