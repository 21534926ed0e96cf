"""`dreamhub up`: everything that one machine needs, started, watched and stopped by one command."""

import asyncio
import os
import signal
import subprocess
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import msgspec

from dreamhub import databases, scanner
from dreamhub.accounts import find_binaries, scanner_account, servers_account, servers_folder
from dreamhub.console import Console, LogFile
from dreamhub.embedded import SUPERUSER, Postgres, Program, Valkey, free_port
from dreamhub.errors import StartError
from dreamhub.home import Home, Secrets
from dreamhub.listener import Listener
from dreamhub.processes import alive, die_with_parent, end, in_groups
from dreamhub.roles import Addresses, Roles, local_models_url
from dreamhub.scanner import Clamd, Off
from dreamhub.supervisor import Spec, Supervisor
from internal.repositories.migrate import LOGIN_ROLES
from pkg import config
from pkg.version import version

POSTGRES_SECONDS = 120.0  # recovery after a crash included
REDIS_SECONDS = 15.0
MODELS_SECONDS = 120.0
CLAMD_SECONDS = 60.0  # eight million signatures take half of it
SERVER_SECONDS = 120.0  # it is ready when the models are
MIGRATE_SECONDS = 600.0
REQUEST_SECONDS = 30.0
STOP_ORDER = (("server",), ("worker", "relay"), ("models", "clamd"), ("redis",), ("postgres",))
ORPHAN_STOP = ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0))


class UpFile(msgspec.Struct, kw_only=True):
    """`up.json`: what another program needs to use what runs here."""

    url: str
    platform_token: str
    tenant: dict[str, str]
    api_key: str
    user: dict[str, str]
    postgres_dsn: str
    redis_url: str
    models_url: str
    clamd: str
    processes: dict[str, list[int]]
    version: str


def run(*, home: Path | None, port: int | None, workers: int) -> int:
    """Runs until SIGINT, SIGTERM or SIGHUP and answers the exit code.

    Raises SettingsError for a setting that makes no sense, and StartError, alone or in a group, for all else.
    """
    overrides: dict[str, Any] = {}
    if home is not None:
        overrides["DREAMHUB_HOME"] = str(home)
    if port is not None:
        overrides["server"] = {"port": port}
    settings = config.load(**overrides)
    place = Home(config.home_of(settings))
    lock = place.open()
    console = Console()
    try:
        return asyncio.run(Up(place, settings, workers, console).run())
    finally:
        console.flush()
        os.close(lock)


class Up:
    """One run of everything."""

    def __init__(self, home: Home, settings: config.Settings, workers: int, console: Console) -> None:
        self._home = home
        self._settings = settings
        self._workers = workers
        self._console = console
        self._secrets = self._open_secrets()
        self._name = f"dreamhub-{self._secrets.id}"
        self._up_file: UpFile | None = None
        self._listener: Listener | None = None
        self._scan = settings.scan.clamd

    async def run(self) -> int:
        """Starts, waits for a signal, stops."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
                loop.add_signal_handler(number, stop.set)
        self._supervisor = Supervisor(self._console, self._changed)
        starting, stopping = asyncio.create_task(self._start()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
            self._console.say("Stopping …")
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            self._up_file = None
            self._home.up_file.unlink(missing_ok=True)
            if self._listener is not None:
                self._listener.close()
            await self._supervisor.stop(*STOP_ORDER)
            self._home.record_processes({})
            self._home.empty_scratch()  # a process that had to be killed could not do it
        self._console.say("Stopped.")
        return 0

    async def _start(self) -> None:
        began = time.monotonic()
        self._home.up_file.unlink(missing_ok=True)
        self._end_orphans()
        await asyncio.to_thread(self._home.empty_scratch)
        host = self._settings.server.host
        self._listener = listener = Listener.open(host, self._settings.server.port)
        self._console.say(f"DreamHub {version()} starts in {self._home.root}")
        models_url = self._settings.models.url or local_models_url(self._home)
        postgres, valkey = self._embedded()
        clamd = self._scanner()
        async with asyncio.TaskGroup() as group:
            if valkey is not None:
                group.create_task(self._start_valkey(valkey))
            database = group.create_task(self._start_database(postgres))
        addresses = Addresses(
            host=host,
            port=listener.port,
            redis_url=valkey.url if valkey else self._settings.redis.url.get_secret_value(),
            models_url=models_url,
            databases=database.result(),
            clamd=clamd.address if clamd else "",
        )
        roles = Roles(self._home, self._settings, self._secrets, addresses)
        await self._start_roles(roles, listener, clamd)
        await self._make_tenant(roles, addresses)
        self._greet(addresses, time.monotonic() - began)
        self._write_up_file(roles, addresses)  # last: whoever waits for it finds everything else done

    async def _start_roles(self, roles: Roles, listener: Listener, clamd: Clamd | None) -> None:
        """Models and signatures load while the database is migrated; the server says when all it needs answers."""
        async with asyncio.TaskGroup() as group:
            if clamd is not None:
                spec = self._server_spec("clamd", clamd.program(), clamd)
                group.create_task(self._supervisor.start(spec, CLAMD_SECONDS, optional=True))
            if not self._settings.models.url:
                group.create_task(self._supervisor.start(roles.models(), MODELS_SECONDS))
            await self._migrate(roles)
            group.create_task(self._supervisor.start(roles.server(listener), SERVER_SECONDS))
            group.create_task(self._supervisor.start(roles.relay(), SERVER_SECONDS))
            for number in range(1, self._workers + 1):
                group.create_task(self._supervisor.start(roles.worker(number), SERVER_SECONDS))

    def _open_secrets(self) -> Secrets:
        if not self._home.has_secrets() and (self._home.root / "postgres" / "data").exists():
            raise StartError(f"{self._home.root} holds a database but its secrets.json is gone: put it back")
        return self._home.secrets((SUPERUSER, *LOGIN_ROLES))

    def _end_orphans(self) -> None:
        """Ends what a killed `up` of this home left running, and nothing else."""
        recorded = [
            process
            for role, processes in self._home.recorded_processes().items()
            if role not in ("postgres", "redis")  # these are told by name and stopped in their own way
            for process in processes
        ]
        marker = f"DREAMHUB_HOME={self._home.root}"
        leaders = [process for process in recorded if alive(process)]
        if leaders:
            self._console.say("Ending what an earlier run left behind …")
        end(leaders, ORPHAN_STOP)
        end(in_groups([process.pid for process in recorded], marker), ((signal.SIGKILL, 5.0),))

    def _embedded(self) -> tuple[Postgres | None, Valkey | None]:
        """The servers that the settings don't point elsewhere, cleared of what a crash left."""
        own_database, own_redis = not self._settings.db.dsn, not self._settings.redis.url
        if not own_database and not own_redis:
            return None, None
        binaries = find_binaries()
        folder = servers_folder(self._home.root, self._secrets.id)
        account = servers_account(folder / "postgres" / "data")
        postgres = valkey = None
        if own_database:
            postgres = Postgres(
                folder / "postgres", binaries=binaries, account=account, name=self._name, port=free_port()
            )
            postgres.clear()
            if not postgres.exists:
                self._console.say("Making the database …")
            postgres.prepare(self._secrets.database_passwords[SUPERUSER])
        if own_redis:
            valkey = Valkey(
                folder / "redis",
                binaries=binaries,
                account=account,
                name=self._name,
                port=free_port(),
                password=self._secrets.redis_password,
            )
            valkey.clear()
            valkey.prepare()
        return postgres, valkey

    def _scanner(self) -> Clamd | None:
        """clamd, cleared of what a crash left; None where the settings name one or nothing is to be scanned."""
        if self._settings.scan.clamd != "off":
            return None
        found = scanner.find(self._settings)
        if isinstance(found, Off):
            self._scan = f"off: {found.reason}; to turn it on: {found.remedy}"
            return None
        folder = servers_folder(self._home.root, self._secrets.id) / "clamav"
        clamd = Clamd(folder, program=found, account=scanner_account(), settings=self._settings)
        if not clamd.reachable:
            self._scan = f"off: {folder} is too long for a socket; choose a shorter --home"
            return None
        clamd.clear()
        clamd.prepare()
        self._scan = f"by {found}; while it is away, uploads are refused"
        return clamd

    async def _start_valkey(self, valkey: Valkey) -> None:
        await self._supervisor.start(self._server_spec("redis", valkey.program(), valkey), REDIS_SECONDS)

    async def _start_database(self, postgres: Postgres | None) -> databases.Databases:
        passwords = self._secrets.database_passwords
        if postgres is None:
            return await databases.of_external(self._settings, passwords)
        await self._supervisor.start(self._server_spec("postgres", postgres.program(), postgres), POSTGRES_SECONDS)
        await databases.prepare_embedded(postgres, passwords)
        return databases.of_embedded(postgres, passwords)

    def _server_spec(self, name: str, program: Program, server: Postgres | Valkey | Clamd) -> Spec:
        return Spec(
            name=name,
            role=name,
            command=program.command,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            log=LogFile(self._home.logs / f"{name}.log"),
            account=program.account,
            stop_signal=program.stop_signal,
            orphan_signal=program.stop_signal,
            stop_seconds=20.0,
            ready=server.ready,
            clear=server.clear,
        )

    async def _migrate(self, roles: Roles) -> None:
        command, environment = roles.migration()
        log = LogFile(self._home.logs / "migrate.log")
        descriptor = log.open()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )
        finally:
            os.close(descriptor)
        try:
            code = await asyncio.wait_for(process.wait(), MIGRATE_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
        if code != 0:
            raise StartError(f"the database could not be migrated; see {log.path}\n{log.last_lines()}")

    async def _make_tenant(self, roles: Roles, addresses: Addresses) -> None:
        """The first tenant, on the first start. Its password was kept before, so a crash in between does no harm."""
        tenant = self._secrets.tenant
        if tenant.api_key:
            return
        body = {"name": tenant.name, "owner_email": tenant.email, "owner_password": tenant.password}
        headers = {"Authorization": f"Bearer {roles.platform_token}"}
        async with httpx.AsyncClient(base_url=addresses.url, timeout=REQUEST_SECONDS, trust_env=False) as client:
            answer = await client.post("/api/v1/tenants", json=body, headers=headers)
        if answer.status_code != HTTPStatus.CREATED:
            raise StartError(f"the first tenant could not be made: {answer.status_code} {answer.text}")
        made = answer.json()
        tenant.id, tenant.api_key = made["id"], made["api_key"]
        self._home.keep(self._secrets)

    def _write_up_file(self, roles: Roles, addresses: Addresses) -> None:
        tenant = self._secrets.tenant
        self._up_file = UpFile(
            url=addresses.url,
            platform_token=roles.platform_token,
            tenant={"id": tenant.id, "name": tenant.name},
            api_key=tenant.api_key,
            user={"email": tenant.email, "password": tenant.password},
            postgres_dsn=addresses.databases.backup,
            redis_url=addresses.redis_url,
            models_url=addresses.models_url,
            clamd=addresses.clamd,
            processes={},
            version=version(),
        )
        self._changed()

    def _changed(self) -> None:
        """A process was started: remember it for a take-over, and tell the readers of `up.json`."""
        self._home.record_processes(self._supervisor.records())
        if self._up_file is not None:
            self._up_file.processes = self._supervisor.pids()
            self._home.publish(self._up_file)

    def _greet(self, addresses: Addresses, seconds: float) -> None:
        tenant = self._secrets.tenant
        self._console.say(
            f"\nDreamHub is ready ({seconds:.1f} s).\n\n"
            f"  Address    {addresses.url}\n"
            f"  Sign in    {tenant.email}  {tenant.password}\n"
            f"  API key    {tenant.api_key}\n"
            f"  Logs       {self._home.logs}\n"
            f"  Virus scan {self._scan}\n\n"
            f"Upload a document:\n"
            f"  curl -H 'Authorization: Bearer {tenant.api_key}' -F file=@report.pdf {addresses.url}/api/v1/documents\n"
            f"Search:\n"
            f"  curl -H 'Authorization: Bearer {tenant.api_key}' -H 'Content-Type: application/json' \\\n"
            f'       -d \'{{"query": "what is it about?"}}\' {addresses.url}/api/v1/search\n\n'
            f"Ctrl-C stops everything.\n"
        )
