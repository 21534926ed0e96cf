"""A connection of its own that listens for news and holds the relay's lock."""

import asyncio

import asyncpg

from internal.repositories import outbox, tasks
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code

RELAY_LOCK = 0x72656C61  # "rela"
# The last one is what asyncpg says when the server's goodbye arrives between two queries.
GONE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class NewsLine:
    """LISTEN and an advisory lock live as long as their session, so neither may pass through a pool.

    It must be a direct connection: a pooler in transaction mode gives the session to somebody else.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._conn: asyncpg.Connection | None = None
        self._leading = False
        self._news = asyncio.Event()

    async def open(self) -> None:
        """Connects and listens. Raises DATABASE_UNAVAILABLE."""
        await self.close()
        try:
            self._conn = conn = await asyncpg.connect(self._dsn, timeout=10, command_timeout=10)
            conn.add_termination_listener(self._wake)
            for channel in (tasks.CHANNEL, outbox.CHANNEL):
                await conn.add_listener(channel, self._wake)
        except GONE as error:
            raise _unavailable() from error

    async def lead(self) -> bool:
        """True when this session holds the lock, or has just got it. Raises DATABASE_UNAVAILABLE."""
        if self._conn is None or self._conn.is_closed():
            raise _unavailable()
        try:
            if not self._leading:
                self._leading = sure(await self._conn.fetchval("select pg_try_advisory_lock($1)", RELAY_LOCK))
        except GONE as error:
            raise _unavailable() from error
        return self._leading

    async def wait(self, seconds: float) -> None:
        """Returns at the next news, or after `seconds`. Raises DATABASE_UNAVAILABLE when the line is cut."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass  # the poll that catches what no notification told
        self._news.clear()
        if self._conn is None or self._conn.is_closed():
            raise _unavailable()

    def wake(self) -> None:
        """Ends a wait from within this process."""
        self._news.set()

    async def close(self) -> None:
        """Gives the lock back."""
        conn, self._conn, self._leading = self._conn, None, False
        if conn is None:
            return
        try:
            await conn.close(timeout=2)
        except GONE:
            conn.terminate()  # the server is gone or doesn't answer; it drops session and lock by itself

    def _wake(self, *_: object) -> None:
        self._news.set()


def _unavailable() -> AppError:
    return AppError(Code.DATABASE_UNAVAILABLE, "The relay's connection to the database is gone; it connects again.")
