"""What a PostgreSQL or a Redis server says of itself, for start-up checks and `dreamhub doctor`."""

import asyncio
import math

import asyncpg
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from internal.entities.watch import Installation
from internal.repositories.watch import InstallationRepository
from pkg.apperr import AppError, Code


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
