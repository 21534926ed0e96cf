"""Reading events and progress from PostgreSQL as one reader may see them, encoded once for all who get them."""

import asyncio
from collections.abc import Iterable
from uuid import UUID

import msgspec

from internal.entities.events import EventPositions, Notice
from internal.repositories.store import Store
from internal.services.notices import batch_notice, notice_of, progress_notice
from pkg.ctxutil import Context

PAGE = 250
"""Positions looked at in one transaction."""
TURNS = 2
"""Transactions at a time, so that those who listen leave connections for those who ask."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A notice as JSON. Without a position it is told once and not again."""

    body: bytes
    position: int | None
    shared: bool


class Page(msgspec.Struct, frozen=True):
    """What a reader may see of the positions up to `upto`; the tenant's last one is `newest`.

    `shared_rows` counts what everyone of the tenant may see, events of which nobody is told included.
    """

    messages: list[Message]
    upto: int
    newest: int
    shared_rows: int


class EventPages:
    """One reader's view at a time. Raises DATABASE_UNAVAILABLE."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(TURNS)

    async def positions(self, ctx: Context) -> EventPositions:
        """Where the tenant's events begin and end."""
        async with self._turns, self._store.tenant(ctx) as tx:
            return await tx.notices.positions()

    async def page(self, ctx: Context, *, after: int, upto: int | None = None) -> Page:
        """What follows position `after`: up to `upto`, or as far as there is something, at most 250 positions."""
        async with self._turns, self._store.tenant(ctx) as tx:
            newest = (await tx.notices.positions()).newest if upto is None else upto
            end = max(after, min(newest, after + PAGE))
            events = await tx.notices.events(after=after, upto=end) if end > after else []
        messages = [
            encoded(notice, position=event.position, shared=event.shared)
            for event in events
            if (notice := notice_of(event)) is not None
        ]
        return Page(messages, end, newest, sum(event.shared for event in events))

    async def progress(self, ctx: Context, moved: Iterable[UUID]) -> tuple[list[Message], set[UUID]]:
        """News of those tasks and batches that run and may be seen, and the tasks that all of the tenant may see."""
        ids = list(moved)
        async with self._turns, self._store.tenant(ctx) as tx:
            found = await tx.notices.progress(ids)
            batches = await tx.batches.unfinished(ids)
        messages = [encoded(progress_notice(item), position=None, shared=item.shared) for item in found if item.running]
        messages += [encoded(batch_notice(item), position=None, shared=False) for item in batches]
        return messages, {item.task_id for item in found if item.shared}


def encoded(notice: Notice, *, position: int | None, shared: bool = True) -> Message:
    """The notice as all its readers get it."""
    return Message(body=msgspec.json.encode(notice), position=position, shared=shared)
