"""Lines for the person who started us, and the log files of the children.

Children append to files of their own; those are bounded here and, in development, followed on the console. Nothing
here can block the supervisor: a terminal that is paused, or a pipe that nobody reads, only loses lines.
"""

import os
import queue
import shutil
import threading
import time
from pathlib import Path

LOG_BYTES = 16 * 2**20
BACKLOG = 2000
READ_BYTES = 64 * 1024


class Console:
    """Standard output, written by a thread of its own."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(BACKLOG)
        self._thread = threading.Thread(target=self._write, name="console", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Shows `text` and a line break, or drops it when the reader is too far behind."""
        try:
            self._lines.put_nowait(text.encode(errors="replace") + b"\n")
        except queue.Full:
            return

    def flush(self, seconds: float = 1.0) -> None:
        """Waits until everything is shown, at most `seconds`."""
        until = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            rest = self._lines.get()
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:  # the reader is gone; the log files have everything
                pass
            finally:
                self._lines.task_done()


class LogFile:
    """A child's log: the child appends, we follow and bound it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = self._seen = path.stat().st_size if path.exists() else 0
        self._partial = b""

    def open(self) -> int:
        """A descriptor to hand to the child as standard output and error."""
        self._begun = self.path.stat().st_size if self.path.exists() else 0
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def new_lines(self) -> list[str]:
        """Whole lines added since the last call; beyond 64 KiB, only the latest."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return []
        if size <= self._seen:
            self._seen = size
            return []
        start = max(self._seen, size - READ_BYTES)
        with self.path.open("rb") as file:
            file.seek(start)
            data = (self._partial if start == self._seen else b"") + file.read(size - start)
        self._seen = size
        *lines, self._partial = data.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def bound(self) -> None:
        """Moves the text aside to `….1` when there is too much. The child keeps its descriptor, so it is copied."""
        if self.path.exists() and self.path.stat().st_size > LOG_BYTES:
            shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
            os.truncate(self.path, 0)
            self._begun = self._seen = 0

    def last_lines(self, count: int = 3) -> str:
        """The end of what the present child wrote, for an error message."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(max(self._begun, self.path.stat().st_size - READ_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-count:])
