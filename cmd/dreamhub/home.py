"""The folder that `dreamhub up` keeps everything in: data, generated secrets, logs, and who is running."""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec

from dreamhub.errors import StartError
from dreamhub.processes import Record
from pkg.config import SCRATCH
from pkg.workdir import sweep

PRIVATE = 0o600


class Tenant(msgspec.Struct, kw_only=True):
    """The tenant made on the first start. `id` and `api_key` are empty until the server has made it."""

    name: str
    email: str
    password: str
    id: str = ""
    api_key: str = ""


class Secrets(msgspec.Struct, kw_only=True):
    """What the first start generates. Kept in `secrets.json`, mode 0600."""

    id: str
    platform_token: str
    jwt_secret: str
    redis_password: str
    database_passwords: dict[str, str]
    tenant: Tenant


class Home:
    """Paths inside the folder, its lock, and the small private files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs = root / "logs"
        self.run = root / "run"
        self.blobs = root / "blobs"
        self.models = root / "models"
        self.scratch = root / SCRATCH
        self.up_file = root / "up.json"
        self._secrets_file = root / "secrets.json"
        self._pids_file = self.run / "pids.json"

    def open(self) -> int:
        """Makes the folder and takes its lock, which the returned descriptor holds until it is closed.

        Raises StartError, one line, when the folder can't be used or another `up` has it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.logs, self.run, self.blobs, self.models):
                folder.mkdir(exist_ok=True, mode=0o700)
            lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        except OSError as error:
            raise StartError(
                f"--home {self.root} can't be used: {error.strerror}; choose a folder that you may write to"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise StartError(
                f"another dreamhub up is running on {self.root}; stop it or choose another --home"
            ) from None
        return lock

    def secrets(self, roles: tuple[str, ...]) -> Secrets:
        """The secrets of this home, generated on the first start; `roles` are the database's login roles."""
        if self._secrets_file.exists():
            found = msgspec.json.decode(self._secrets_file.read_bytes(), type=Secrets)
        else:
            found = _generate()
        for role in roles:
            found.database_passwords.setdefault(role, secrets.token_urlsafe(24))
        self.keep(found)
        return found

    def publish(self, value: Any) -> None:
        """Writes `up.json`."""
        write_private(self.up_file, value)

    def empty_scratch(self) -> None:
        """Removes what killed processes left, and nothing else: a home may be a folder in which somebody has a tmp/."""
        sweep(self.scratch)

    def has_secrets(self) -> bool:
        """False for a home that was never started."""
        return self._secrets_file.exists()

    def keep(self, value: Secrets) -> None:
        """Writes `secrets.json`."""
        write_private(self._secrets_file, value)

    def recorded_processes(self) -> dict[str, list[Record]]:
        """What the last `up` had started, by role, running or not."""
        try:
            return msgspec.json.decode(self._pids_file.read_bytes(), type=dict[str, list[Record]])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError:  # torn by a crash of the machine: nothing it named can still run
            return {}

    def record_processes(self, processes: dict[str, list[Record]]) -> None:
        """Remembers for a later take-over what runs now."""
        write_private(self._pids_file, processes)


def write_private(path: Path, value: Any) -> None:
    """Writes JSON with mode 0600, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _generate() -> Secrets:
    return Secrets(
        id=secrets.token_hex(6),
        platform_token=secrets.token_urlsafe(36),
        jwt_secret=secrets.token_urlsafe(48),
        redis_password=secrets.token_urlsafe(24),
        database_passwords={},
        tenant=Tenant(name="My documents", email="owner@example.com", password=secrets.token_urlsafe(12)),
    )
