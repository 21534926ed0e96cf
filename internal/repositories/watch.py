"""SQL of what is seen of the whole installation: counts and ids, through functions that the migrations create."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.events import AlertRaised
from internal.entities.watch import Change, Installation, Pressure, QueueLoad, WatchState
from internal.repositories.rows import sure

COUNTED = 100_000


class WatchRepository:
    """The relay's: one look at a time, whichever relay takes it. Durations are seconds."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def begin(self, *, every: float) -> tuple[WatchState, float] | None:
        """The state and the time; None when somebody has looked within `every`, or does so now."""
        row = await self._conn.fetchrow("select state, at from begin_watch_v1($1)", every)
        return None if row is None else (msgspec.json.decode(row["state"], type=WatchState), row["at"])

    async def finish(self, state: WatchState) -> None:
        """Leaves the state for the next look."""
        await self._conn.execute("select end_watch_v1($1)", msgspec.json.encode(state).decode())

    async def loads(self, seconds: float) -> list[QueueLoad]:
        """Every queue; what ended is counted for the last so many seconds."""
        rows = await self._conn.fetch(
            "select queue, due, later, running, oldest_seconds, ended from queue_loads_v1($1)", seconds
        )
        return [msgspec.convert(dict(row), QueueLoad) for row in rows]

    async def pressed(self, *, unfinished: int, dead: int, seconds: float) -> list[Pressure]:
        """Tenants with so many unfinished tasks, or so many dead letters of the last `seconds`."""
        rows = await self._conn.fetch(
            "select tenant_id, unfinished, dead from pressed_tenants_v2($1, $2, $3)", unfinished, dead, seconds
        )
        return [Pressure(**row) for row in rows]

    async def backlog(self) -> tuple[int, float, int]:
        """Events that wait to be handed on, how long the oldest does, and all dead letters."""
        row = sure(await self._conn.fetchrow("select events, oldest_seconds, dead from backlog_v1($1)", COUNTED))
        return row["events"], row["oldest_seconds"], row["dead"]

    async def tell(self, change: Change) -> int:
        """Tells whom the alert concerns, each once, or those who were told that it is over; answers how many."""
        event = AlertRaised(
            name=change.name, severity=change.severity, detail=change.detail, active=change.active
        ).payload()
        payload = msgspec.json.encode(event).decode()
        if not change.active:
            return sure(
                await self._conn.fetchval(
                    "select clear_alert_v1($1, $2, $3)", change.name, payload, _ids(change.tenants)
                )
            )
        return sure(
            await self._conn.fetchval(
                "select raise_alert_v2($1, $2, $3, $4, $5)",
                change.name,
                change.severity,
                payload,
                _ids(change.tenants),
                None if change.queues is None else [queue.value for queue in change.queues],
            )
        )


class InstallationRepository:
    """The server's: what relays and sweeps have found, of no tenant in particular."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def get(self) -> Installation:
        """As it was at the last look."""
        row = sure(
            await self._conn.fetchrow(
                "select state, seconds, objects_removed, objects_missing, oldest_sweep from watched_v1()"
            )
        )
        return Installation(
            last=msgspec.json.decode(row["state"], type=WatchState).last,
            seconds=row["seconds"],
            objects_removed=row["objects_removed"],
            objects_missing=row["objects_missing"],
            oldest_sweep=row["oldest_sweep"],
        )


def _ids(tenants: Sequence[UUID] | None) -> list[UUID] | None:
    return None if tenants is None else list(tenants)
