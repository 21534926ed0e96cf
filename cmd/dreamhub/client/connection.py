"""Which API to talk to, and with which key: flags and environment first, else the `dreamhub up` of this folder."""

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from dreamhub.client.errors import ClientError
from pkg import config


class Connection(msgspec.Struct, frozen=True):
    """Base URL without a slash at its end, and the bearer token. `repr` doesn't show the token."""

    url: str
    token: str

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    @property
    def on_this_machine(self) -> bool:
        """True for loopback, which no proxy of the environment reaches."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


class _UpFile(msgspec.Struct):
    """The part of `up.json` that a client needs."""

    url: str
    api_key: str
    platform_token: str


def as_tenant(url: str, api_key: str, home: Path | None) -> Connection:
    """Raises ClientError, one line, when an address or a key is missing."""
    up = None if url and api_key else _read_up_file(home)
    found = _address(url, up, home)
    if not api_key:
        if up is None or found != _clean(up.url):  # a key never goes to another server than the one it is of
            raise ClientError(f"no API key for {found}: pass --api-key, or set DREAMHUB_API_KEY")
        api_key = up.api_key
    return Connection(found, api_key)


def as_platform(url: str, home: Path | None) -> Connection:
    """With the credential that makes tenants: `AUTH__PLATFORM_TOKEN`, or that of the running `up`."""
    up = _read_up_file(home)
    found = _address(url, up, home)
    if up is not None and found == _clean(up.url):
        return Connection(found, up.platform_token)
    token = config.load().auth.platform_token.get_secret_value()
    if not token:
        raise ClientError(f"no platform token for {found}: set AUTH__PLATFORM_TOKEN to the server's")
    return Connection(found, token)


def _address(url: str, up: _UpFile | None, home: Path | None) -> str:
    if url:
        return _clean(url)
    if up is None:
        raise ClientError(
            f"no DreamHub is running in {_folder(home)}: start one there (dreamhub up), pass its --home,"
            " or pass --url and --api-key"
        )
    return _clean(up.url)


def _clean(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ClientError(f"--url {url!r} is not an address: want http://host:port")
    return url.rstrip("/")


def _folder(home: Path | None) -> Path:
    return home.resolve() if home is not None else config.home_of(config.load())


def _read_up_file(home: Path | None) -> _UpFile | None:
    path = _folder(home) / "up.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_UpFile)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClientError(f"{path} can't be read: {error.strerror}; pass --url and --api-key") from None
    except msgspec.DecodeError:
        raise ClientError(f"{path} was not written by dreamhub up; pass --url and --api-key") from None
