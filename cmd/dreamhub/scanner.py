"""clamd of our own, where this machine has the program and signatures, and the settings name no other.

It is reached by a socket in a private folder and nowhere else. Root starts it as the user of Debian's package: it reads
hostile files, and must not own what PostgreSQL keeps.
"""

import os
import shutil
import signal
from pathlib import Path

import msgspec

from dreamhub.accounts import Account, give, own_folder
from dreamhub.embedded import Program
from dreamhub.processes import Record, end, with_command
from internal.providers.antivirus import CONCURRENCY, open_antivirus
from pkg.apperr import AppError
from pkg.config import Settings
from pkg.sections import Scan

FOLDERS = "/usr/sbin:/usr/local/sbin:/sbin"
INSTALL = "apt-get install clamav-daemon && freshclam"
SOCKET_PATH_BYTES = 107
PROBE_SECONDS = 2.0
STOP = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
OFFICIAL = ("main.cvd", "main.cld", "daily.cvd", "daily.cld")
OWN = (".hdb", ".hsb", ".ndb", ".ldb")
LARGEST_FILE_MB, LARGEST_SCAN_MB = 2047, 4095
EXPANSION = 4
"""What a file may unpack to, in its own size."""


class Off(msgspec.Struct, frozen=True):
    """Why nothing is scanned, and what turns it on."""

    reason: str
    remedy: str


def find(settings: Settings) -> Path | Off:
    """The program to start for these settings, whose `scan.clamd` is off, or why there is none."""
    if "clamd" in settings.scan.model_fields_set:
        return Off("as SCAN__CLAMD says", "set SCAN__CLAMD to a clamd before strangers may upload")
    program = shutil.which("clamd", path=f"{os.environ.get('PATH', os.defpath)}:{FOLDERS}")
    if program is None:
        return Off("clamd isn't installed", f"{INSTALL}, then start again")
    if not _has_signatures(Path(settings.scan.signatures)):
        return Off(f"clamd has no signatures in {settings.scan.signatures}", "freshclam, then start again")
    return Path(program)


class Clamd:
    """One daemon; its configuration, socket and scratch files lie in `folder`."""

    def __init__(self, folder: Path, *, program: Path, account: Account | None, settings: Settings) -> None:
        self._folder = folder
        self._program = program
        self._account = account
        self._settings = settings
        self._configuration_file = folder / "clamd.conf"
        self._socket = folder / "clamd.sock"
        self._scratch = folder / "tmp"
        self.address = f"unix:{self._socket}"

    @property
    def reachable(self) -> bool:
        """False where the socket's path is longer than the kernel takes."""
        return len(os.fsencode(self._socket)) <= SOCKET_PATH_BYTES

    def prepare(self) -> None:
        """Writes its configuration."""
        own_folder(self._folder, self._account)
        own_folder(self._scratch, self._account)
        self._configuration_file.write_text(self._configuration())
        give(self._configuration_file, self._account)

    def program(self) -> Program:
        """Its command."""
        return Program((str(self._program), "-c", str(self._configuration_file)), self._account, signal.SIGTERM)

    async def ready(self) -> bool:
        """True when it has loaded its signatures and answers."""
        try:
            await open_antivirus(Scan(clamd=self.address, timeout_seconds=PROBE_SECONDS)).check()
        except AppError:
            return False
        return True

    def leftovers(self) -> list[Record]:
        """A daemon that outlived the `up` that had started it."""
        argument = f"\0{self._configuration_file}\0"
        return with_command(lambda line: argument in line)

    def clear(self) -> None:
        """Ends what a crash left running, and removes parts of files that it was looking at."""
        end(self.leftovers(), STOP)
        self._socket.unlink(missing_ok=True)
        if self._scratch.exists():
            shutil.rmtree(self._scratch)
            own_folder(self._scratch, self._account)

    def _configuration(self) -> str:
        largest = min(self._settings.limits.max_file_mb + 1, LARGEST_FILE_MB)
        lines: dict[str, str | int] = {
            "Foreground": "yes",
            "LogTime": "yes",
            "DatabaseDirectory": self._settings.scan.signatures,
            "LocalSocket": str(self._socket),
            "LocalSocketMode": 600,
            "TemporaryDirectory": str(self._scratch),
            "AlertExceedsMax": "yes",  # else what it didn't look into is OK
            "StreamMaxLength": f"{largest}M",
            "MaxFileSize": f"{largest}M",
            "MaxScanSize": f"{min(largest * EXPANSION, LARGEST_SCAN_MB)}M",
            "MaxScanTime": int(self._settings.scan.timeout_seconds * 1000),  # by then nobody waits for the verdict
            "MaxThreads": CONCURRENCY * 2,
            "MaxQueue": CONCURRENCY * 8,
            "SelfCheck": 600,  # seconds after which new signatures are noticed
            "ConcurrentDatabaseReload": "no",  # both at once would take twice the memory
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())


def _has_signatures(folder: Path) -> bool:
    """Bytecode alone finds nothing."""
    try:
        return any(entry.name in OFFICIAL or entry.suffix in OWN for entry in folder.iterdir())
    except OSError:
        return False
