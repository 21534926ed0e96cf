"""Following a tenant's events: who may, from where, and until when."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from internal.entities.events import Notice
from internal.repositories.broadcasts import Listener
from internal.repositories.store import Store
from internal.services.authentication import Authenticator
from internal.services.event_feeds import ALONE_SECONDS, POLL_SECONDS, Feed, Reader
from internal.services.event_pages import EventPages, Message, encoded
from pkg import logger
from pkg.apperr import TRANSIENT, AppError, Code
from pkg.ctxutil import Context

CHECK_SECONDS = 3.0
"""A revoked credential's readers are out within 5 s."""
ROOM_SECONDS, CLOSE_SECONDS = 10.0, 5.0


class ReaderLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Readers that one server takes: of a key or signed-in user, and of a tenant."""

    per_subject: int = 50
    per_tenant: int = 500


class EventService:
    """Hands events to their readers: first what they missed, then what happens, without a gap or a repetition."""

    def __init__(self, store: Store, listener: Listener, authenticator: Authenticator, limits: ReaderLimits) -> None:
        self._pages = EventPages(store)
        self._listener = listener
        self._authenticator = authenticator
        self._limits = limits
        self._feeds: dict[UUID, Feed] = {}
        self._readers: set[Reader] = set()
        self._stopping = False
        self._running: list[asyncio.Task[None]] = []
        self._log = logger.get("events")

    @property
    def readers(self) -> int:
        """How many read at the moment."""
        return len(self._readers)

    def start(self) -> None:
        """Begins to listen, and to look after credentials."""
        self._running = [asyncio.create_task(self._listener.run(self._heard)), asyncio.create_task(self._look_after())]

    def stop(self) -> None:
        """Ends every stream with SERVER_STOPPING and lets no new one begin."""
        self._stopping = True
        for reader in self._readers:
            reader.end(_stopping())

    async def close(self) -> None:
        """Ends what `start` began."""
        for feed in self._feeds.values():
            feed.stop()
        for task in self._running:
            task.cancel()
        tasks = [*self._running, *(feed.running for feed in self._feeds.values() if feed.running)]
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        await self._listener.close()

    async def admit(self, ctx: Context, credential: str) -> Reader:
        """A reader for `messages`. Raises AUTH_INVALID_TOKEN, EVENTS_TOO_MANY_READERS.

        One who comes while the server stops is told so like the others, as the first message.
        """
        principal = await self._authenticator.authenticate(credential)
        reader = Reader(ctx, credential, principal.subject)
        self._check_room(reader)
        return reader

    async def messages(self, reader: Reader, after: int | None) -> AsyncGenerator[list[Message]]:
        """Batches of messages, until the reader is ended: then it raises why.

        The first message says where the stream begins: `ready`, or `reset` where not everything behind `after` can be
        read any more. A reader joins the live feed before its last look at what it missed, so nothing falls between.
        """
        if self._stopping:
            raise _stopping()
        self._check_room(reader)
        self._readers.add(reader)
        try:
            position = await self._begin(reader.ctx, after)
            joined = position is None
            if position is None:
                position = await self._join(reader)
            yield [_marker("reset" if joined and after is not None else "ready", position)]
            caught_up = joined
            while not caught_up:
                reader.check()
                page = await self._pages.page(reader.ctx, after=position)
                position = page.upto
                if page.messages:
                    yield page.messages
                if position < page.newest:
                    continue
                caught_up = joined
                if not joined:
                    await self._join(reader)
                    joined = True
            while True:
                fresh = [item for item in await reader.take() if item.position is None or item.position > position]
                if fresh:
                    yield fresh
        finally:
            self._leave(reader)

    async def _begin(self, ctx: Context, after: int | None) -> int | None:
        """The position to go on from; None for a reader that begins with what happens now."""
        if after is None or not (await self._pages.positions(ctx)).reach(after):
            return None
        return after

    async def _join(self, reader: Reader) -> int:
        """Puts the reader into its tenant's feed; answers the position after which it is offered everything."""
        tenant_id = reader.ctx.tenant_id
        if tenant_id not in self._feeds:
            newest = (await self._pages.positions(reader.ctx)).newest
            # Another reader may have been faster.
            if tenant_id not in self._feeds:
                feed = self._feeds[tenant_id] = Feed(self._pages, position=newest, poll_seconds=self._poll_seconds)
                feed.start()
                self._listener.follow(tenant_id)
        return self._feeds[tenant_id].add(reader)

    def _leave(self, reader: Reader) -> None:
        self._readers.discard(reader)
        tenant_id = reader.ctx.tenant_id
        feed = self._feeds.get(tenant_id)
        if feed is None:
            return
        feed.remove(reader)
        if feed.empty:
            feed.stop()
            del self._feeds[tenant_id]
            self._listener.unfollow(tenant_id)

    def _poll_seconds(self) -> float:
        return POLL_SECONDS if self._listener.connected else ALONE_SECONDS

    def _heard(self, tenant_id: UUID, moved: UUID | None) -> None:
        feed = self._feeds.get(tenant_id)
        if feed is not None:
            feed.wake(moved)

    def _check_room(self, reader: Reader) -> None:
        """Raises EVENTS_TOO_MANY_READERS."""
        readers = Counter(item.subject for item in self._readers if item.ctx.tenant_id == reader.ctx.tenant_id)
        if readers[reader.subject] >= self._limits.per_subject or readers.total() >= self._limits.per_tenant:
            raise AppError(
                Code.EVENTS_TOO_MANY_READERS,
                f"Too many connections follow events: {self._limits.per_subject} of one key or person may, and"
                f" {self._limits.per_tenant} of a tenant; close one of them.",
                retry_after=ROOM_SECONDS,
            )

    async def _look_after(self) -> None:
        """Ends readers whose credential has ended."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for credential in {reader.credential for reader in self._readers}:
                try:
                    await self._check(credential)
                except Exception:  # noqa: BLE001 - logged; the others are looked after all the same
                    self._log.exception("a reader's credential was not checked")

    async def _check(self, credential: str) -> None:
        """Asks the database whether the credential is good for what it was good for. While it is away nothing is."""
        why, role = None, None
        try:
            role = (await self._authenticator.verify(credential)).role
        except AppError as error:
            if error.code in TRANSIENT:
                return  # nor is anything read for the reader until the database is back
            why = error
        for reader in self._readers:
            if reader.credential == credential and reader.ctx.role is not role:
                reader.end(why or _changed())


def _marker(kind: str, position: int) -> Message:
    notice = Notice(type=kind, id=position, created_at=datetime.now(UTC), data={})
    return encoded(notice, position=position)


def _changed() -> AppError:
    return AppError(Code.AUTH_INVALID_TOKEN, "Your role has changed; connect again.")


def _stopping() -> AppError:
    return AppError(Code.SERVER_STOPPING, "This server stops; connect again with last_event_id.", retry_after=1)
