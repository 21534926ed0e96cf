"""A connection of its own that listens for news and holds the relay's lock."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

import asyncpg

from internal.repositories import outbox, tasks
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code

RELAY_LOCK = 0x72656C61  # "rela"
# The last one is what asyncpg says when the server's goodbye arrives between two queries.
GONE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
STALL_SECONDS = 8.0
"""A relay that says nothing for so long stands still or is cut off; the server ends its session, and with it its lock.
Longer than a round takes in which Redis doesn't answer."""


class NewsLine:
    """LISTEN and an advisory lock live as long as their session, so neither may pass through a pool.

    It must be a direct connection: a pooler in transaction mode gives the session to somebody else.
    """

    def __init__(self, dsn: str, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._dsn = dsn
        self._stall_seconds = stall_seconds
        self._conn: asyncpg.Connection | None = None
        self._leading = False
        self._news = asyncio.Event()

    async def open(self) -> None:
        """Connects and listens. Raises DATABASE_UNAVAILABLE."""
        await self.close()
        try:
            limits = {"idle_session_timeout": f"{self._stall_seconds * 1000:.0f}"}
            self._conn = conn = await asyncpg.connect(self._dsn, timeout=10, command_timeout=10, server_settings=limits)
            conn.add_termination_listener(self._wake)
            for channel in (tasks.CHANNEL, outbox.CHANNEL):
                await conn.add_listener(channel, self._wake)
        except GONE as error:
            raise _unavailable() from error

    async def lead(self) -> bool:
        """True when this session holds the lock, or has just got it. Raises DATABASE_UNAVAILABLE."""
        conn = self._session()
        if not self._leading:
            with _reachable():
                self._leading = sure(await conn.fetchval("select pg_try_advisory_lock($1)", RELAY_LOCK))
        return self._leading

    async def hold(self) -> None:
        """Keeps the lock; to be called well within the time of a stall. Raises DATABASE_UNAVAILABLE."""
        conn = self._session()
        with _reachable():
            await conn.execute("select")

    def _session(self) -> asyncpg.Connection:
        if self._conn is None or self._conn.is_closed():
            raise _unavailable()
        return self._conn

    async def wait(self, seconds: float) -> None:
        """Returns at the next news, or after `seconds`. Raises DATABASE_UNAVAILABLE when the line is cut."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass  # the poll that catches what no notification told
        self._news.clear()
        self._session()

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


@contextmanager
def _reachable() -> Generator[None]:
    try:
        yield
    except GONE as error:
        raise _unavailable() from error


def _unavailable() -> AppError:
    return AppError(Code.DATABASE_UNAVAILABLE, "The relay's connection to the database is gone; it connects again.")
