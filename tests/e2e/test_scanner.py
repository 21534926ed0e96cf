"""`dreamhub up` with a real clamd: its own child, what it refuses, and what happens while it is away."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e import product
from tests.e2e.product import Product, of_home
from tests.e2e.test_up import begin, finish, pids, until
from tests.scanner import SIGNATURE, TEST_SIGNATURES


@pytest.fixture
def signatures(folder: Path) -> Path:
    """An empty folder for signatures, which the daemon's user may read."""
    found = folder / "signatures"
    found.mkdir()
    found.chmod(0o755)
    return found


def scanning(folder: Path, signatures: Path) -> Product:
    settings = {"SCAN__CLAMD": "", "SCAN__SIGNATURES": str(signatures), "SCAN__TIMEOUT_SECONDS": "3"}
    return begin(folder / "home", **settings)


def send(running: Product, text: bytes) -> httpx.Response:
    with running.client() as client:
        return client.post("/api/v1/documents", files={"file": ("letter.txt", text)})


def state(running: Product) -> str:
    with running.client() as client:
        return str(client.get("/readyz").json()["checks"]["clamd"]["status"])


def is_refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "scan.unavailable")
    assert int(answer.headers["retry-after"]) > 0


def comes_in(running: Product, text: bytes) -> bool:
    """False for a refusal because of the scanner."""
    answer = send(running, text)
    if answer.status_code != 202:
        is_refused(answer)
    return answer.status_code == 202


def said(running: Product) -> str:
    return (running.home.parent / "up.log").read_text()


def examined(running: Product, signatures: Path) -> str:
    """What `dreamhub doctor` has to say of the scanner."""
    root = product.CHECKOUT
    ended = subprocess.run(
        [sys.executable, "-m", "dreamhub", "doctor", "--home", str(running.home)],
        env={**os.environ, "PYTHONPATH": f"{root / 'cmd'}:{root}", "SCAN__SIGNATURES": str(signatures)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return next(line for line in ended.stdout.splitlines() if "Virus scan" in line)


def test_a_scanner_of_its_own(folder: Path, signatures: Path) -> None:
    (signatures / "local.hdb").write_text(TEST_SIGNATURES)
    running = scanning(folder, signatures)
    assert "Virus scan by /" in said(running)
    assert state(running) == "up"
    infected = send(running, SIGNATURE)
    assert (infected.status_code, infected.json()["code"]) == (422, "file.infected")
    taken = send(running, b"a harmless letter")
    assert taken.status_code == 202
    assert "finds the test virus" in examined(running, signatures)

    # Its socket is private, it listens on no port, and it is nobody who owns other data.
    (pid,) = pids(running)["clamd"]
    socket = Path(running.up["clamd"].removeprefix("unix:"))
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert psutil.Process(pid).net_connections("inet") == []
    assert os.geteuid() != 0 or psutil.Process(pid).uids().real not in (
        0,
        psutil.Process(pids(running)["postgres"][0]).uids().real,
    )

    # While it hangs nothing comes in, what is in is read, and it goes on by itself.
    os.kill(pid, signal.SIGSTOP)
    is_refused(send(running, b"while it hangs"))
    with running.client() as client:
        assert product.finished(client, taken.json()["task_id"])["status"] == "succeeded"
    assert state(running) == "down"
    os.kill(pid, signal.SIGCONT)
    until(lambda: comes_in(running, b"after it hung"))

    # It dies, and is replaced.
    os.kill(pid, signal.SIGKILL)
    until(lambda: pids(running)["clamd"] != [pid])
    until(lambda: comes_in(running, b"after it died"))

    # Everything is killed, the daemon stays: the next `up` takes over.
    (pid,) = pids(running)["clamd"]
    for process in of_home(running.home):
        if process.pid != pid and psutil.pid_exists(process.pid):
            process.kill()
    running.process.wait(10)
    (running.home / "up.json").unlink()
    again = scanning(folder, signatures)
    assert not psutil.pid_exists(pid)
    assert send(again, b"after everything died").status_code == 202
    finish(again)


def test_a_scanner_that_does_not_start_refuses_everything_until_it_does(folder: Path, signatures: Path) -> None:
    (signatures / "local.hdb").write_text("this is no signature\n")
    running = scanning(folder, signatures)
    assert "clamd ended at start" in said(running)
    is_refused(send(running, b"a harmless letter"))
    assert state(running) == "down"
    (signatures / "local.hdb").write_text(TEST_SIGNATURES)
    until(lambda: comes_in(running, b"a harmless letter"), seconds=60)
    finish(running)


def test_without_signatures_scanning_is_said_to_be_off(folder: Path, signatures: Path) -> None:
    running = scanning(folder, signatures)
    told = f"off: clamd has no signatures in {signatures}; to turn it on: freshclam, then start again"
    assert f"Virus scan {told}\n" in said(running)
    assert state(running) == "off"
    assert "clamd" not in pids(running)
    assert send(running, b"a harmless letter").status_code == 202
    assert "off: clamd has no signatures in" in examined(running, signatures)
    finish(running)
