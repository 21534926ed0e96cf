"""The product as a user starts it: `dreamhub up` on a home of its own, spoken to over HTTP."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

CHECKOUT = Path(__file__).parents[2]
START_SECONDS = 120.0
FINISHED = {"succeeded", "failed", "dead", "cancelled"}


class Product:
    """A running installation. `up` is the content of its up.json."""

    def __init__(self, home: Path, process: subprocess.Popen[bytes]) -> None:
        self.home = home
        self.process = process

    @property
    def up(self) -> dict[str, Any]:
        return msgspec.json.decode((self.home / "up.json").read_bytes())

    def client(self, key: str | None = None) -> httpx.Client:
        """Speaks with a tenant's key, the first tenant's by default."""
        up = self.up
        return httpx.Client(
            base_url=up["url"], headers={"Authorization": f"Bearer {key or up['api_key']}"}, timeout=60, trust_env=False
        )

    def new_tenant(self, name: str) -> dict[str, Any]:
        up = self.up
        answer = httpx.post(
            f"{up['url']}/api/v1/tenants",
            json={"name": name, "owner_email": f"{name}@example.com", "owner_password": "correct horse battery"},
            headers={"Authorization": f"Bearer {up['platform_token']}"},
            trust_env=False,
        )
        assert answer.status_code == 201, answer.text
        return answer.json()


@contextmanager
def running_product(**environment: str) -> Generator[Product]:
    """Starts the product on free ports in a temporary home and stops it afterwards."""
    with tempfile.TemporaryDirectory(prefix="dreamhub-e2e-") as folder:
        Path(folder).chmod(0o711)
        home = Path(folder) / "home"
        process = start(home, **environment)
        try:
            wait_until_up(home, process)
            yield Product(home, process)
        finally:
            stop(process)


def start(home: Path, *flags: str, **environment: str) -> subprocess.Popen[bytes]:
    log = (home.parent / "up.log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "dreamhub", "up", "--home", str(home), "--port", "0", *flags],
        cwd=CHECKOUT,
        # Whether this machine has a scanner of its own must make no difference.
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT / 'cmd'}:{CHECKOUT}", "SCAN__CLAMD": "off", **environment},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_until_up(home: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while not (home / "up.json").exists():
        log = home.parent / "up.log"
        assert process.poll() is None, f"up ended early:\n{log.read_text(errors='replace')[-4000:]}"
        assert time.monotonic() < until, f"up isn't ready:\n{log.read_text(errors='replace')[-4000:]}"
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)


def of_home(home: Path) -> list[psutil.Process]:
    """Every process that works for this home: by its arguments, its environment, or its folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            traces = [*process.cmdline(), process.environ().get("DREAMHUB_HOME", ""), process.cwd()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(home) in trace for trace in traces):
            found.append(process)
    return found


def kill_all(home: Path) -> None:
    """Ends at once whatever works for this home; who would start it again first."""
    while left := of_home(home):
        for process in sorted(left, key=lambda item: item.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def upload(client: httpx.Client, name: str, data: bytes, **fields: str) -> dict[str, Any]:
    answer = client.post("/api/v1/documents", files={"file": (name, data)}, data=fields)
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


def finished(client: httpx.Client, task_id: str, seconds: float = 90.0) -> dict[str, Any]:
    """The task, once it has ended."""
    until = time.monotonic() + seconds
    while True:
        task = client.get(f"/api/v1/tasks/{task_id}").json()
        if task["status"] in FINISHED:
            return task
        assert time.monotonic() < until, task
        time.sleep(0.1)
