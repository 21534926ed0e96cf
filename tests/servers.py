"""Real PostgreSQL and Valkey for tests: started once in a session, a fresh database for whoever asks."""

import asyncio
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import msgspec

from dreamhub.accounts import find_binaries, servers_account
from dreamhub.embedded import SUPERUSER, Postgres, Program, Valkey, free_port
from dreamhub.processes import die_with_parent
from internal.entities.search import Space
from internal.repositories import migrate

START_SECONDS = 30.0
STOP_SECONDS = 20.0
TEMPLATE = "dreamhub_template"
SPACE = Space("multilingual-e5-small", "2", 384)


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """One migrated database: a DSN for each role."""

    name: str
    superuser: str
    owner: str
    app: str
    worker: str
    relay: str
    backup: str


class Servers:
    """Both servers of one test session, and the databases on them."""

    def __init__(self, postgres: Postgres, valkey: Valkey, passwords: dict[str, str]) -> None:
        self._postgres = postgres
        self.passwords = passwords
        self._template_lock = asyncio.Lock()
        self._template_made = False
        self.redis_url = valkey.url

    def superuser_dsn(self, database: str = "postgres") -> str:
        return self._postgres.dsn(SUPERUSER, self.passwords[SUPERUSER], database)

    def dsn(self, role: str, database: str) -> str:
        return self._postgres.dsn(role, self.passwords[role], database)

    async def empty_database(self) -> Database:
        """Roles, extension and rights, but no migration."""
        database = self._named(f"empty_{secrets.token_hex(4)}")
        await migrate.bootstrap(self.superuser_dsn(), self.passwords, database=database.name)
        return database

    async def fresh_database(self) -> Database:
        """A migrated database of its own, cloned from a template."""
        async with self._template_lock:
            if not self._template_made:
                await migrate.bootstrap(self.superuser_dsn(), self.passwords, database=TEMPLATE)
                await migrate.migrate(self.dsn(migrate.OWNER, TEMPLATE), SPACE)
                self._template_made = True
        database = self._named(f"test_{secrets.token_hex(4)}")
        conn = await asyncpg.connect(self.superuser_dsn())
        try:
            await conn.execute(
                f"create database {database.name} template {TEMPLATE} owner {migrate.OWNER} strategy file_copy"
            )
        finally:
            await conn.close()
        # A clone has no rights of its own on the database: give and take them as a start does.
        await migrate.bootstrap(self.superuser_dsn(), {}, database=database.name)
        return database

    async def drop(self, database: Database) -> None:
        conn = await asyncpg.connect(self.superuser_dsn())
        try:
            await conn.execute(f"drop database if exists {database.name} with (force)")
        finally:
            await conn.close()

    def _named(self, name: str) -> Database:
        return Database(
            name=name,
            superuser=self.superuser_dsn(name),
            owner=self.dsn(migrate.OWNER, name),
            app=self.dsn(migrate.APP, name),
            worker=self.dsn(migrate.WORKER, name),
            relay=self.dsn(migrate.RELAY, name),
            backup=self.dsn(migrate.BACKUP, name),
        )


@asynccontextmanager
async def borrowed_database(servers: Servers) -> AsyncGenerator[Database]:
    """A migrated database that is dropped afterwards."""
    database = await servers.fresh_database()
    try:
        yield database
    finally:
        await servers.drop(database)


@contextmanager
def running_servers() -> Generator[Servers]:
    """Starts both servers in a folder of their own; stops them and removes it afterwards."""
    with reachable_folder() as folder:
        name = f"dreamhub-test-{secrets.token_hex(4)}"
        passwords = {role: secrets.token_urlsafe(12) for role in (SUPERUSER, *migrate.LOGIN_ROLES)}
        binaries, account = find_binaries(), servers_account(folder / "postgres" / "data")
        postgres = Postgres(folder / "postgres", binaries=binaries, account=account, name=name, port=free_port())
        valkey = Valkey(
            folder / "redis",
            binaries=binaries,
            account=account,
            name=name,
            port=free_port(),
            password=secrets.token_urlsafe(12),
        )
        postgres.prepare(passwords[SUPERUSER], durable=False)
        valkey.prepare()
        log = folder / "servers.log"
        started = []
        try:
            for server in (postgres, valkey):
                started.append(start(server.program(), log))
            for server in (postgres, valkey):
                asyncio.run(until_ready(server, log))
            yield Servers(postgres, valkey, passwords)
        finally:
            for process in reversed(started):
                stop(process)


@contextmanager
def reachable_folder() -> Generator[Path]:
    """A temporary folder that the servers' account can pass through, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="dreamhub-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def start(program: Program, log: Path) -> subprocess.Popen[bytes]:
    """Starts a server that ends with this process, however this process ends."""
    with log.open("ab") as output:
        return subprocess.Popen(
            program.command,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent(program.stop_signal),
            **(program.account.popen_arguments() if program.account else {}),
        )


async def until_ready(server: Postgres | Valkey, log: Path, seconds: float = START_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not await server.ready():
        assert time.monotonic() < until, f"{log} tells why"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def launched(server: Postgres | Valkey, log: Path) -> AsyncGenerator[subprocess.Popen[bytes]]:
    """One prepared server, ready; its end is waited for and, if it was not ended before, brought about."""
    process = start(server.program(), log)
    try:
        await until_ready(server, log)
        yield process
    finally:
        server.clear()
        process.wait(STOP_SECONDS)


def stop(process: subprocess.Popen[bytes]) -> None:
    """At once and without a checkpoint: the data is thrown away."""
    process.send_signal(signal.SIGQUIT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
