"""A warm process that forks a child for each file. Run as `python -m internal.parsers.zygote FD`.

It imports all parsers once and never looks at a file itself. It owns its children: it watches their memory and
clock, kills them, reaps them, and ends with all of them when the worker's end of the socket closes.
"""

import codecs
import contextlib
import encodings
import gc
import importlib
import os
import pkgutil
import selectors
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
from PIL import Image

from internal.parsers import confine
from internal.parsers.expand import expand
from internal.parsers.read import read
from internal.parsers.wire import (
    Cancel,
    Done,
    Ended,
    Expanded,
    Failed,
    Job,
    Limits,
    Notice,
    Ready,
    Request,
    Result,
    Start,
)
from pkg.apperr import AppError, Code

WATCH_SECONDS = 0.02
MESSAGE = 1 << 16
WARM_MODULES = ("email.parser", "heapq")


class _Child:
    """A running child: its job, process, and when its time is over (monotonic seconds)."""

    def __init__(self, job: Job, pid: int) -> None:
        self.job = job
        self.pid = pid
        self.handle = os.pidfd_open(pid)
        self.deadline = time.monotonic() + job.limits.seconds
        self.reason = "exited"

    def kill(self, reason: str) -> None:
        """Ends the child at once; the first reason counts."""
        if self.reason == "exited":
            self.reason = reason
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def resident(self) -> int:
        """Bytes in memory, 0 when already gone."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


class Zygote:
    """The loop: requests from the worker, ends of children, and the watch between them."""

    def __init__(self, control: socket.socket, capabilities: list[str]) -> None:
        self._control = control
        self._capabilities = capabilities
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._decoder = msgspec.msgpack.Decoder(Request)

    def run(self) -> None:
        """Serves until the worker is gone."""
        self._selector.register(self._control, selectors.EVENT_READ)
        self._send(Ready(tuple(self._capabilities)))
        alive = True
        while alive:
            for key, _ in self._selector.select(WATCH_SECONDS if self._children else None):
                if key.fileobj is self._control:
                    alive = self._receive()
                else:
                    self._reap(self._children[key.data])
            self._watch()
        for child in self._children.values():
            child.kill("stopped")

    def _receive(self) -> bool:
        """Handles one request; false when the worker has closed its end."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE, 2)
        except ConnectionError:
            return False
        if not message:
            return False
        try:
            request = self._decoder.decode(message)
            if isinstance(request, Cancel):
                if child := self._children.get(request.id):
                    child.kill("cancelled")
            else:
                self._start(request, descriptors[0], descriptors[1])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _start(self, request: Start, file: int, result: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._selector.close()
            self._control.close()
            _run_child(request.job, file, result)
        child = _Child(request.job, pid)
        self._children[request.job.id] = child
        self._selector.register(child.handle, selectors.EVENT_READ, request.job.id)

    def _reap(self, child: _Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        self._selector.unregister(child.handle)
        os.close(child.handle)
        del self._children[child.job.id]
        self._send(Ended(child.job.id, child.reason, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))

    def _watch(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if now > child.deadline:
                child.kill("time")
            elif child.resident() > child.job.limits.memory:
                child.kill("memory")

    def _send(self, notice: Notice) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self._control.send(msgspec.msgpack.encode(notice))


def _run_child(job: Job, file: int, result: int) -> None:
    """Everything that a child does; never returns."""
    status = 1
    log = os.dup(2)
    try:
        os.setsid()
        # Libraries in C print what they find in a file; none of that may reach a log.
        silence = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(silence, standard)
        confine.end_with_parent()
        _enclose(job)
        answer = _answer(job, file)
        with os.fdopen(result, "wb", closefd=False) as pipe:
            pipe.write(msgspec.msgpack.encode(answer))
        status = 0
    except BaseException:  # noqa: BLE001 (a forked child must not run its parent's code)
        os.write(log, traceback.format_exc(limit=5).encode(errors="replace")[:2000])
    finally:
        os._exit(status)


def _enclose(job: Job) -> list[str]:
    """Puts up every wall that the host allows, in the order that they need each other.

    The work folder becomes the current one first: the unnamed user may not be able to walk to it.
    """
    os.chdir(job.workdir)
    confine.bound_resources(seconds=job.limits.cpu_seconds, memory=job.limits.memory)
    walls: list[tuple[str, Callable[[], bool]]] = [
        ("user", confine.drop_privileges),
        ("no-new-privileges", confine.forbid_privileges),
        ("files", lambda: confine.forbid_files(readable=confine.code_folders(), writable=".")),
        ("calls", confine.forbid_calls),
    ]
    return [name for name, wall in walls if wall()]


def _answer(job: Job, file: int) -> Result:
    """The parsed file, the archive's entries, or the error, whatever the parsers raise."""
    try:
        with os.fdopen(file, "rb", closefd=False) as stream:
            if job.archive is not None:
                return Expanded(tuple(expand(stream, workdir=Path(), bounds=job.archive)))
            parsed = read(
                stream,
                media_type=job.media_type,
                workdir=Path(),
                max_bytes=job.limits.output,
                megapixels=job.limits.megapixels,
                side=job.limits.side,
            )
        return Done(parsed)
    except AppError as error:
        return Failed(error.code, error.detail)
    except (MemoryError, RecursionError):
        return Failed(Code.FILE_TOO_COMPLEX, "The file is too complex to be read; split or simplify it.")
    except Exception:  # noqa: BLE001 (any error of a parser is an answer about this file, told to the log with its trace)
        detail = "The file could not be read; open it in its program, save it again and upload that."
        return Failed(Code.FILE_UNREADABLE, detail, traceback.format_exc(limit=-6)[-2000:])


def _probe() -> list[str]:
    """Which walls stand here, tried once in a child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            limits = Limits(seconds=1, cpu_seconds=1, memory=1 << 30, output=1, megapixels=1, side=1)
            job = Job(id=0, media_type="", workdir=tempfile.gettempdir(), limits=limits)
            os.write(writer, ",".join(_enclose(job)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        walls = pipe.read().decode()
    os.waitpid(pid, 0)
    return [wall for wall in walls.split(",") if wall]


def warm_up() -> None:
    """Loads all that parsers load lazily.

    A child that has given up its rights can't read it any more where Python lies in a closed folder, as in root's home.
    """
    Image.init()
    for _, name, _ in pkgutil.iter_modules(encodings.__path__):
        # `"".encode(name)` would not do: CPython answers for some names without loading their modules.
        with contextlib.suppress(LookupError):  # codecs of other systems
            codecs.lookup(name)
    for name in WARM_MODULES:
        importlib.import_module(name)


def main() -> None:
    """Warms up and serves the socket whose descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    warm_up()
    network = ["network"] if confine.leave_network() else []
    # What is in memory now is shared with all children as long as the collector doesn't touch it.
    gc.collect()
    gc.freeze()
    Zygote(control, network + _probe()).run()


if __name__ == "__main__":
    main()
