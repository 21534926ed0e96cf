"""Roles and database (once, as a superuser), then migrations and embedding spaces (as the owner).

Migrations are plain SQL files, forward only, applied in the order of their names, each in a transaction of its own
unless its first line is `-- no transaction`. What was applied is checked by digest: an edited file stops the start.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncpg
import msgspec

from internal.entities.ids import new_id
from internal.entities.tasks import INGEST_VERSION
from internal.repositories.rows import sure
from internal.repositories.spaces import Space, create_space
from pkg import failpoints, logger
from pkg.apperr import SettingsError

OWNER = "dreamhub_owner"
APP = "dreamhub_app"
WORKER = "dreamhub_worker"
RELAY = "dreamhub_relay"
BACKUP = "dreamhub_backup"
DIRECTORY = "dreamhub_directory"
LOGIN_ROLES = (OWNER, APP, WORKER, RELAY, BACKUP)

MINIMUM_POSTGRES = 16
MINIMUM_PGVECTOR = (0, 8, 2)  # older ones have CVE-2026-3172
LOCK_KEY = 0x6472656D  # "drem"
LOCK_SECONDS = 120.0


class Migration(msgspec.Struct, frozen=True):
    """One file: its name, text, and the SHA-256 of its bytes."""

    name: str
    sql: str
    digest: str

    @property
    def in_transaction(self) -> bool:
        """False for the few statements, such as `create index concurrently`, that refuse a transaction."""
        return not self.sql.startswith("-- no transaction")


def folder() -> Path:
    """`migrations/` beside `internal/`, in the checkout and in the wheel alike."""
    return Path(__file__).resolve().parents[2] / "migrations"


def read_all(path: Path | None = None) -> list[Migration]:
    """Every migration in order. Raises SettingsError when two files share a number."""
    found = [
        Migration(file.name, file.read_text(encoding="utf-8"), hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted((path or folder()).glob("[0-9][0-9][0-9][0-9]_*.sql"))
    ]
    numbers = [item.name[:4] for item in found]
    if len(set(numbers)) != len(numbers):
        raise SettingsError(f"two migrations share a number in {path or folder()}: {', '.join(numbers)}")
    return found


async def bootstrap(superuser_dsn: str, passwords: Mapping[str, str], *, database: str = "dreamhub") -> None:
    """Makes or mends the login roles, the database and the `vector` extension; nothing else needs a superuser.

    `passwords` maps each role of LOGIN_ROLES to its password.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", database):
        raise SettingsError(f"database name {database!r}: use lower-case letters, digits and underscores")
    conn = await asyncpg.connect(superuser_dsn)
    try:
        await _create_roles(conn, passwords)
        if not await conn.fetchval("select true from pg_database where datname = $1", database):
            await conn.execute(f"create database {database} owner {OWNER} template template0 encoding 'UTF8'")
        await conn.execute(f"revoke all on database {database} from public")
        await conn.execute(f"grant connect on database {database} to {', '.join(LOGIN_ROLES)}")
        await conn.execute(f"grant create on database {database} to {OWNER}")
    finally:
        await conn.close()
    conn = await asyncpg.connect(superuser_dsn, database=database)
    try:
        await conn.execute("create extension if not exists vector")
        await conn.execute(f"alter schema public owner to {OWNER}")
        await conn.execute("revoke all on schema public from public")
        await conn.execute(f"grant usage on schema public to {', '.join((*LOGIN_ROLES, DIRECTORY))}")
    finally:
        await conn.close()


async def _create_roles(conn: asyncpg.Connection, passwords: Mapping[str, str]) -> None:
    for role in (*LOGIN_ROLES, DIRECTORY):
        if not await conn.fetchval("select true from pg_roles where rolname = $1", role):
            await conn.execute(f"create role {role}")
        login = "login" if role in LOGIN_ROLES else "nologin"
        bypass = "bypassrls" if role == BACKUP else "nobypassrls"
        await conn.execute(f"alter role {role} {login} {bypass} nosuperuser nocreatedb nocreaterole noinherit")
        if role in passwords:
            statement = await conn.fetchval(
                "select format('alter role %I password %L', $1::text, $2::text)", role, passwords[role]
            )
            await conn.execute(sure(statement))
    # Definers belong to the directory role; the owner may hand functions over to it but inherits nothing of it.
    await conn.execute(f"grant {DIRECTORY} to {OWNER} with inherit false, set true")
    await conn.execute(f"grant pg_read_all_data to {BACKUP} with inherit true")
    await conn.execute(f"alter role {BACKUP} inherit")
    for role in (APP, WORKER, RELAY):
        await conn.execute(f"alter role {role} set idle_in_transaction_session_timeout = '60s'")
        await conn.execute(f"alter role {role} set lock_timeout = '20s'")
    await conn.execute(f"alter role {APP} set statement_timeout = '30s'")


async def migrate(
    owner_dsn: str, space: Space | None = None, *, max_retries: int = 5, path: Path | None = None
) -> list[str]:
    """Applies what is missing, creates the embedding space's tables, and answers the names of what it applied.

    Contents whose vectors belong to another space are queued to be embedded again, each task with `max_retries`;
    until then they are found by their words.

    Several may run at once: one works, the others wait. Raises SettingsError for a database that is too old, or
    whose applied migrations differ from the files.
    """
    conn = await asyncpg.connect(owner_dsn)
    try:
        await _check_versions(conn)
        await _lock(conn)
        applied = await _apply(conn, read_all(path))
        if space is not None:
            await _queue_embedding(conn, await create_space(conn, space), max_retries)
        return applied
    finally:
        await conn.close()


async def pending(dsn: str, path: Path | None = None) -> list[str]:
    """Names of migrations that the database doesn't have yet; any login role may ask."""
    conn = await asyncpg.connect(dsn)
    try:
        return await lacking(conn, [item.name for item in read_all(path)])
    finally:
        await conn.close()


async def lacking(conn: asyncpg.Connection, names: Sequence[str]) -> list[str]:
    """Those of `names` that this database doesn't have."""
    if not await conn.fetchval("select to_regclass('public.schema_migrations') is not null"):
        return list(names)
    known = {row["name"] for row in await conn.fetch("select name from schema_migrations")}
    return [name for name in names if name not in known]


async def _queue_embedding(conn: asyncpg.Connection, space: Space, max_retries: int) -> None:
    """One task for each content that was published in another space only, in the name of its oldest document.

    A task names its space: during a roll-out, workers of the old model leave it to those of the new one. Tasks that
    still wait for a model that was given up are turned to this one.
    """
    wanted = f'{{"space_id": {space.id}}}'
    await conn.execute(
        "update tasks set payload = $1::text::jsonb where kind = 'ingest_content' and status = 'queued'"
        " and payload ? 'space_id'",
        wanted,
    )
    rows = await conn.fetch(
        "select distinct on (d.tenant_id, d.content_id) d.tenant_id, d.id, d.content_id, d.owner_id"
        " from documents d join generations g on g.tenant_id = d.tenant_id and g.id = d.generation_id"
        " where g.space_id <> $1 and not exists (select 1 from tasks t where t.tenant_id = d.tenant_id"
        " and t.content_id = d.content_id and t.kind = 'ingest_content' and t.status in ('queued', 'running'))"
        " order by d.tenant_id, d.content_id, d.created_at",
        space.id,
    )
    await conn.executemany(
        "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, document_id,"
        " content_id, max_retries, payload)"
        " values ($1, $2, 'ingest_content', $8, 'batch', $3, 'member', '', '', $4, $5, $6, $7::text::jsonb)",
        [
            (
                row["tenant_id"],
                new_id(),
                row["owner_id"],
                row["id"],
                row["content_id"],
                max_retries,
                wanted,
                INGEST_VERSION,
            )
            for row in rows
        ],
    )
    if rows:
        logger.get("migrate").info("contents are embedded again", model=space.model, dim=space.dim, contents=len(rows))


async def _check_versions(conn: asyncpg.Connection) -> None:
    major = conn.get_server_version().major
    if major < MINIMUM_POSTGRES:
        raise SettingsError(f"DB__DSN: PostgreSQL {major} is too old; {MINIMUM_POSTGRES} or newer is needed")
    version = await conn.fetchval("select extversion from pg_extension where extname = 'vector'")
    if version is None:
        raise SettingsError(
            "DB__DSN: the extension vector is missing; run once, as a superuser: create extension vector"
        )
    if tuple(int(part) for part in version.split(".")[:3]) < MINIMUM_PGVECTOR:
        wanted = ".".join(map(str, MINIMUM_PGVECTOR))
        raise SettingsError(f"DB__DSN: pgvector {version} is too old; {wanted} or newer is needed")


async def _lock(conn: asyncpg.Connection) -> None:
    """Polls: a session that blocks on the lock would hold a snapshot that `create index concurrently` waits for."""
    until = time.monotonic() + LOCK_SECONDS
    while not await conn.fetchval("select pg_try_advisory_lock($1)", LOCK_KEY):
        if time.monotonic() > until:
            raise SettingsError(f"another migration has been running for {LOCK_SECONDS:.0f} s; see pg_stat_activity")
        await asyncio.sleep(0.2)


async def _apply(conn: asyncpg.Connection, migrations: list[Migration]) -> list[str]:
    await conn.execute(
        "create table if not exists schema_migrations"
        " (name text primary key, digest text not null, applied_at timestamptz not null default now())"
    )
    roles = ", ".join((APP, WORKER, RELAY))
    await conn.execute(f"grant select on schema_migrations to {roles}")
    done = {row["name"]: row["digest"] for row in await conn.fetch("select name, digest from schema_migrations")}
    log = logger.get("migrate")
    applied: list[str] = []
    for item in migrations:
        if item.name in done:
            if done[item.name] != item.digest:
                raise SettingsError(
                    f"migration {item.name} was changed after it had been applied; add a new file instead"
                )
            continue
        if item.in_transaction:
            async with conn.transaction():
                await conn.execute(item.sql)
                await _record(conn, item)
        else:
            await conn.execute(item.sql)
            await _record(conn, item)
        await failpoints.hit("migrate.after_record")
        log.info("migration applied", name=item.name)
        applied.append(item.name)
    return applied


async def _record(conn: asyncpg.Connection, item: Migration) -> None:
    await failpoints.hit("migrate.before_record")
    await conn.execute("insert into schema_migrations (name, digest) values ($1, $2)", item.name, item.digest)
