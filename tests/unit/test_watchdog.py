"""The watchdog in processes of their own: who hangs is ended, who merely stood still is not."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from pkg import watchdog

ROOT = Path(__file__).resolve().parents[2]


def process(body: str, *, seconds: float = 1.0, **options: object) -> subprocess.Popen[bytes]:
    """Runs `body` as a coroutine under a watchdog; it prints `up` first."""
    source = f"""\
import asyncio, re, sys, time
from pkg import logger, watchdog
async def main():
    with watchdog.watching({seconds}):
        print("up", flush=True)
{textwrap.indent(textwrap.dedent(body), " " * 8)}
logger.configure(log_format="json", level="info", process="test")
asyncio.run(main())
"""
    started = subprocess.Popen(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=options.get("stderr", subprocess.PIPE),  # type: ignore[arg-type]
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"up\n"
    return started


def test_a_loop_that_hangs_is_told_of_in_one_line_and_ended() -> None:
    started = process("time.sleep(600)")
    _, log = started.communicate(timeout=60)
    assert started.returncode == watchdog.HUNG
    (line,) = log.decode().splitlines()
    told = json.loads(line)
    assert told["event"] == "the event loop hangs, the process ends"
    assert told["level"] == "critical"
    assert "MainThread:" in told["stacks"]
    assert ", in main\n" in told["stacks"]


def test_code_that_keeps_the_interpreter_s_lock_is_ended_by_the_kernel() -> None:
    started = process("re.match('(a+)+$', 'a' * 60 + 'b')")
    _, log = started.communicate(timeout=60)
    assert started.returncode == -signal.SIGPROF
    assert b"in main" in log


def test_a_process_that_stood_still_goes_on() -> None:
    started = process("await asyncio.sleep(3)")
    os.kill(started.pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, started.pid, os.WSTOPPED | os.WNOWAIT)
        with subprocess.Popen(["sleep", "2"]) as pause:
            pause.wait()
    finally:
        os.kill(started.pid, signal.SIGCONT)
    _, log = started.communicate(timeout=60)
    assert (started.returncode, log) == (0, b"")


def test_a_log_that_nobody_reads_does_not_keep_the_process() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    started = process("sys.stderr.write('x' * 100_000)", stderr=writer)
    assert started.wait(60) == watchdog.HUNG
    os.close(writer)
    os.close(reader)


def test_a_busy_loop_that_turns_is_left_alone() -> None:
    started = process(
        """
        until = time.monotonic() + 3
        while time.monotonic() < until:
            time.sleep(0.05)
            await asyncio.sleep(0)
        """
    )
    _, log = started.communicate(timeout=60)
    assert (started.returncode, log) == (0, b"")
