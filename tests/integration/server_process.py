"""A server in a process of its own, to be stopped, killed and measured."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil

from dreamhub.embedded import free_port
from tests.integration.api import JWT_SECRET, PLATFORM_TOKEN
from tests.servers import Database

START_SECONDS = 60.0


class ServerProcess:
    """`dreamhub serve` on a port that stays the same over restarts."""

    def __init__(self, database: Database, redis_url: str, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self._environment = {
            **os.environ,
            "DREAMHUB_HOME": str(folder),
            "SERVER__PORT": str(self._port),
            "AUTH__PLATFORM_TOKEN": PLATFORM_TOKEN,
            "AUTH__JWT_SECRET": JWT_SECRET,
            "DB__DSN": database.app,
            "REDIS__URL": redis_url,
            "BLOBS__URL": (folder / "blobs").as_uri(),
            "MODELS__URL": "http://127.0.0.1:9",  # nobody is there
            "LIMITS__RATE_PER_MINUTE": "100000",
            "LIMITS__STREAMS_PER_KEY": "1000",
            "LIMITS__STREAMS_PER_TENANT": "1000",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    async def start(self) -> None:
        """Returns when it answers."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "dreamhub", "serve"), env=self._environment, stdout=log, stderr=log
            )
        async with asyncio.timeout(START_SECONDS), httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            while True:
                assert self._process.returncode is None, (self._folder / "server.log").read_text()[-4000:]
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/healthz")).is_success:
                        return
                await asyncio.sleep(0.05)

    async def end(self, number: int) -> int:
        """Sends the signal; answers how the process ended."""
        assert self._process is not None
        self._process.send_signal(number)
        return await self._process.wait()

    @property
    def rss(self) -> int:
        """Bytes of memory that it has."""
        assert self._process is not None
        return psutil.Process(self._process.pid).memory_info().rss

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None


@asynccontextmanager
async def server_process(database: Database, redis_url: str, folder: Path) -> AsyncGenerator[ServerProcess]:
    server = ServerProcess(database, redis_url, folder)
    await server.start()
    try:
        yield server
    finally:
        if server.running:
            await server.end(signal.SIGKILL)
