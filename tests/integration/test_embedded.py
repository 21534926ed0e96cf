"""The embedded servers: who may enter, what survives, and what a crash leaves behind."""

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Generator
from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from dreamhub import accounts
from dreamhub.accounts import Account, find_binaries, passable, servers_account, servers_folder
from dreamhub.embedded import SUPERUSER, Postgres, Valkey, free_port
from dreamhub.processes import alive
from tests.servers import Servers, launched, reachable_folder

PASSWORD = "pass/word:with@signs"


def listeners(pid: int) -> set[str]:
    """Addresses on which a process listens, Unix sockets included."""
    return {
        str(getattr(one.laddr, "ip", one.laddr))
        for one in psutil.Process(pid).net_connections("all")
        if one.status == psutil.CONN_LISTEN or (one.family == socket.AF_UNIX and one.laddr)
    }


@pytest.fixture
def postgres() -> Generator[Postgres]:
    with reachable_folder() as folder:
        name = f"dreamhub-test-{secrets.token_hex(4)}"
        data = folder / "postgres" / "data"
        found = Postgres(
            folder / "postgres",
            binaries=find_binaries(),
            account=servers_account(data),
            name=name,
            port=free_port(),
        )
        found.prepare(PASSWORD, durable=False)
        yield found
        found.clear()


def sleeping(account: Account | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], **(account.popen_arguments() if account else {}))


async def test_it_has_what_the_product_needs(servers: Servers) -> None:
    conn = await asyncpg.connect(servers.superuser_dsn())
    try:
        assert conn.get_server_version().major == 18
        offered = {row[0] for row in await conn.fetch("select name from pg_available_extensions")}
        settings = dict(await conn.fetch("select name, setting from pg_settings"))
    finally:
        await conn.close()
    assert "vector" in offered
    assert (settings["jit"], settings["plan_cache_mode"]) == ("off", "force_custom_plan")
    assert settings["log_min_error_statement"] == "panic"


async def test_nobody_enters_without_the_password(postgres: Postgres, tmp_path: Path) -> None:
    async with launched(postgres, tmp_path / "log"):
        conn = await asyncpg.connect(postgres.dsn(SUPERUSER, PASSWORD, "postgres"))
        await conn.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(postgres.dsn(SUPERUSER, "another", "postgres"))


async def test_valkey_asks_for_its_password(servers: Servers) -> None:
    async with Redis.from_url(servers.redis_url) as client:
        assert await client.ping()
        host, port = client.connection_pool.connection_kwargs["host"], client.connection_pool.connection_kwargs["port"]
    async with Redis(host=host, port=port) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()


async def test_servers_listen_on_loopback_only(postgres: Postgres, tmp_path: Path) -> None:
    async with launched(postgres, tmp_path / "log") as process:
        assert listeners(process.pid) == {"127.0.0.1"}


async def test_a_killed_postmaster_is_cleared_and_its_data_is_there(postgres: Postgres, tmp_path: Path) -> None:
    dsn = postgres.dsn(SUPERUSER, PASSWORD, "postgres")
    postgres.prepare(PASSWORD, durable=True)
    async with launched(postgres, tmp_path / "log") as process:
        conn = await asyncpg.connect(dsn)
        await conn.execute("create table kept as select 42 as answer")
        process.kill()
        process.wait()
        conn.terminate()
    postgres.clear()
    assert postgres.leftovers() == []
    async with launched(postgres, tmp_path / "log"):
        conn = await asyncpg.connect(dsn)
        assert await conn.fetchval("select answer from kept") == 42
        await conn.close()


async def test_a_lock_file_with_a_stranger_s_process_id_does_not_stop_the_start(
    postgres: Postgres, tmp_path: Path
) -> None:
    data = Path(postgres.program().command[-1])
    async with launched(postgres, tmp_path / "log") as process:
        lock = (data / "postmaster.pid").read_text()
        process.kill()
        process.wait()
    postgres.clear()
    # A process of the same account that has nothing to do with the cluster now has the recorded id.
    with sleeping(postgres.program().account) as stranger:
        (data / "postmaster.pid").write_text(lock.replace(lock.splitlines()[0], str(stranger.pid), 1))
        postgres.clear()
        async with launched(postgres, tmp_path / "log"):
            pass
        assert stranger.poll() is None
        stranger.kill()


async def test_clearing_ends_this_cluster_s_processes_and_no_other_s(
    servers: Servers, postgres: Postgres, tmp_path: Path
) -> None:
    async with launched(postgres, tmp_path / "log") as process:
        found = postgres.leftovers()
        assert process.pid in {one.pid for one in found}
        assert len(found) > 3  # the postmaster and its children
        postgres.clear()
        assert not any(alive(one) for one in found)
    conn = await asyncpg.connect(servers.superuser_dsn())
    await conn.close()


def test_an_interrupted_initialisation_is_begun_again(postgres: Postgres) -> None:
    data = Path(postgres.program().command[-1])
    torn = data.with_name("data.123")
    data.rename(torn)
    assert not postgres.exists
    postgres.prepare(PASSWORD, durable=False)
    assert postgres.exists
    assert not torn.exists()


async def test_servers_do_not_run_as_root(postgres: Postgres, tmp_path: Path) -> None:
    async with launched(postgres, tmp_path / "log") as process:
        assert psutil.Process(process.pid).uids().effective != 0


async def test_valkey_keeps_its_password_off_the_command_line(tmp_path: Path) -> None:
    with reachable_folder() as folder:
        account = servers_account(folder / "redis")
        valkey = Valkey(
            folder / "redis",
            binaries=find_binaries(),
            account=account,
            name="dreamhub-test-v",
            port=free_port(),
            password=PASSWORD,
        )
        valkey.prepare()
        async with launched(valkey, tmp_path / "log") as process:
            assert PASSWORD not in " ".join(psutil.Process(process.pid).cmdline())
            assert [one.pid for one in valkey.leftovers()] == [process.pid]
            assert (folder / "redis" / "valkey.conf").stat().st_mode & 0o077 == 0
            valkey.clear()
            assert process.wait(5) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another account")
def test_root_keeps_data_where_the_servers_account_can_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "STATE", tmp_path / "state")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "home").mkdir()
    assert not passable(closed)
    assert servers_folder(closed / "home", "abc") == tmp_path / "state" / "abc"
    with reachable_folder() as folder:
        (folder / "home").mkdir(mode=0o700)
        assert servers_folder(folder / "home", "abc") == folder / "home"
        assert passable(folder / "home")


async def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    with reachable_folder() as folder:
        valkey = Valkey(
            folder / 'a "home" of \\ours',
            binaries=find_binaries(),
            account=servers_account(folder),
            name="dreamhub-test",
            port=free_port(),
            password=secrets.token_hex(8),
        )
        valkey.prepare()
        async with launched(valkey, tmp_path / "log"):
            assert await valkey.ready()


async def test_a_frozen_server_is_not_ready(tmp_path: Path) -> None:
    with reachable_folder() as folder:
        valkey = Valkey(
            folder / "redis",
            binaries=find_binaries(),
            account=servers_account(folder / "redis"),
            name="dreamhub-test-f",
            port=free_port(),
            password=PASSWORD,
        )
        valkey.prepare()
        assert not await valkey.ready()
        async with launched(valkey, tmp_path / "log") as process:
            process.send_signal(signal.SIGSTOP)
            assert not await valkey.ready()
            process.send_signal(signal.SIGCONT)
            assert await valkey.ready()
