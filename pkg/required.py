"""Settings that one process can't do without, by the names of their environment variables."""

from typing import Any

from pkg.apperr import SettingsError
from pkg.config import Settings

MEANINGS = {
    "DB__DSN": "the PostgreSQL server, postgresql://role:password@host:port/database",
    "DB__OWNER_DSN": "the database as the role dreamhub_owner, or DB__DSN",
    "REDIS__URL": "the Redis or Valkey server, redis://:password@host:port",
    "BLOBS__URL": "where files are kept, file:///dir or s3://bucket?endpoint=…&region=…",
    "MODELS__URL": "the local model process, unix:/path or http://host:port (dreamhub models)",
    "AUTH__PLATFORM_TOKEN": "a random value of at least 32 characters (openssl rand -base64 48)",
    "AUTH__JWT_SECRET": "a random value of at least 32 characters (openssl rand -base64 48)",
}


def require(settings: Settings, *names: str) -> None:
    """Raises SettingsError for the first of these that isn't set."""
    for name in names:
        if not _value(settings, name):
            raise missing(name)


def login(settings: Settings, name: str) -> tuple[str, str]:
    """The setting that names this process's login, and the login: its own one, else DB__DSN."""
    if own := _value(settings, name):
        return name, own
    require(settings, "DB__DSN")
    return "DB__DSN", settings.db.dsn.get_secret_value()


def missing(name: str) -> SettingsError:
    """What to say of a setting that isn't set."""
    return SettingsError(f"{name} is not set; set it to {MEANINGS[name]}")


def _value(settings: Settings, name: str) -> str:
    section, _, field = name.lower().partition("__")
    value: Any = getattr(getattr(settings, section), field)
    return value if isinstance(value, str) else value.get_secret_value()
