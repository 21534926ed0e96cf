"""Processes as /proc tells of them: who started when, who belongs to a home, and how to end exactly those."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

PR_SET_PDEATHSIG = 1
STARTING_LOOKS = 5
POLL_SECONDS = 0.05


class Record(msgspec.Struct, frozen=True):
    """A process that can't be mistaken for a later one of the same id. `started` is in clock ticks since boot."""

    pid: int
    started: int


class Stat(msgspec.Struct, frozen=True):
    """The few fields of /proc/PID/stat that are needed here."""

    state: str
    group: int
    started: int


def stat(pid: int) -> Stat | None:
    """None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the name in parentheses, and the name itself may hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(state=fields[0], group=int(fields[2]), started=int(fields[19]))


def record(pid: int) -> Record | None:
    """None when the process is gone already."""
    found = stat(pid)
    return Record(pid, found.started) if found else None


def alive(process: Record) -> bool:
    """False also for a zombie, and for another process that got the same id."""
    found = stat(process.pid)
    return found is not None and found.started == process.started and found.state not in "ZX"


def command_line(pid: int) -> str:
    """Arguments separated by NUL; empty when the process is gone, a zombie, or the kernel's."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def with_command(matches: Callable[[str], bool]) -> list[Record]:
    """Every process whose command line `matches`, except this one."""
    found: list[Record] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and matches(command_line(int(entry))):
            process = record(int(entry))
            if process is not None:
                found.append(process)
    return found


def in_groups(leaders: Iterable[int], variable: str) -> list[Record]:
    """Processes of the groups of `leaders`, dead or alive, whose environment has `variable` (`NAME=value`)."""
    wanted, marker = set(leaders), f"{variable}\0".encode()
    found: list[Record] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        state = stat(int(entry))
        if state is not None and state.group in wanted and marker in _environment(int(entry)):
            found.append(Record(int(entry), state.started))
    return found


def _environment(pid: int) -> bytes:
    """Empty where it isn't ours to read. It is empty, too, for a moment while a program takes another's place."""
    for _ in range(STARTING_LOOKS):
        try:
            found = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return b""
        if found:
            return found
        time.sleep(POLL_SECONDS / 10)
    return b""


def end(processes: Iterable[Record], steps: Iterable[tuple[signal.Signals, float]]) -> None:
    """Sends each step's signal to what is still alive and waits up to its seconds, until nothing is left.

    Raises TimeoutError if something survives.
    """
    left = [process for process in processes if alive(process)]
    for number, seconds in steps:
        for process in left:
            _send(process, number)
        until = time.monotonic() + seconds
        while left := [process for process in left if alive(process)]:
            if time.monotonic() > until:
                break
            time.sleep(POLL_SECONDS)
        if not left:
            return
    if left:
        raise TimeoutError(f"processes {', '.join(str(process.pid) for process in left)} don't end")


def _send(process: Record, number: signal.Signals) -> None:
    if alive(process):
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the kernel sends `number` to the child when this process dies, however it dies.

    The C library is loaded here, before the fork: the child must not take locks.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), number)

    return arrange
