"""Ends a process whose event loop hangs, so that whoever supervises it starts a new one.

A thread looks every second whether the loop has turned. It counts its own looks instead of seconds: while the whole
process stands still (SIGSTOP, a suspended laptop, a debugger) it doesn't look either, and nothing counts. Code that
keeps the interpreter's lock keeps the thread from looking; then a timer of the kernel ends the process, once it has
used up as much processor time.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import copy_context

from pkg import logger

HUNG = 70
"""Exit code of a process whose loop hung."""
HUNG_SECONDS = 20.0
LOOKS = 20
TELL_SECONDS = 2.0


class Watchdog:
    """Watches the running loop between `start` and `stop`. Ends the process after `seconds` without a turn of it."""

    def __init__(self, seconds: float = HUNG_SECONDS) -> None:
        self._seconds = seconds
        self._pause = seconds / LOOKS
        self._loop = asyncio.get_running_loop()
        self._turns = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._watch,), name="watchdog", daemon=True)

    def start(self) -> None:
        """Call in the loop."""
        faulthandler.register(signal.SIGPROF, chain=True)  # the stacks as plain text, then the signal's own effect
        self._allow()
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Looks no more."""
        self._stopped.set()
        self._thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.unregister(signal.SIGPROF)

    def _turn(self) -> None:
        self._turns += 1
        if not self._stopped.is_set():
            self._loop.call_later(self._pause, self._turn)

    def _watch(self) -> None:
        seen, missed = 0, 0
        while not self._stopped.wait(self._pause):
            self._allow()
            missed = missed + 1 if self._turns == seen else 0
            seen = self._turns
            if missed >= LOOKS:
                self._end()

    def _allow(self) -> None:
        """Processor time until the next look at most. Every core may be at work, so it is of all of them together."""
        signal.setitimer(signal.ITIMER_PROF, self._seconds * len(os.sched_getaffinity(0)))

    def _end(self) -> None:
        """Logs every thread's stack. A log that takes nothing, which may be the cause, isn't waited for."""
        telling = threading.Thread(target=copy_context().run, args=(self._tell,), daemon=True)
        telling.start()
        telling.join(TELL_SECONDS)
        os._exit(HUNG)

    def _tell(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = [
            f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
            for ident, frame in sys._current_frames().items()  # pyright: ignore[reportPrivateUsage] (documented)
        ]
        logger.get("watchdog").critical(
            "the event loop hangs, the process ends", seconds=self._seconds, stacks="\n".join(stacks)
        )


@contextmanager
def watching(seconds: float = HUNG_SECONDS) -> Generator[None]:
    """Around all that the running loop does."""
    watchdog = Watchdog(seconds)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
