"""Live events of one tenant on this server: read once, handed to every reader who may see them."""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable
from uuid import UUID

from internal.services.event_pages import PAGE, EventPages, Message
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from pkg.resilience import backoff

QUEUED = 4 * PAGE
"""Messages that may wait for one reader. They are references: the text is there once for all readers."""
TAKEN = 100
"""Messages that a reader is handed at a time, which bounds what lies between here and its socket."""
PACE_SECONDS, PACES = 0.01, 100
"""How often, and how many times, a burst waits for readers to catch up before it leaves the slow ones behind."""
BREATH_SECONDS = 0.03  # between rounds: events come in bursts, and a round costs the same for one or for many
PROGRESS_SECONDS = 0.5  # a task's or batch's progress is told twice a second at most
MOVED = 1_000  # tasks and batches whose progress waits to be looked at
POLL_SECONDS, ALONE_SECONDS = 5.0, 1.0  # the net beneath Redis: while it is heard, and while it is away


class Reader:
    """One connection's end of a feed: what waits for it, and why it was ended."""

    def __init__(self, ctx: Context, credential: str, subject: str) -> None:
        self.ctx = ctx
        self.credential = credential
        self.subject = subject
        self._waiting: deque[Message] = deque()
        self._news = asyncio.Event()
        self._ended: AppError | None = None

    @property
    def room(self) -> int:
        """Messages that it can still be offered."""
        return QUEUED - len(self._waiting)

    def offer(self, messages: list[Message]) -> None:
        """Keeps the messages until they are taken. A reader that has no room for them is ended."""
        if self._ended is not None:
            return
        if len(messages) > self.room:
            self.end(_too_slow())
            return
        self._waiting.extend(messages)
        self._news.set()

    def end(self, why: AppError) -> None:
        """Drops what waits; the next `take` raises. The first reason counts."""
        if self._ended is None:
            self._ended = why
            self._waiting.clear()
            self._news.set()

    def check(self) -> None:
        """Raises why it was ended, if it was."""
        if self._ended is not None:
            raise self._ended

    async def take(self) -> list[Message]:
        """What waits, at most 100 messages; waits until there is some. Raises why it was ended."""
        while not self._waiting:
            self.check()
            self._news.clear()
            await self._news.wait()
        return [self._waiting.popleft() for _ in range(min(TAKEN, len(self._waiting)))]


class Feed:
    """Follows one tenant from a position on, as long as it has readers. `running` is its loop.

    Readers are grouped by user. One group looks first; where everyone may see what it saw, and nothing else has
    happened, the others need not look for themselves.
    """

    def __init__(self, pages: EventPages, *, position: int, poll_seconds: Callable[[], float]) -> None:
        self._pages = pages
        self._poll_seconds = poll_seconds
        self._groups: dict[UUID, list[Reader]] = {}
        self._news = asyncio.Event()
        self._moved: set[UUID] = set()
        self._told_at = 0.0
        self._log = logger.get("events")
        self._stopping = False
        self.running: asyncio.Task[None] | None = None
        self.position = position

    @property
    def empty(self) -> bool:
        """Whether nobody reads it."""
        return not self._groups

    def start(self) -> None:
        """Reads until `stop`, in a context of its own: it serves others too than whoever came first."""
        self.running = asyncio.create_task(self._run(), context=contextvars.Context())

    def stop(self) -> None:
        """Ends the reading after the round that is under way."""
        self._stopping = True
        self._news.set()

    def add(self, reader: Reader) -> int:
        """From now on the reader is offered what comes after the position that is answered."""
        self._groups.setdefault(reader.ctx.user_id, []).append(reader)
        return self.position

    def remove(self, reader: Reader) -> None:
        """Offers it nothing more."""
        group = self._groups.get(reader.ctx.user_id, [])
        if reader in group:
            group.remove(reader)
        if not group:
            self._groups.pop(reader.ctx.user_id, None)

    def wake(self, moved: UUID | None = None) -> None:
        """There is something new: an event, or a task or batch that has come further."""
        if moved is None or not self._moved:
            self._news.set()
        if moved is not None and len(self._moved) < MOVED:
            self._moved.add(moved)

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                await self._wait()
                await self._pass_on_events()
                if self._moved and self._progress_due() <= 0:
                    await self._pass_on_progress()
                failures = 0
            except AppError as error:
                failures += 1
                self._log.warning("events wait", code=error.code.value)
            except Exception:  # noqa: BLE001 - logged; without this loop the tenant's readers would hear nothing more
                failures += 1
                self._log.exception("events wait")
            await asyncio.sleep(backoff(failures, base=0.2, cap=3.0) if failures else BREATH_SECONDS)

    async def _wait(self) -> None:
        """Until news, until progress may be told again, or until it is time to look without news."""
        seconds = max(0.0, self._progress_due()) if self._moved else self._poll_seconds()
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass  # the look that finds what no broadcast told
        self._news.clear()

    def _progress_due(self) -> float:
        return self._told_at + PROGRESS_SECONDS - time.monotonic()

    async def _pass_on_events(self) -> None:
        """Reads until nothing is left, a page at a time."""
        while True:
            await self._let_catch_up()
            lead = next(iter(self._groups), None)
            if lead is None:
                return
            page = await self._pages.page(self._ctx(lead), after=self.position)
            batches = {lead: page.messages}
            if page.shared_rows == page.upto - self.position:
                batches |= dict.fromkeys(self._groups, page.messages)
            shared = {message.position: message for message in page.messages if message.shared}
            # Whoever comes meanwhile counts too: it was promised everything behind `position`.
            while missing := self._groups.keys() - batches.keys():
                user = missing.pop()
                own = await self._pages.page(self._ctx(user), after=self.position, upto=page.upto)
                batches[user] = [shared.get(message.position, message) for message in own.messages]
            self._offer(batches)
            self.position = page.upto
            if page.upto >= page.newest:
                return

    async def _pass_on_progress(self) -> None:
        moved, self._moved = self._moved, set()
        self._told_at = time.monotonic()
        everyones: list[Message] = []
        for number, user in enumerate(list(self._groups)):
            own: list[Message] = []
            if moved and user in self._groups:
                own, shared = await self._pages.progress(self._ctx(user), moved)
                if number == 0:
                    # What everyone may see isn't looked at again for the others.
                    everyones, moved = [message for message in own if message.shared], moved - shared
                    own = [message for message in own if not message.shared]
            self._offer({user: everyones + own})

    async def _let_catch_up(self) -> None:
        """Waits until every reader has room for a page, but hardly longer than a second."""
        for _ in range(PACES):
            if all(reader.room >= PAGE for group in self._groups.values() for reader in group):
                return
            await asyncio.sleep(PACE_SECONDS)

    def _offer(self, batches: dict[UUID, list[Message]]) -> None:
        for user, messages in batches.items():
            for reader in self._groups.get(user, ()):
                reader.offer(messages)

    def _ctx(self, user: UUID) -> Context:
        return self._groups[user][0].ctx


def _too_slow() -> AppError:
    return AppError(
        Code.EVENTS_TOO_SLOW, "Events came faster than they were read; connect again with last_event_id and go on."
    )
