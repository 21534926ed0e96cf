"""SQL of a task's standing among all that wait."""

from uuid import UUID

import asyncpg

from internal.entities.waiting import SIZE_BOUNDS, Pace, Standing


class StandingRepository:
    """Of the context's tenant's tasks; other tenants' are in three counts: turns before, running, in urgent queues."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def find(self, task_id: UUID, pace: Pace) -> Standing | None:
        """What comes before a queued task; None when it isn't queued any more."""
        row = await self._conn.fetchrow(
            "select own, own_seconds, others, running, urgent from standing_v2($1, $2, $3, $4, $5, $6)",
            task_id,
            [kind for kind, _class in pace.services],
            [size for _kind, size in pace.services],
            list(pace.services.values()),
            list(SIZE_BOUNDS),
            pace.usual or 0.0,
        )
        return None if row is None else Standing(**row)
