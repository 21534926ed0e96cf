"""PostgreSQL and Valkey of our own, for a home that isn't pointed at other servers.

Both listen on loopback only, ask for a password, and run without privileges. What a crash left behind is told apart
by the home's name, which both carry in the title of every process.
"""

import asyncio
import errno
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from urllib.parse import quote

import msgspec

from dreamhub.accounts import NOBODY, Account, Binaries, give, own_folder
from dreamhub.errors import StartError
from dreamhub.processes import Record, die_with_parent, end, with_command

LOOPBACK = "127.0.0.1"
SUPERUSER = "postgres"
DATABASE = "dreamhub"
# Below the range from which the kernel takes ports of outgoing connections: a restarted server finds its port free.
PORTS = range(15_000, 32_000)
SHARED_MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108 - PostgreSQL's, only measured here
ENOUGH_SHARED_MEMORY = 512 * 2**20
FAST_STOP = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
VALKEY_STOP = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
PROBE_SECONDS = 2.0


class Program(msgspec.Struct, frozen=True):
    """What starting one server takes."""

    command: tuple[str, ...]
    account: Account | None
    stop_signal: signal.Signals


def free_port() -> int:
    """A loopback port that nobody listens on."""
    for _ in range(200):
        port = random.choice(PORTS)  # noqa: S311 - not a secret
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT may be listened on
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return port
    raise StartError(f"no free port between {PORTS.start} and {PORTS.stop} on {LOOPBACK}")


class Postgres:
    """One cluster in `folder`/data. `name` stands in its processes' titles."""

    def __init__(self, folder: Path, *, binaries: Binaries, account: Account | None, name: str, port: int) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._bin = binaries.postgres / "bin"
        self._account = account
        self._name = name
        self.port = port

    @property
    def exists(self) -> bool:
        """True once the cluster has been made."""
        return self._data.exists()

    def prepare(self, password: str, *, durable: bool = True) -> None:
        """Makes the cluster where there is none and writes its configuration. Takes a second, the first time.

        `password` is the superuser's. `durable=False` gives up safety after a power cut, for tests.
        """
        own_folder(self._folder, self._account)
        if not self._data.exists():
            self._initialise(password)
        (self._data / "postgresql.conf").write_text(self._configuration(durable=durable))
        (self._data / "pg_hba.conf").write_text(f"host all all {LOOPBACK}/32 scram-sha-256\n")

    def program(self) -> Program:
        """Its command; SIGINT is PostgreSQL's fast stop."""
        return Program((str(self._bin / "postgres"), "-D", str(self._data)), self._account, signal.SIGINT)

    def dsn(self, user: str, password: str, database: str = DATABASE) -> str:
        """A connection URL for one role."""
        return f"postgresql://{user}:{quote(password, safe='')}@{LOOPBACK}:{self.port}/{database}"

    async def ready(self) -> bool:
        """True when it takes connections."""
        probe = await asyncio.create_subprocess_exec(
            *(
                str(self._bin / "pg_isready"),
                "-q",
                "-h",
                LOOPBACK,
                "-p",
                str(self.port),
                "-U",
                SUPERUSER,
                "-d",
                SUPERUSER,
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return await probe.wait() == 0

    def leftovers(self) -> list[Record]:
        """Processes on this data folder: a postmaster, or its children that outlived it."""
        title, argument = f"postgres: {self._name}: ", f"\0-D\0{self._data}\0"
        return with_command(lambda line: line.startswith(title) or argument in line)

    def clear(self) -> None:
        """Ends what a crash left running and removes the lock file it left lying.

        PostgreSQL itself only looks whether some process has the id in the file, which may be a stranger by now.
        """
        end(self.leftovers(), FAST_STOP)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self, password: str) -> None:
        for torn in self._folder.glob("data.*"):
            shutil.rmtree(torn)
        new = self._folder / f"data.{os.getpid()}"
        password_file = self._folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        give(password_file, self._account)
        options = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8")
        try:
            made = subprocess.run(  # noqa: S603 - our own program and arguments
                [
                    *_with_a_name(),
                    self._bin / "initdb",
                    "-D",
                    new,
                    "-U",
                    SUPERUSER,
                    f"--pwfile={password_file}",
                    *options,
                ],
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                preexec_fn=die_with_parent(signal.SIGKILL),
                **(self._account.popen_arguments() if self._account else {}),
            )
        finally:
            password_file.unlink()
        if made.returncode != 0:
            lines = made.stderr.strip().splitlines() or [f"exit code {made.returncode}"]
            raise StartError(f"the database could not be made in {self._folder}: {lines[-1]}")
        new.rename(self._data)

    def _configuration(self, *, durable: bool) -> str:
        settings: dict[str, str | int] = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "cluster_name": self._name,
            "password_encryption": "scram-sha-256",
            "max_connections": 100,
            "shared_buffers": "256MB",
            "work_mem": "16MB",
            "maintenance_work_mem": "256MB",
            "effective_cache_size": "1GB",
            "random_page_cost": "1.1",
            "max_wal_size": "2GB",
            "dynamic_shared_memory_type": _shared_memory_type(),
            "max_locks_per_transaction": 256,  # a query over 64 partitions locks each of them and their indexes
            "recovery_init_sync_method": "syncfs",  # after a crash; opening each of thousands of files takes seconds
            "jit": "off",  # compiling costs more than these short queries
            "plan_cache_mode": "force_custom_plan",  # a generic plan can't leave out partitions
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %q%u@%d ",
            # What users wrote must not get into the log: no statements, no row values.
            "log_statement": "none",
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        if not durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return "".join(f"{name} = '{value}'\n" for name, value in settings.items())


class Valkey:
    """One server without persistence: Redis only wakes, caches and broadcasts here."""

    def __init__(
        self, folder: Path, *, binaries: Binaries, account: Account | None, name: str, port: int, password: str
    ) -> None:
        self._folder = folder
        self._configuration_file = folder / "valkey.conf"
        self._program = binaries.valkey
        self._account = account
        self._name = name
        self._password = password
        self.port = port

    @property
    def url(self) -> str:
        """A connection URL, password included."""
        return f"redis://:{quote(self._password, safe='')}@{LOOPBACK}:{self.port}/0"

    def prepare(self) -> None:
        """Writes its configuration, which holds the password and is therefore private."""
        own_folder(self._folder, self._account)
        lines = (
            f"bind {LOOPBACK}",
            f"port {self.port}",
            "protected-mode yes",
            f"requirepass {self._password}",
            f"dir {_quoted(self._folder)}",
            'save ""',
            "appendonly no",
            "daemonize no",
            "maxmemory 256mb",
            "maxmemory-policy volatile-lru",  # caches carry a lifetime and may go; the queue doesn't and stays
            f'proc-title-template "valkey-server {self._name} {{listen-addr}}"',
        )
        self._configuration_file.unlink(missing_ok=True)
        self._configuration_file.touch(mode=0o600)
        self._configuration_file.write_text("\n".join(lines) + "\n")
        give(self._configuration_file, self._account)

    def program(self) -> Program:
        """Its command."""
        return Program((str(self._program), str(self._configuration_file)), self._account, signal.SIGTERM)

    async def ready(self) -> bool:
        """True when it answers PING with our password."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                reader, writer = await asyncio.open_connection(LOOPBACK, self.port)
                try:
                    writer.write(f"AUTH {self._password}\r\nPING\r\n".encode())
                    return await reader.readline() == b"+OK\r\n" and await reader.readline() == b"+PONG\r\n"
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    def leftovers(self) -> list[Record]:
        """A server that outlived the `up` that had started it."""
        title, argument = f"valkey-server {self._name} ", f"\0{self._configuration_file}\0"
        return with_command(lambda line: line.startswith(title) or argument in line)

    def clear(self) -> None:
        """Ends what a crash left running."""
        end(self.leftovers(), VALKEY_STOP)


def _quoted(path: Path) -> str:
    """As Valkey's configuration reads it."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _with_a_name() -> list[str]:
    """For initdb, which insists on the name of its account: a user namespace lends one where there is none."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return ["unshare", "--user", f"--map-user={NOBODY}"]
    return []


def _shared_memory_type() -> str:
    """Files where /dev/shm is small (64 MB in many containers): building a vector index needs more."""
    try:
        found = os.statvfs(SHARED_MEMORY_FOLDER)
    except OSError:
        return "mmap"
    return "posix" if found.f_frsize * found.f_blocks >= ENOUGH_SHARED_MEMORY else "mmap"
