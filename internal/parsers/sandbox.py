"""Parses files in child processes with bounds, so that no file can harm the worker."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from internal.entities.archives import ArchiveBounds, ArchiveEntry
from internal.entities.parsed import PageImage, Parsed
from internal.parsers.confine import SANDBOX_ID
from internal.parsers.wire import (
    READABLE_SIDE,
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
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.sections import Limits as LimitSettings

START_SECONDS = 30.0
GRACE_SECONDS = 5.0  # after which a zygote that doesn't end a child is itself ended
CODE_ROOT = Path(__file__).resolve().parents[2]
READ_STEP = 1 << 20
EXPAND_FACTOR = 4.0  # an archive may hold as much as many files
CLOCK_FACTOR = 4.0  # a busy machine lends a child only some of each second


class ZygoteLostError(Exception):
    """The process that forks children died; the file isn't at fault."""


class Sandbox:
    """Parses files concurrently, each in a child of its own. Close it when the worker stops.

    `capabilities` names the walls that this host allows: network, user, no-new-privileges, files, calls.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._zygote: _Zygote | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._ids = itertools.count(1)
        self._log = logger.get("parsers.sandbox")

    @property
    def capabilities(self) -> frozenset[str]:
        """Empty until the first parse or `start`."""
        return frozenset(self._zygote.capabilities) if self._zygote else frozenset()

    async def start(self) -> None:
        """Warms up; otherwise the first parse does."""
        await self._running()

    async def close(self) -> None:
        """Ends the zygote and every child; parses under way and later ones fail."""
        self._closed = True
        async with self._starting:
            zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.close()

    async def parse(
        self,
        path: Path,
        *,
        media_type: str,
        workdir: Path,
        deadline: float | None = None,
        side: int = READABLE_SIDE,
    ) -> Parsed:
        """Reads the file; page images are written to `workdir`, whose paths the result holds.

        `deadline` is a `time.monotonic()` value, `side` the most pixels of a picture's longer side. Raises
        FILE_UNREADABLE, FILE_ENCRYPTED or FILE_TOO_COMPLEX for the file, INTERNAL when two zygotes in a row died of
        something else.
        """
        result = await self._run(path, lambda: self._job(media_type, workdir, deadline, side))
        if not isinstance(result, Done):
            raise misbehaved()
        images = tuple(admit(image, workdir) for image in result.parsed.page_images)
        return msgspec.structs.replace(result.parsed, page_images=images)

    async def expand(self, path: Path, *, workdir: Path, bounds: ArchiveBounds) -> tuple[ArchiveEntry, ...]:
        """Writes the archive's files to `workdir`, which is empty, each named by its ordinal.

        Raises FILE_UNREADABLE, FILE_TOO_COMPLEX or FILE_EMPTY for the archive, BLOB_UNAVAILABLE for a full disk,
        INTERNAL as `parse`.
        """

        def job() -> Job:
            _clear(workdir)
            found = self._job("", workdir, None, READABLE_SIDE)
            limits = msgspec.structs.replace(
                found.limits,
                seconds=EXPAND_FACTOR * found.limits.seconds,
                cpu_seconds=EXPAND_FACTOR * found.limits.cpu_seconds,
            )
            return msgspec.structs.replace(found, limits=limits, archive=bounds)

        result = await self._run(path, job)
        if not isinstance(result, Expanded):
            raise misbehaved()
        return result.entries

    async def _run(self, path: Path, make: Callable[[], Job]) -> Done | Expanded:
        for attempt in (1, 2):
            try:
                job = make()
                zygote = await self._running()
                output, ended = await zygote.run(job, path)
                return await self._judge(job, output, ended)
            except ZygoteLostError:
                self._log.warning("parser_zygote_lost", attempt=attempt)
        raise AppError(Code.INTERNAL, "The parser process died twice; try again.")

    def _job(self, media_type: str, workdir: Path, deadline: float | None, side: int) -> Job:
        """The order for one child; as root the work folder is given to the child's user."""
        seconds = CLOCK_FACTOR * self._limits.parse_seconds
        if deadline is not None:
            seconds = min(seconds, max(0.1, deadline - time.monotonic()))
        if os.geteuid() == 0:
            os.chown(workdir, SANDBOX_ID, SANDBOX_ID)
        return Job(
            id=next(self._ids),
            media_type=media_type,
            workdir=str(workdir.absolute()),
            limits=Limits(
                seconds=seconds,
                cpu_seconds=self._limits.parse_seconds,
                memory=self._limits.parse_memory_mb << 20,
                output=self._limits.parse_output_mb << 20,
                megapixels=self._limits.image_megapixels,
                side=side,
            ),
        )

    async def _judge(self, job: Job, output: bytes | None, ended: Ended) -> Done | Expanded:
        """Turns what came out of a child into a result or an error."""
        megabytes = job.limits.output >> 20
        if output is None:
            raise AppError(
                Code.FILE_TOO_COMPLEX, f"The file holds more than {megabytes} MB of text; split it into parts."
            )
        if ended.reason == "time" or ended.signal in (signal.SIGXCPU, signal.SIGXFSZ):
            seconds = job.limits.seconds if ended.reason == "time" else job.limits.cpu_seconds
            raise AppError(
                Code.FILE_TOO_COMPLEX, f"The file could not be read within {seconds:g} seconds; split it into parts."
            )
        if ended.reason == "memory":
            needed = job.limits.memory >> 20
            raise AppError(
                Code.FILE_TOO_COMPLEX, f"The file needs more than {needed} MB of memory; split it into parts."
            )
        if ended.reason == "stopped":
            raise ZygoteLostError
        try:
            result = await asyncio.to_thread(msgspec.msgpack.decode, output, type=Result)
        except msgspec.MsgspecError:
            self._log.warning("parser_crashed", media_type=job.media_type, signal=ended.signal)
            raise AppError(
                Code.FILE_UNREADABLE,
                "The file is damaged in a way that stops its reader; save it again and upload that.",
            ) from None
        if isinstance(result, Failed):
            if result.trace:
                self._log.warning("parser_failed", media_type=job.media_type, trace=result.trace)
            raise AppError(Code(result.code), result.detail)
        return result

    async def _running(self) -> "_Zygote":
        async with self._starting:
            if self._closed:
                raise AppError(Code.INTERNAL, "The worker is stopping.")
            if self._zygote is None or self._zygote.lost:
                if self._zygote is not None:
                    await self._zygote.close()
                self._zygote = await _Zygote.launch()
            return self._zygote


def admit(image: PageImage, workdir: Path) -> PageImage:
    """A child's word isn't trusted: the image must be a regular file right in the work folder."""
    return msgspec.structs.replace(image, path=str(regular(image.path, workdir)))


def regular(name: str, workdir: Path) -> Path:
    """A file that a child wrote right into its work folder. Raises FILE_UNREADABLE for anything else."""
    path = workdir.absolute() / name
    try:
        found = Path(name).name == name and stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        found = False
    if not found:
        raise misbehaved()
    return path


def misbehaved() -> AppError:
    """The error for a file whose reader did what no reader does."""
    return AppError(Code.FILE_UNREADABLE, "The file made its reader misbehave and was refused.")


def _clear(folder: Path) -> None:
    """What an attempt that was cut off left there."""
    for path in folder.iterdir():
        path.unlink()


class _Zygote:
    """The worker's end of one zygote process."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.capabilities: tuple[str, ...] = ()
        self.lost = False
        self._process = process
        self._control = control
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ends: dict[int, asyncio.Future[Ended]] = {}
        self._decoder = msgspec.msgpack.Decoder(Notice)

    @classmethod
    async def launch(cls) -> "_Zygote":
        """Starts the process and waits until it is warm."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "internal.parsers.zygote", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),), cwd=CODE_ROOT, stdin=asyncio.subprocess.DEVNULL, env=_environment(),
            )  # fmt: skip
        zygote = cls(process, ours)
        asyncio.get_running_loop().add_reader(ours, zygote._receive)
        try:
            async with asyncio.timeout(START_SECONDS):
                await zygote._ready
        except (TimeoutError, ZygoteLostError):
            await zygote.close()
            raise AppError(Code.INTERNAL, "The parser process did not start; see the worker's log.") from None
        except asyncio.CancelledError:
            # Hung up, it ends by itself; nobody would otherwise know of it.
            zygote.hang_up()
            raise
        return zygote

    async def close(self) -> None:
        """Hangs up, which ends the zygote and its children; ends it by force if it doesn't listen."""
        self.hang_up()
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def run(self, job: Job, path: Path) -> tuple[bytes | None, Ended]:
        """Runs one job. The output is None when it was larger than allowed."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        end: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._ends[job.id] = end
        finished = False
        try:
            try:
                with path.open("rb") as file:
                    await self._send(Start(job), [file.fileno(), writer])
            finally:
                os.close(writer)
            async with asyncio.timeout(job.limits.seconds + GRACE_SECONDS):
                output = await self._collect(reader, job.limits.output)
                if output is None:
                    await self._send(Cancel(job.id))
                ended = await end
            finished = True
            return output, ended
        except TimeoutError:
            # Even the zygote didn't answer: it is stuck or stopped.
            self.hang_up()
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            raise ZygoteLostError from None
        finally:
            os.close(reader)
            del self._ends[job.id]
            if not finished and not self.lost:
                with contextlib.suppress(ZygoteLostError):
                    await self._send(Cancel(job.id))

    async def _collect(self, reader: int, limit: int) -> bytes | None:
        """Everything that the child writes, None beyond `limit` bytes plus what framing costs."""
        loop = asyncio.get_running_loop()
        os.set_blocking(reader, False)
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                part = os.read(reader, READ_STEP)
            except BlockingIOError:
                await _readable(loop, reader)
                continue
            if not part:
                return b"".join(parts)
            size += len(part)
            if size > limit:
                return None
            parts.append(part)

    async def _send(self, request: Request, descriptors: list[int] | None = None) -> None:
        message = msgspec.msgpack.encode(request)
        while not self.lost:
            try:
                socket.send_fds(self._control, [message], descriptors or [])
                return
            except BlockingIOError:
                await asyncio.sleep(0.005)
            except OSError:
                self.hang_up()
        raise ZygoteLostError

    def _receive(self) -> None:
        try:
            message = self._control.recv(READ_STEP)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self.hang_up()
            return
        notice = self._decoder.decode(message)
        if isinstance(notice, Ready):
            self.capabilities = notice.capabilities
            if not self._ready.done():
                self._ready.set_result(None)
        elif (end := self._ends.get(notice.id)) and not end.done():
            end.set_result(notice)

    def hang_up(self) -> None:
        """The zygote is gone or given up, which ends it and its children: whoever waits is told."""
        if self.lost:
            return
        self.lost = True
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        for identifier, end in self._ends.items():
            if not end.done():
                end.set_result(Ended(identifier, "stopped", 0))
        if not self._ready.done():
            self._ready.set_exception(ZygoteLostError())


async def _readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: waiter.done() or waiter.set_result(None))
    try:
        await waiter
    finally:
        loop.remove_reader(descriptor)


def _environment() -> dict[str, str]:
    """Nothing of the worker's environment: it holds secrets. Only what Python needs to find this program."""
    path = [str(CODE_ROOT), *(entry for entry in sys.path if entry and entry != str(CODE_ROOT))]
    return {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
