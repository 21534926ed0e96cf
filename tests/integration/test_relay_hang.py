"""A relay whose event loop hangs: it ends itself, so that any supervisor starts another."""

import json
import os
import subprocess
import sys

from pkg import watchdog
from tests.servers import Database


async def test_a_relay_that_hangs_ends_itself(database: Database, redis_url: str) -> None:
    environment = {
        **os.environ,
        "DB__DSN": database.relay,
        "REDIS__URL": redis_url,
        "LOG__FORMAT": "json",
        "DREAMHUB_FAILPOINTS": "relay.after_dispatch=block:600",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = (sys.executable, "-P", "-m", "dreamhub", "relay")
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert ended.returncode == watchdog.HUNG, ended.stderr[-2000:]
    last = json.loads(ended.stderr.splitlines()[-1])
    assert (last["event"], last["process"]) == ("the event loop hangs, the process ends", "relay")
    assert "in dispatch\n" in last["stacks"]
