"""The product's processes and the servers beneath them, started one by one, watched, and started again."""

import asyncio
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import msgspec

from dreamhub.accounts import find_binaries, servers_account
from dreamhub.embedded import LOOPBACK, SUPERUSER, Postgres, Valkey, free_port
from dreamhub.processes import die_with_parent, stat
from internal.repositories import migrate
from tests.chaos import nursery
from tests.chaos.endpoint import DIMENSION, Endpoint
from tests.chaos.nursery import Ended, News, Order, Signal, Start, Started
from tests.servers import reachable_folder, start, stop, until_ready

DATABASE = "chaos"
MODEL = "fake-embedding"
READY_SECONDS = 90.0
REST_SECONDS = 0.1
"""Before a process that died is started again."""
WATCH_SECONDS = 0.5
ROLES = {"worker": "work", "relay": "relay", "server": "serve"}
LOGINS = {"worker": migrate.WORKER, "relay": migrate.RELAY, "server": migrate.APP}

Arm = Callable[[str, int], str]
"""A process's name and the number of its start → its failpoints."""
Born = Callable[[str, int, str], None]
"""Name, id and failpoints of a process that begins."""
Died = Callable[[str, int, int, str], None]
"""Name, id, exit code and failpoints of a process that ended; code -SIGSTOP: it stopped itself."""


class Fragile:
    """PostgreSQL or Valkey, ended without a farewell and started again."""

    def __init__(self, server: Postgres | Valkey, log: Path) -> None:
        self._server = server
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.lock = asyncio.Lock()

    async def start(self) -> None:
        await asyncio.to_thread(self._server.clear)
        self._process = start(self._server.program(), self._log)
        await until_ready(self._server, self._log, READY_SECONDS)

    async def stop(self) -> None:
        """SIGQUIT: PostgreSQL's immediate shutdown, without a checkpoint or a word to its clients."""
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(stop, process)


class Process(msgspec.Struct):
    """One of the product's processes. `planned` holds while it stands still because the schedule says so.

    `armed` are the failpoints that it was started with.
    """

    name: str
    pid: int = 0
    starts: int = 0
    armed: str = ""
    planned: bool = False


class Stage:
    """Everything that runs. `arm` says with which failpoints a process begins, `died` hears of each death."""

    def __init__(
        self,
        folder: Path,
        *,
        names: tuple[str, ...],
        settings: dict[str, str],
        arm: Arm,
        died: Died,
        born: Born,
    ) -> None:
        binaries, account = find_binaries(), servers_account(folder / "postgres" / "data")
        title = f"dreamhub-chaos-{secrets.token_hex(4)}"
        self.folder = folder
        self.blobs = folder / "blobs"
        self.url = f"http://{LOOPBACK}:{free_port()}"
        self.platform_token = secrets.token_urlsafe(36)
        self.endpoint = Endpoint()
        self.processes = {name: Process(name) for name in names}
        self._passwords = {role: secrets.token_urlsafe(12) for role in (SUPERUSER, *migrate.LOGIN_ROLES)}
        self._postgres = Postgres(folder / "postgres", binaries=binaries, account=account, name=title, port=free_port())
        self._valkey = Valkey(
            folder / "redis", binaries=binaries, account=account, name=title, port=free_port(), password=title
        )
        self.postgres = Fragile(self._postgres, folder / "servers.log")
        self.redis = Fragile(self._valkey, folder / "servers.log")
        self._settings = settings
        self.patience = float(settings["TASKS__LEASE_SECONDS"]) + 1.0
        self._arm = arm
        self._died = died
        self._born = born
        self._nursery: asyncio.subprocess.Process | None = None
        self._closing = False
        self._reviving: set[asyncio.Task[None]] = set()

    @property
    def superuser_dsn(self) -> str:
        return self.dsn(SUPERUSER)

    @property
    def redis_url(self) -> str:
        return self._valkey.url

    def dsn(self, role: str, database: str = DATABASE) -> str:
        return self._postgres.dsn(role, self._passwords[role], database)

    async def open(self, stack: AsyncExitStack) -> None:
        """Servers, a migrated database, the endpoint, and every process, ready."""
        self._postgres.prepare(self._passwords[SUPERUSER], durable=True)
        self._valkey.prepare()
        for server in (self.postgres, self.redis):
            stack.push_async_callback(server.stop)
            await server.start()
        await migrate.bootstrap(self.dsn(SUPERUSER, "postgres"), self._passwords, database=DATABASE)
        await self.endpoint.start()
        stack.push_async_callback(self.endpoint.stop)
        self.blobs.mkdir()
        (self.folder / "tmp").mkdir()
        await self._migrate()
        self._nursery = await asyncio.create_subprocess_exec(
            *nursery.launch_command(),
            env=nursery.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        stack.push_async_callback(self._close)
        chores = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]
        stack.callback(lambda: [chore.cancel() for chore in chores])
        for name in self.processes:
            self._begin(name)
        await self.until_answering()

    async def until_answering(self) -> None:
        """Waits until the API is ready."""
        until = time.monotonic() + READY_SECONDS
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            while True:
                try:
                    if (await client.get(f"{self.url}/readyz")).status_code == httpx.codes.OK:
                        return
                except httpx.HTTPError:
                    pass
                assert time.monotonic() < until, f"the API isn't ready; see {self.folder}"
                await asyncio.sleep(0.1)

    def signal(self, name: str, number: int) -> int:
        """Sends a signal; answers the process id, 0 when the process isn't there at the moment."""
        process = self.processes[name]
        if process.pid:
            self._order(Signal(name, process.pid, number))
        return process.pid

    def resume(self, name: str, pid: int) -> None:
        """Ends a pause, if the process is still the one that was paused."""
        self._order(Signal(name, pid, signal.SIGCONT))

    def disarm(self) -> list[str]:
        """Processes that start from now on have no failpoints; answers the names of those that have some."""
        self._arm = lambda _name, _start: ""
        return [process.name for process in self.processes.values() if process.armed]

    def _begin(self, name: str) -> None:
        process = self.processes[name]
        process.starts += 1
        process.armed = self._arm(name, process.starts)
        kind = name.partition("-")[0]
        self._order(
            Start(
                name,
                ROLES[kind],
                {**self._environment(kind), "DREAMHUB_FAILPOINTS": process.armed},
                str(self.folder / f"{name}.log"),
            )
        )

    def _environment(self, kind: str) -> dict[str, str]:
        return {
            **nursery.environment(),
            "DREAMHUB_HOME": str(self.folder),
            "DB__DSN": self.dsn(LOGINS[kind]),
            "REDIS__URL": self.redis_url,
            "BLOBS__URL": self.blobs.as_uri(),
            "AUTH__PLATFORM_TOKEN": self.platform_token,
            "AUTH__JWT_SECRET": self.platform_token[::-1],
            "SERVER__HOST": LOOPBACK,
            "SERVER__PORT": self.url.rpartition(":")[2],
            "AI__BASE_URL": self.endpoint.base_url,
            "AI__EMBEDDING_MODEL": MODEL,
            "AI__EMBEDDING_DIM": str(DIMENSION),
            "MODELS__URL": "http://127.0.0.1:9",  # nobody is there: no file has a picture
            "LOG__FORMAT": "json",
            **self._settings,
        }

    async def _migrate(self) -> None:
        environment = {**self._environment("server"), "DB__OWNER_DSN": self.dsn(migrate.OWNER)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "dreamhub", "migrate"), env=environment
        )
        assert await process.wait() == 0, "the migration failed"

    def _order(self, order: Order) -> None:
        if self._nursery is not None and self._nursery.stdin is not None:
            self._nursery.stdin.write(msgspec.json.encode(order) + b"\n")

    async def _listen(self) -> None:
        """Learns of starts and deaths, and starts again what died."""
        assert self._nursery is not None
        assert self._nursery.stdout is not None
        decoder = msgspec.json.Decoder(News)
        while line := await self._nursery.stdout.readline():
            news = decoder.decode(line)
            process = self.processes[news.name]
            if isinstance(news, Started):
                process.pid = news.pid
                self._born(news.name, news.pid, process.armed)
            elif isinstance(news, Ended):
                process.pid, process.planned = 0, False
                self._died(news.name, news.pid, news.code, process.armed)
                if not self._closing:
                    revival = asyncio.create_task(self._revive(news.name))
                    self._reviving.add(revival)
                    revival.add_done_callback(self._reviving.discard)

    async def _revive(self, name: str) -> None:
        await asyncio.sleep(REST_SECONDS)
        self._begin(name)

    async def _watch(self) -> None:
        """Wakes whoever stopped at a failpoint, after longer than a lease."""
        since: Counter[int] = Counter()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for process in self.processes.values():
                found = stat(process.pid) if process.pid else None
                if found is None or found.state != "T" or process.planned:
                    continue
                since[process.pid] += 1
                if since[process.pid] == 1:
                    self._died(process.name, process.pid, -signal.SIGSTOP, process.armed)
                if since[process.pid] * WATCH_SECONDS > self.patience:
                    self.resume(process.name, process.pid)

    async def _close(self) -> None:
        """Everything that the nursery forked ends with its input."""
        self._closing = True
        for revival in self._reviving:
            revival.cancel()
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        await self._nursery.wait()


@asynccontextmanager
async def opened(
    names: tuple[str, ...], settings: dict[str, str], *, arm: Arm, born: Born, died: Died
) -> AsyncGenerator[Stage]:
    """A stage in a folder of its own, taken down afterwards."""
    with reachable_folder() as folder:
        async with AsyncExitStack() as stack:
            stage = Stage(folder, names=names, settings=settings, arm=arm, born=born, died=died)
            await stage.open(stack)
            yield stage
