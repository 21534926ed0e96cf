"""Forks the product's processes: `python -m tests.chaos.nursery`, orders on standard input, news on standard output.

Starting Python and importing the product takes a second of processor time; a thousand kills would be a thousand
seconds. This process has imported it once, and forks. What it forks runs the same entry points as `dreamhub serve`,
`work` and `relay`, in a session of its own, and dies with it.
"""

import gc
import os
import selectors
import signal
import sys
import traceback
from pathlib import Path

import msgspec

from dreamhub.processes import die_with_parent
from internal import app
from internal.entities.tasks import Queue
from internal.parsers import zygote
from internal.services import ingest
from pkg import config
from tests.chaos import forked_parser

BATCH = 4
"""Passages a transaction here, so that small files are of several batches."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """Fork a process. `role` is serve, work or relay."""

    name: str
    role: str
    environment: dict[str, str]
    log: str


class Signal(msgspec.Struct, frozen=True, tag=True):
    """Send a signal to a process, if it is still the one with this id."""

    name: str
    pid: int
    number: int


class Started(msgspec.Struct, frozen=True, tag=True):
    """It runs."""

    name: str
    pid: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """It ended; `code` is negative for a signal."""

    name: str
    pid: int
    code: int


Order = Start | Signal
News = Started | Ended


class Nursery:
    """Waits for orders and for deaths. The parent alone reaps, so an id is never another's."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._handles: dict[str, tuple[int, int]] = {}
        self._decoder = msgspec.json.Decoder(Order)

    def run(self) -> None:
        """Until standard input ends; then nothing is left alive."""
        self._selector.register(0, selectors.EVENT_READ)
        buffer = b""
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._reap(key.data)
                    continue
                data = os.read(0, 1 << 16)
                if not data:
                    self._end()
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._obey(self._decoder.decode(line))

    def _obey(self, order: Order) -> None:
        if isinstance(order, Start):
            self._start(order)
        elif (found := self._handles.get(order.name)) and found[0] == order.pid:
            signal.pidfd_send_signal(found[1], order.number)

    def _start(self, order: Start) -> None:
        arrange = die_with_parent(signal.SIGKILL)
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            arrange()
            _become(order)
        handle = os.pidfd_open(pid)
        self._handles[order.name] = (pid, handle)
        self._selector.register(handle, selectors.EVENT_READ, order.name)
        _tell(Started(order.name, pid))

    def _reap(self, name: str) -> None:
        pid, handle = self._handles.pop(name)
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(handle)
        os.close(handle)
        _tell(Ended(name, pid, os.waitstatus_to_exitcode(status)))

    def _end(self) -> None:
        for pid, handle in self._handles.values():
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.waitpid(pid, 0)


def _become(order: Start) -> None:
    """What the forked process does; never returns."""
    code = 1
    try:
        os.setsid()
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor, standard in ((null, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, standard)
        os.environ.update(order.environment)
        ingest.BATCH = BATCH
        if order.role == "serve":
            app.serve(config.load(process="server"))
        elif order.role == "work":
            forked_parser.prepare()
            app.work(config.load(process="worker"), queues=list(Queue))
        else:
            app.relay(config.load(process="relay"))
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must not run its parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tell(news: News) -> None:
    os.write(1, msgspec.json.encode(news) + b"\n")


def launch_command() -> tuple[str, ...]:
    """How the harness starts this program."""
    return (sys.executable, "-P", "-m", "tests.chaos.nursery")


def environment() -> dict[str, str]:
    """Where the code is; no more."""
    root = Path(__file__).resolve().parents[2]
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": f"{root / 'cmd'}:{root}"}


if __name__ == "__main__":
    zygote.warm_up()
    gc.collect()
    gc.freeze()  # what is in memory now is shared with all that is forked
    Nursery().run()
