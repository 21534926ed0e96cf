"""`dreamhub relay` in a process of its own, to be stopped, woken and killed."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

from tests.servers import Database


@contextmanager
def relay_process(database: Database, redis_url: str, **more: str) -> Generator[subprocess.Popen[bytes]]:
    """Runs until the block ends; `more` are variables of its environment."""
    environment = {
        **os.environ,
        "DB__DSN": database.relay,
        "REDIS__URL": redis_url,
        "LOG__FORMAT": "json",
        "PYTHONPATH": os.pathsep.join(sys.path),
        **more,
    }
    process = subprocess.Popen((sys.executable, "-P", "-m", "dreamhub", "relay"), env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
