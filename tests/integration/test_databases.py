"""Which login each process gets where `DB__DSN` names a server of one's own."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from dreamhub.databases import of_external
from internal.repositories import migrate
from pkg import config
from pkg.apperr import AppError, SettingsError
from tests.servers import Database, Servers


async def role_of(dsn: str) -> str:
    conn = await asyncpg.connect(dsn)
    try:
        return str(await conn.fetchval("select current_user"))
    finally:
        await conn.close()


async def test_a_superuser_s_login_makes_the_roles(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"external_{secrets.token_hex(4)}"
    monkeypatch.setenv("DB__DSN", servers.superuser_dsn(name))
    passwords = {role: secrets.token_urlsafe(8) for role in migrate.LOGIN_ROLES}
    conn = await asyncpg.connect(servers.superuser_dsn())
    await conn.execute(f"create database {name}")
    try:
        found = await of_external(config.load(), passwords)
        assert [await role_of(dsn) for dsn in (found.app, found.worker, found.relay, found.owner, found.backup)] == [
            migrate.APP,
            migrate.WORKER,
            migrate.RELAY,
            migrate.OWNER,
            migrate.BACKUP,
        ]
        assert await migrate.migrate(found.owner)
    finally:
        await migrate.bootstrap(servers.superuser_dsn(), servers.passwords)  # the other tests' passwords again
        await conn.execute(f"drop database {name} with (force)")
        await conn.close()


async def test_an_ordinary_login_needs_the_others_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB__DSN", database.app)
    monkeypatch.setenv("DB__RELAY_DSN", database.relay)
    with pytest.raises(
        SettingsError, match="dreamhub_app, which may not make roles: set DB__WORKER_DSN, DB__OWNER_DSN"
    ):
        await of_external(config.load(), {})
    monkeypatch.setenv("DB__WORKER_DSN", database.worker)
    monkeypatch.setenv("DB__OWNER_DSN", database.owner)
    found = await of_external(config.load(), {})
    assert (found.app, found.worker, found.relay, found.owner) == (
        database.app,
        database.worker,
        database.relay,
        database.owner,
    )


async def test_a_server_that_is_not_there_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB__DSN", "postgresql://someone:hidden@127.0.0.1:1/x")
    with pytest.raises(AppError, match=r"DB__DSN: no login to PostgreSQL: .*; check host, port, role") as raised:
        await of_external(config.load(), {})
    assert "hidden" not in str(raised.value)
    monkeypatch.setenv("DB__BOOTSTRAP_DSN", "postgresql://postgres:hidden@127.0.0.1:1/x")
    with pytest.raises(AppError, match="DB__BOOTSTRAP_DSN: no login to PostgreSQL"):
        await of_external(config.load(), {})


@pytest.mark.parametrize(
    ("role", "name"), [("work", "DB__WORKER_DSN"), ("relay", "DB__RELAY_DSN"), ("migrate", "DB__OWNER_DSN")]
)
def test_each_process_names_the_login_that_fails(
    role: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting, value in {
        "DREAMHUB_HOME": str(tmp_path),
        "REDIS__URL": "redis://127.0.0.1:1",
        "BLOBS__URL": tmp_path.as_uri(),
        "MODELS__URL": "http://127.0.0.1:1",
        name: "postgresql://someone:hidden@127.0.0.1:1/x",
    }.items():
        monkeypatch.setenv(setting, value)
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", "dreamhub", role],
        env={**os.environ, "PYTHONPATH": f"{root / 'cmd'}:{root}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert f"dreamhub: {name}: no login to PostgreSQL" in ended.stderr
    assert "hidden" not in ended.stderr
