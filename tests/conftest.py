"""Fixtures that every test may use: servers of this session, and databases on them."""

import signal
from collections.abc import AsyncGenerator, Generator

import pytest

from tests.servers import Database, Servers, borrowed_database, running_servers

# A shell that runs the suite in the background lets it ignore Ctrl-C, and every program under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers() -> Generator[Servers]:
    """PostgreSQL and Valkey of this process's own: under xdist each worker has a pair."""
    with running_servers() as found:
        yield found


@pytest.fixture(scope="session")
def postgres_superuser_dsn(servers: Servers) -> str:
    return servers.superuser_dsn()


@pytest.fixture(scope="session")
def redis_url(servers: Servers) -> str:
    """Shared by the session: use keys of your own, or FLUSHALL where you alone run."""
    return servers.redis_url


@pytest.fixture
async def database(servers: Servers) -> AsyncGenerator[Database]:
    """A migrated database for one test."""
    async with borrowed_database(servers) as found:
        yield found


@pytest.fixture(scope="module")
async def module_database(servers: Servers) -> AsyncGenerator[Database]:
    """A migrated database that the tests of one file share."""
    async with borrowed_database(servers) as found:
        yield found


@pytest.fixture
async def empty_database(servers: Servers) -> AsyncGenerator[Database]:
    """Roles and extension only, for tests of migrations."""
    found = await servers.empty_database()
    yield found
    await servers.drop(found)
