"""What is running in a home, for commands that look at it from outside."""

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from dreamhub.home import Secrets
from internal.repositories import migrate
from pkg import config
from pkg.config import Settings


class Running(msgspec.Struct, frozen=True):
    """The part of `up.json` that is needed here."""

    url: str
    postgres_dsn: str
    redis_url: str
    models_url: str = ""
    clamd: str = ""


def settings_of_running(home: Path | None, *, owner: bool = False) -> Settings:
    """The settings, filled up where they name no servers with those of a running `up`. Raises SettingsError.

    With `owner` also the login that migrates, which few commands need.
    """
    overrides: dict[str, Any] = {} if home is None else {"DREAMHUB_HOME": str(home)}
    settings = config.load(**overrides)
    folder = config.home_of(settings)
    try:
        up = msgspec.json.decode((folder / "up.json").read_bytes(), type=Running)
        secrets = msgspec.json.decode((folder / "secrets.json").read_bytes(), type=Secrets)
    except OSError:
        return settings
    if not settings.db.dsn and up.postgres_dsn:
        roles = {"dsn": migrate.APP} | ({"owner_dsn": migrate.OWNER} if owner else {})
        overrides["db"] = {
            name: _dsn_of(role, up.postgres_dsn, secrets.database_passwords[role]) for name, role in roles.items()
        }
    if not settings.redis.url:
        overrides["redis"] = {"url": up.redis_url}
    if not settings.blobs.url:
        overrides["blobs"] = {"url": (folder / "blobs").as_uri()}
    if not settings.models.url:
        overrides["models"] = {"url": up.models_url}
    if up.clamd and "clamd" not in settings.scan.model_fields_set:
        overrides["scan"] = {"clamd": up.clamd}
    return config.load(**overrides)


def _dsn_of(role: str, dsn: str, password: str) -> str:
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{role}:{quote(password, safe='')}@{host}").geturl()
