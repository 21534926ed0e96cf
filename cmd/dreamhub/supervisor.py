"""Child processes that are started in order, watched, restarted when they die, and stopped in order."""

import asyncio
import math
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import msgspec

from dreamhub.accounts import Account
from dreamhub.console import Console, LogFile
from dreamhub.errors import StartError
from dreamhub.processes import Record, die_with_parent, record
from pkg import watchdog

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
HEALTHY_SECONDS = 30.0
READY_POLL_SECONDS = 0.05
FOLLOW_SECONDS = 0.2
KILL_SECONDS = 5.0


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """How one child is started, known to be ready, and stopped.

    `role` is its key in `up.json`. `orphan_signal` is what the kernel sends it when the supervisor itself dies.
    `clear` runs before each restart and removes what the dead process left behind; it may block. `descriptors` are
    inherited by this child and no other. `meanwhile` is entered around the pause before a restart, of so many seconds.
    """

    name: str
    role: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    log: LogFile
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    ready: Callable[[], Awaitable[bool]] | None = None
    clear: Callable[[], None] | None = None
    descriptors: tuple[int, ...] = ()
    meanwhile: Callable[[float], AbstractAsyncContextManager[None]] | None = None
    on_console: bool = False


class Child:
    """One running `Spec`: the process of the moment, and how often it has died lately."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.process: asyncio.subprocess.Process | None = None
        self.record: Record | None = None
        self._deaths = 0
        self._started_at = 0.0

    async def spawn(self) -> None:
        """Starts the process in a session of its own, so that a terminal's Ctrl-C reaches only the supervisor."""
        spec = self.spec
        account: dict[str, Any] = spec.account.popen_arguments() if spec.account else {}
        log = spec.log.open()
        try:
            self.process = await asyncio.create_subprocess_exec(
                *spec.command,
                env=spec.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=spec.descriptors,
                preexec_fn=die_with_parent(spec.orphan_signal),
                **account,
            )
        finally:
            os.close(log)
        self.record = record(self.process.pid)
        self._started_at = time.monotonic()

    def pause(self) -> float:
        """Seconds to wait before the next start: none after a long life, then more with each death in a row."""
        lived, self._started_at = time.monotonic() - self._started_at, math.inf
        if lived > HEALTHY_SECONDS:
            self._deaths = 0
            return 0.0
        self._deaths += 1
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._deaths - 1))

    async def stop(self) -> None:
        """Asks the process to end, waits `stop_seconds`, then kills its whole group."""
        if self.process is None or self.process.returncode is not None:
            return
        self._signal(self.spec.stop_signal)
        try:
            await asyncio.wait_for(self.process.wait(), self.spec.stop_seconds)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await asyncio.wait_for(self.process.wait(), KILL_SECONDS)
        _kill_group(self.process.pid)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


class Supervisor:
    """Keeps children alive. `changed` is called after each start of a process."""

    def __init__(self, console: Console, changed: Callable[[], None]) -> None:
        self._console = console
        self._changed = changed
        self._children: list[Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._follower = asyncio.create_task(self._follow())

    def pids(self) -> dict[str, list[int]]:
        """Process ids by role, as in `up.json`."""
        found: dict[str, list[int]] = {}
        for child in self._children:
            if child.process is not None:
                found.setdefault(child.spec.role, []).append(child.process.pid)
        return found

    def records(self) -> dict[str, list[Record]]:
        """The same with start times: what a later take-over must know."""
        found: dict[str, list[Record]] = {}
        for child in self._children:
            if child.record is not None:
                found.setdefault(child.spec.role, []).append(child.record)
        return found

    async def start(self, spec: Spec, seconds: float, *, optional: bool = False) -> None:
        """Starts a child and waits until it is ready. Raises StartError when it dies or takes longer.

        An `optional` one's failure is only told, and it is tried again.
        """
        child = Child(spec)
        self._children.append(child)
        await child.spawn()
        self._changed()
        try:
            async with asyncio.timeout(seconds):
                await self._until_ready(child)
        except (StartError, TimeoutError) as raised:
            late = StartError(f"{spec.name} was not ready after {seconds:.0f} s; see {spec.log.path}")
            error = raised if isinstance(raised, StartError) else late
            if not optional:
                raise error from None
            self._console.say(str(error))
        self._keepers.append(asyncio.create_task(self._keep(child)))

    async def stop(self, *order: tuple[str, ...]) -> None:
        """Stops the children of each group of roles together, one group after the other."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for roles in order:
            await asyncio.gather(*(child.stop() for child in self._children if child.spec.role in roles))
        self._follower.cancel()
        await asyncio.gather(self._follower, return_exceptions=True)
        self._show_new_lines()

    async def _until_ready(self, child: Child) -> None:
        ready = child.spec.ready
        while True:
            if child.process is not None and child.process.returncode is not None:
                raise StartError(_explain_death(child))
            if ready is None or await ready():
                return
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _keep(self, child: Child) -> None:
        """Waits for the child's death and starts it again, for ever."""
        while child.process is not None:
            code = await child.process.wait()
            _kill_group(child.process.pid)
            await self._restart(child, reason=_ending(code))
            self._changed()

    async def _restart(self, child: Child, reason: str) -> None:
        spec = child.spec
        while True:
            pause = child.pause()
            when = f" in {pause:.1f} s" if pause else ""
            self._console.say(f"{spec.name} ended ({reason}); starting it again{when}")
            async with spec.meanwhile(pause) if spec.meanwhile else nullcontext():
                await asyncio.sleep(pause)
            try:
                if spec.clear is not None:
                    await asyncio.to_thread(spec.clear)
                await child.spawn()
                return
            except (OSError, TimeoutError) as error:
                reason = f"can't be started: {error}"

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            self._show_new_lines()
            for child in self._children:
                child.spec.log.bound()

    def _show_new_lines(self) -> None:
        for child in self._children:
            if child.spec.on_console:
                for line in child.spec.log.new_lines():
                    self._console.say(f"{child.spec.name:<9} {line}")


def _kill_group(leader: int) -> None:
    """Ends what a dead child had started itself, such as a parser at work."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nothing is left of it


def _ending(code: int) -> str:
    if code == watchdog.HUNG:
        return "its event loop hung"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _explain_death(child: Child) -> str:
    code = child.process.returncode if child.process is not None else None
    lines = child.spec.log.last_lines()
    return f"{child.spec.name} ended at start ({_ending(code or 0)}); see {child.spec.log.path}" + (
        f"\n{lines}" if lines else ""
    )
