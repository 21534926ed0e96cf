"""Uploads files and folders: several at once, each from its first byte until searches find it."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dreamhub.client.answers import DocumentPage, Task
from dreamhub.client.api import Api
from dreamhub.client.errors import ApiError, ClientError
from dreamhub.client.files import File, find_files
from dreamhub.client.printable import one_line
from dreamhub.client.progress import Ending, Outcome, Reporter
from dreamhub.client.uploads import Uploads
from dreamhub.client.waiting import Waiting

UNFINISHED = 64
"""So many files may be on the server and not yet read, so that a queue isn't filled by one person."""
DOCUMENT_PAGES = 100
DOCUMENT_PAGE = 100
SCAN_SECONDS = 2.0
SCAN_REST = 20
"""A watched folder rests at least so many times as long as it takes to look through it."""
GONE_STATES = frozenset({"failed", "cancelled"})

ALREADY_THERE = "already there"
NOT_READ = "not a kind of file that is read"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with every file; `workers` files are sent at a time."""

    collection: str = ""
    tags: Sequence[str] = ()
    visibility: str = "tenant"
    workers: int = 3

    def fields(self) -> dict[str, str]:
        """The form beside the file."""
        fields = {"visibility": self.visibility}
        if self.collection:
            fields["collection"] = self.collection
        if self.tags:
            fields["tags"] = ",".join(self.tags)
        return fields


class Ingest:
    """One run over the given paths."""

    def __init__(self, api: Api, uploads: Uploads, reporter: Reporter, options: Options) -> None:
        self._api = api
        self._uploads = uploads
        self._reporter = reporter
        self._options = options
        self._sending = asyncio.Semaphore(options.workers)
        self._unfinished = asyncio.Semaphore(UNFINISHED)
        self._waiting = Waiting(api)
        self._there: set[str] = set()
        self.outcomes: list[Outcome] = []

    async def run(self, paths: Sequence[Path], *, watch: bool) -> None:
        """Goes through everything once, or with `watch` until it is cancelled; `outcomes` grows meanwhile."""
        poller = asyncio.create_task(self._waiting.run())
        try:
            files = await asyncio.to_thread(find_files, paths)
            self._there = await self._still_there([found for file in files if (found := self._uploads.find(file))])
            await self._all(files)
            if watch:
                await self._watch(paths, set(files))
        finally:
            poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await poller

    async def _all(self, files: Sequence[File]) -> None:
        self._reporter.expect(len(files))
        async with asyncio.TaskGroup() as group:
            for file in files:
                await self._unfinished.acquire()
                group.create_task(self._tell(file)).add_done_callback(lambda _: self._unfinished.release())

    async def _watch(self, paths: Sequence[Path], done: set[File]) -> None:
        """Takes up a file when two looks in a row found it unchanged: until then somebody is writing it."""
        self._reporter.note("Watching for new and changed files; Ctrl-C ends it.")
        last = done
        pause = SCAN_SECONDS
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            files = set(await asyncio.to_thread(find_files, paths))
            pause = max(SCAN_SECONDS, SCAN_REST * (time.monotonic() - began))
            ready = sorted((files & last) - done, key=lambda file: file.path)
            done = (done & files) | set(ready)
            last = files
            await self._all(ready)

    async def _tell(self, file: File) -> None:
        """A file that fails is told of and doesn't stop the others."""
        try:
            outcome = await self._one(file)
        except ApiError as error:
            unread = error.code == "file.type_not_allowed" and not file.named
            outcome = Outcome(file, Ending.SKIPPED, NOT_READ) if unread else Outcome(file, Ending.FAILED, str(error))
        except ClientError as error:
            outcome = Outcome(file, Ending.FAILED, str(error))
        self.outcomes.append(outcome)
        self._reporter.ended(outcome)

    async def _one(self, file: File) -> Outcome:
        if self._uploads.find(file) in self._there:
            return Outcome(file, Ending.SKIPPED, ALREADY_THERE)
        async with self._sending:
            uploaded = await self._api.upload(
                file.path, self._options.fields(), lambda count: self._reporter.sent(file, count)
            )
        self._reporter.reading(file, "waiting", 0.0)
        task = await self._waiting.finished(
            uploaded.task_id, lambda task: self._reporter.reading(file, task.stage or task.status, task.progress)
        )
        if task.status != "succeeded":
            return Outcome(file, Ending.FAILED, _words(task))
        self._uploads.add(file, uploaded.document_id)
        return Outcome(file, Ending.SKIPPED, ALREADY_THERE) if uploaded.duplicate else Outcome(file, Ending.SUCCEEDED)

    async def _still_there(self, documents: Sequence[str]) -> set[str]:
        """Those of the remembered documents that nobody deleted since.

        Stops looking after some pages: a file that is sent once too often is only known by its bytes.
        """
        sought, there = set(documents), set[str]()
        query: dict[str, str | int] = {"limit": DOCUMENT_PAGE}
        for _ in range(DOCUMENT_PAGES if sought else 0):
            page = await self._api.get("/documents", DocumentPage, query)
            there |= {item.id for item in page.items if item.id in sought and item.status not in GONE_STATES}
            if not page.next_cursor or there == sought:
                break
            query["cursor"] = page.next_cursor
        return there


def _words(task: Task) -> str:
    """Why a task didn't succeed."""
    return one_line(task.error.words) if task.error is not None and task.error.words else f"the task {task.status}"
