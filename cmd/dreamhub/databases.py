"""The connection URL of each role, on the embedded PostgreSQL or on one that the settings name."""

from urllib.parse import quote, unquote, urlsplit

import msgspec

from dreamhub.embedded import DATABASE, SUPERUSER, Postgres
from internal.repositories import migrate, probe
from pkg.apperr import AppError, SettingsError
from pkg.config import Settings

DEFAULT_DATABASES = ("", "postgres", "template1")


class Databases(msgspec.Struct, frozen=True, kw_only=True):
    """One URL for each role. `backup` reads past row-level security; empty where no such role is known to us."""

    app: str
    worker: str
    relay: str
    owner: str
    backup: str


def of_embedded(postgres: Postgres, passwords: dict[str, str]) -> Databases:
    """URLs on the embedded server."""
    return Databases(
        **{field: postgres.dsn(role, passwords[role]) for field, role in _roles()},
    )


async def prepare_embedded(postgres: Postgres, passwords: dict[str, str]) -> None:
    """Makes roles, database and extension on the embedded server."""
    superuser = postgres.dsn(SUPERUSER, passwords[SUPERUSER], "postgres")
    await migrate.bootstrap(superuser, _login_passwords(passwords))


async def of_external(settings: Settings, passwords: dict[str, str]) -> Databases:
    """URLs on the server that `DB__DSN` names.

    A superuser's login serves to make the roles; otherwise they must be there and be named. Raises SettingsError, and
    AppError where nothing answers.
    """
    name = "DB__BOOTSTRAP_DSN" if settings.db.bootstrap_dsn else "DB__DSN"
    dsn = (settings.db.bootstrap_dsn or settings.db.dsn).get_secret_value()
    try:
        facts = await probe.postgres(dsn, settings.db.timeout_seconds)
    except AppError as error:
        raise AppError(error.code, f"{name}: {error.detail}; check host, port, role, password and database") from None
    if facts.superuser:
        path = urlsplit(dsn).path.lstrip("/")
        database = DATABASE if path in DEFAULT_DATABASES else unquote(path)
        await migrate.bootstrap(dsn, _login_passwords(passwords), database=database)
        return Databases(**{field: _as_role(dsn, role, passwords[role], database) for field, role in _roles()})
    named = {
        "DB__WORKER_DSN": settings.db.worker_dsn.get_secret_value(),
        "DB__RELAY_DSN": settings.db.relay_dsn.get_secret_value(),
        "DB__OWNER_DSN": settings.db.owner_dsn.get_secret_value(),
    }
    if missing := [name for name, value in named.items() if not value]:
        raise SettingsError(
            f"DB__DSN logs in as {facts.role}, which may not make roles: set {', '.join(missing)} too,"
            " or DB__BOOTSTRAP_DSN to a superuser's login"
        )
    return Databases(
        app=settings.db.dsn.get_secret_value(),
        worker=named["DB__WORKER_DSN"],
        relay=named["DB__RELAY_DSN"],
        owner=named["DB__OWNER_DSN"],
        backup="",
    )


def _roles() -> tuple[tuple[str, str], ...]:
    return (
        ("app", migrate.APP),
        ("worker", migrate.WORKER),
        ("relay", migrate.RELAY),
        ("owner", migrate.OWNER),
        ("backup", migrate.BACKUP),
    )


def _login_passwords(passwords: dict[str, str]) -> dict[str, str]:
    return {role: passwords[role] for role in migrate.LOGIN_ROLES}


def _as_role(dsn: str, role: str, password: str, database: str) -> str:
    """The same server, another login."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{role}:{quote(password, safe='')}@{host}", path=f"/{database}").geturl()
