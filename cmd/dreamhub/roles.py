"""The product's own processes as children of `up`: their commands, environments, and signs of readiness.

Secrets travel in the environment only, never on a command line, where `ps` shows them; each process gets the logins
of its own role and no other's.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path

import httpx
import msgspec

from dreamhub.console import LogFile
from dreamhub.databases import Databases
from dreamhub.embedded import LOOPBACK, free_port
from dreamhub.home import Home, Secrets
from dreamhub.listener import Listener
from dreamhub.supervisor import Spec
from pkg.config import Settings

SOCKET_PATH_BYTES = 107
PROBE_SECONDS = 2.0
DRAIN_SECONDS = 25.0  # a process gives itself 20
NOT_FOR_MODELS = ("AUTH__", "DB__", "REDIS__", "BLOBS__", "AI__")
LOGINS = frozenset({"DB__DSN", "DB__WORKER_DSN", "DB__RELAY_DSN", "DB__OWNER_DSN", "DB__BOOTSTRAP_DSN"})


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is. `clamd` is that of `up`, and empty where there is none."""

    host: str
    port: int
    redis_url: str
    models_url: str
    databases: Databases
    clamd: str

    @property
    def url(self) -> str:
        """The API as a client on this machine reaches it."""
        host = LOOPBACK if self.host in ("0.0.0.0", "::", "") else self.host  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class Roles:
    """Makes the `Spec` of each process."""

    def __init__(self, home: Home, settings: Settings, secrets: Secrets, addresses: Addresses) -> None:
        self._home = home
        self._addresses = addresses
        self._settings = settings
        self._common = _inherited() | {
            "DREAMHUB_HOME": str(home.root),
            "MODELS__URL": addresses.models_url,
            "MODELS__CACHE_DIR": settings.models.cache_dir or str(home.models),
        }
        self._service = self._common | {
            "AUTH__PLATFORM_TOKEN": settings.auth.platform_token.get_secret_value() or secrets.platform_token,
            "AUTH__JWT_SECRET": settings.auth.jwt_secret.get_secret_value() or secrets.jwt_secret,
            "REDIS__URL": addresses.redis_url,
            "BLOBS__URL": settings.blobs.url or home.blobs.as_uri(),
        }

    @property
    def _scanner(self) -> dict[str, str]:
        """Where `up` has a clamd of its own."""
        return {"SCAN__CLAMD": self._addresses.clamd} if self._addresses.clamd else {}

    @property
    def platform_token(self) -> str:
        """The credential that makes tenants."""
        return self._service["AUTH__PLATFORM_TOKEN"]

    def migration(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Command and environment of the one-shot migration."""
        databases = self._addresses.databases
        return _command("migrate"), self._service | {"DB__DSN": databases.app, "DB__OWNER_DSN": databases.owner}

    def models(self) -> Spec:
        """The local models; sees neither database nor credentials. Embeds only where no other model is named."""
        address = self._addresses.models_url
        environment = {name: v for name, v in self._common.items() if not name.upper().startswith(NOT_FOR_MODELS)}
        if self._settings.ai.embedding_model:
            environment["MODELS__PRELOAD"] = "false"
        return self._spec("models", environment, stop_seconds=5.0, ready=lambda: _answers(address, "/readyz"))

    def server(self, listener: Listener) -> Spec:
        """The API, on sockets that outlive it."""
        addresses = self._addresses
        environment = self._service | {
            "SERVER__HOST": addresses.host,
            "SERVER__PORT": str(addresses.port),
            "DB__DSN": addresses.databases.app,
        }
        spec = self._spec(
            "serve",
            environment | self._scanner,
            role="server",
            name="server",
            ready=lambda: _answers(addresses.url, "/readyz"),
        )
        flags = [f"--fd={descriptor}" for descriptor in listener.descriptors]
        return msgspec.structs.replace(
            spec,
            command=(*spec.command, *flags),
            descriptors=listener.descriptors,
            meanwhile=listener.meanwhile,
        )

    def relay(self) -> Spec:
        """Outbox and dispatcher; it also looks whether the others answer."""
        environment = self._service | {"DB__DSN": self._addresses.databases.relay}
        return self._spec("relay", environment | self._scanner)

    def worker(self, number: int) -> Spec:
        """One worker of all queues; `number` counts from 1."""
        return self._spec(
            "work",
            self._service | self._scanner | {"DB__DSN": self._addresses.databases.worker},
            role="worker",
            name=f"worker-{number}",
        )

    def _spec(
        self,
        command: str,
        environment: Mapping[str, str],
        *,
        role: str = "",
        name: str = "",
        stop_seconds: float = DRAIN_SECONDS,
        ready: Callable[[], Awaitable[bool]] | None = None,
    ) -> Spec:
        return Spec(
            name=name or command,
            role=role or command,
            command=_command(command),
            env=environment,
            log=LogFile(self._home.logs / f"{name or command}.log"),
            stop_signal=signal.SIGTERM,
            stop_seconds=stop_seconds,
            ready=ready,
            on_console=self._settings.env == "development",
        )


def local_models_url(home: Home) -> str:
    """A socket in the home, or a loopback port where the path is too long for a socket."""
    path = home.run / "models.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return f"unix:{path}"
    return f"http://{LOOPBACK}:{free_port()}"


async def _answers(url: str, path: str) -> bool:
    """True when GET `path` answers 200."""
    socket = url.removeprefix("unix:") if url.startswith("unix:") else None
    transport = httpx.AsyncHTTPTransport(uds=socket) if socket else None
    async with httpx.AsyncClient(transport=transport, timeout=PROBE_SECONDS, trust_env=False) as client:
        try:
            answer = await client.get(f"http://models{path}" if socket else f"{url}{path}")
        except httpx.HTTPError:
            return False
        return answer.status_code == HTTPStatus.OK


def _command(role: str) -> tuple[str, ...]:
    # -P: a folder `pkg` or `internal` in the current directory must not hide ours
    return (sys.executable, "-P", "-m", "dreamhub", role)


def _inherited() -> dict[str, str]:
    """This process's environment without the database logins, and with the way to this very code."""
    package = Path(__file__).resolve().parent
    paths = [str(package.parent)]
    if not (package / "_bundle").is_dir():
        paths.append(str(package.parents[1]))
    if existing := os.environ.get("PYTHONPATH"):
        paths.append(existing)
    kept = {name: value for name, value in os.environ.items() if name.upper() not in LOGINS}
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
