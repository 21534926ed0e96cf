"""The supervisor against real child processes that stand in for the product's."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from dreamhub.console import Console, LogFile
from dreamhub.errors import StartError
from dreamhub.processes import Record, alive, end, in_groups, record
from dreamhub.supervisor import Spec, Supervisor

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
POLITE = (
    "import signal, sys, time\n"
    "def leave(*_): print('drained', flush=True); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, leave)\n"
    "print('up', flush=True)\n"
    "time.sleep(60)"
)


class Stage:
    """A supervisor whose console is a file, and specs that run Python source."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shown = folder / "console"
        self.descriptor = os.open(self.shown, os.O_WRONLY | os.O_CREAT)
        self.console = Console(self.descriptor)
        self.changes = 0
        self.supervisor = Supervisor(self.console, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def spec(self, name: str, source: str, **more: object) -> Spec:
        log = LogFile(self._folder / f"{name}.log")

        async def ready() -> bool:
            return "up" in log.last_lines()

        fields = {"role": name, "env": dict(os.environ), "stop_seconds": 5.0, "ready": ready} | more
        return Spec(name=name, command=(sys.executable, "-c", source), log=log, **fields)  # type: ignore[arg-type]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    found = Stage(tmp_path)
    yield found
    await found.supervisor.stop(tuple(found.supervisor.pids()))
    found.console.flush()


async def until(holds: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


async def test_a_child_that_dies_is_started_again_and_told_of(stage: Stage) -> None:
    await stage.supervisor.start(stage.spec("worker", SLEEP), 10)
    first = stage.supervisor.pids()["worker"][0]
    os.kill(first, signal.SIGKILL)
    await until(lambda: stage.supervisor.pids()["worker"] != [first])
    second = stage.supervisor.pids()["worker"][0]
    assert record(first) is None
    assert stage.supervisor.records()["worker"] == [record(second)]
    assert stage.changes == 2
    stage.console.flush()
    assert "worker ended (killed by SIGKILL)" in stage.shown.read_text()


async def test_pauses_between_starts_grow(stage: Stage) -> None:
    source = "import os, time; print('up', flush=True); os.path.exists('{0}') or time.sleep(60)"
    flag = stage.shown.with_name("flag")
    await stage.supervisor.start(stage.spec("worker", source.format(flag)), 10)
    flag.touch()
    os.kill(stage.supervisor.pids()["worker"][0], signal.SIGKILL)
    await until(lambda: "0.8 s" in stage.shown.read_text())
    pauses = [line.split(" in ")[1] for line in stage.shown.read_text().splitlines() if "starting it again" in line]
    assert pauses == ["0.2 s", "0.4 s", "0.8 s"]


async def test_leftovers_are_cleared_before_a_restart(stage: Stage) -> None:
    cleared: list[int] = []
    await stage.supervisor.start(stage.spec("postgres", SLEEP, clear=lambda: cleared.append(1)), 10)
    first = stage.supervisor.pids()["postgres"]
    assert cleared == []
    os.kill(first[0], signal.SIGKILL)
    await until(lambda: stage.supervisor.pids()["postgres"] != first)
    assert cleared == [1]


async def test_what_a_dead_child_had_started_ends_too(stage: Stage) -> None:
    source = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('up', p.pid, flush=True)\n"
        "time.sleep(60)"
    )
    spec = stage.spec("worker", source)
    await stage.supervisor.start(spec, 10)
    parser = record(int(spec.log.last_lines().split()[-1]))
    assert parser is not None
    os.kill(stage.supervisor.pids()["worker"][0], signal.SIGKILL)
    await until(lambda: not alive(parser))


async def test_stop_lets_children_drain_and_kills_the_stubborn(stage: Stage) -> None:
    polite, stubborn = stage.spec("server", POLITE), stage.spec("worker", STUBBORN, stop_seconds=0.3)
    await stage.supervisor.start(polite, 10)
    await stage.supervisor.start(stubborn, 10)
    records = [found for group in stage.supervisor.records().values() for found in group]
    await stage.supervisor.stop(("server",), ("worker",))
    assert not any(alive(found) for found in records)
    assert "drained" in polite.log.last_lines()


async def test_a_child_that_dies_at_start_is_an_error_with_its_last_words(stage: Stage) -> None:
    spec = stage.spec("server", "print('no such port'); raise SystemExit(3)")
    spec.log.path.write_text("of another day\n")
    with pytest.raises(StartError, match=r"(?s)server ended at start \(exit code 3\).*no such port") as caught:
        await stage.supervisor.start(spec, 10)
    assert "of another day" not in str(caught.value)


async def test_a_child_that_is_never_ready_is_an_error(stage: Stage) -> None:
    with pytest.raises(StartError, match="server was not ready after 0 s"):
        await stage.supervisor.start(stage.spec("server", "import time; time.sleep(60)"), 0.3)


async def test_a_child_s_lines_are_shown_and_its_log_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamhub.console.LOG_BYTES", 1000)
    source = "import time\nfor n in range(60): print('line', n, 'x' * 40, flush=True)\ntime.sleep(60)"
    spec = stage.spec("worker", source, ready=None, on_console=True)
    await stage.supervisor.start(spec, 10)
    await until(lambda: "line 59" in stage.shown.read_text())
    await until(lambda: spec.log.path.stat().st_size < 1000)
    assert "worker    line 59" in stage.shown.read_text()
    assert spec.log.path.with_name("worker.log.1").exists()


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    source = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from dreamhub.console import Console, LogFile
        from dreamhub.supervisor import Spec, Supervisor
        async def main():
            supervisor = Supervisor(Console(), lambda: None)
            log = LogFile(Path({str(tmp_path)!r}) / "worker.log")
            command = (sys.executable, "-c", "import time; time.sleep(60)")
            await supervisor.start(Spec(name="w", role="w", command=command, env={{}}, log=log), 10)
            print(supervisor.pids()["w"][0], flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """)
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'cmd'}:{root}"}
    with subprocess.Popen([sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        child = record(int(supervisor.stdout.readline()))
        assert child is not None
        supervisor.kill()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def test_ending_spares_a_process_that_merely_has_the_same_id() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        now = record(process.pid)
        assert now is not None
        end([Record(process.pid, now.started - 1)], ((signal.SIGKILL, 1.0),))
        assert alive(now)
        end([now], ((signal.SIGKILL, 5.0),))
        assert not alive(now)


def test_a_group_outlives_its_leader_and_is_found_by_its_environment() -> None:
    source = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True)"
    environment = os.environ | {"DREAMHUB_HOME": "/one"}
    with subprocess.Popen(
        [sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        member = int(leader.stdout.readline())
    assert in_groups([leader.pid], "DREAMHUB_HOME=/another") == []
    found = in_groups([leader.pid], "DREAMHUB_HOME=/one")
    assert [process.pid for process in found] == [member]
    end(found, ((signal.SIGKILL, 5.0),))


def test_a_console_that_nobody_reads_does_not_block() -> None:
    reader, writer = os.pipe()
    console = Console(writer)
    began = time.monotonic()
    for _ in range(5000):
        console.say("x" * 100)
    console.flush(0.1)
    assert time.monotonic() - began < 60  # it returns at all; a blocking write would not
    os.close(reader)
