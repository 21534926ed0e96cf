"""A worker's first parser, forked beside it from a process that is warm already.

`internal.parsers.sandbox` starts the parser as a program of its own, which takes a second of processor time: longer
than a worker lives in a chaos run. What runs here is the same program behind the same socket, only started otherwise.
"""

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from internal.parsers import sandbox, zygote

START_SECONDS = 30.0


class _Forked:
    """As much of a subprocess as the sandbox uses."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    async def wait(self) -> int:
        _, status = await asyncio.to_thread(os.waitpid, self._pid, 0)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


def prepare() -> None:
    """Forks the parser; to be called before the worker has an event loop or a thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _serve(theirs)
    theirs.close()
    ours.setblocking(False)
    usual: Callable[[], Awaitable[Any]] = sandbox._Zygote.launch
    ready = [ours]

    async def launch() -> Any:
        if not ready:
            return await usual()
        control = ready.pop()
        found = sandbox._Zygote(_Forked(pid), control)  # type: ignore[arg-type]
        asyncio.get_running_loop().add_reader(control, found._receive)
        async with asyncio.timeout(START_SECONDS):
            await found._ready
        return found

    sandbox._Zygote.launch = launch  # type: ignore[method-assign]


def _serve(control: socket.socket) -> None:
    """Until the worker is gone; never returns."""
    try:
        sys.argv = ["zygote", str(control.detach())]
        zygote.main()
    except BaseException:  # noqa: BLE001 - a forked child must not run its parent's code
        traceback.print_exc()
    finally:
        os._exit(0)
