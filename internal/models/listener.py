"""Opens the address that the model process listens on: a socket file or a port."""

import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pkg.apperr import SettingsError
from pkg.config import Settings, home_of

BACKLOG = 2048
OWNER_ONLY = 0o600
PROBE_SECONDS = 1.0


def address(settings: Settings) -> str:
    """`unix:/path` or `http://host:port`; the socket in the home folder where nothing is set."""
    return settings.models.url or f"unix:{home_of(settings) / 'run' / 'models.sock'}"


@contextmanager
def listening(url: str) -> Generator[socket.socket]:
    """A bound socket, closed at the end; a socket file is removed. Raises SettingsError that says what to set."""
    if not url.startswith("unix:"):
        with _port(url) as bound:
            yield bound
        return
    path = Path(url.removeprefix("unix:"))
    bound = _socket_file(path)
    made = path.stat()
    try:
        yield bound
    finally:
        bound.close()
        # Another process may have taken the path over; its file is not ours to remove.
        if path.exists() and path.stat().st_ino == made.st_ino:
            path.unlink()


def _port(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.port is None:
        raise SettingsError("MODELS__URL: the models can listen on unix:/path or http://host:port only")
    try:
        return socket.create_server(
            (parts.hostname, parts.port),
            family=socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        raise SettingsError(f"MODELS__URL: can't listen on {url}: {error.strerror}; set a free port") from error


def _socket_file(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(str(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(
            f"MODELS__URL: can't listen on {path}: {reason}; set unix:/path of at most 107 bytes in a writable folder"
        ) from error
    path.chmod(OWNER_ONLY)
    bound.listen(BACKLOG)
    return bound


def _remove_stale(path: Path) -> None:
    """Removes the socket file that a crash left; one with somebody behind it, or another kind of file, stays."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SettingsError(f"MODELS__URL: {path} exists and is not a socket; set another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SettingsError(f"MODELS__URL: another model process listens on {path}; stop it or set another path")
