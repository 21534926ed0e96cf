"""SQL of a tenant's room in the queues: how much it may still add, and when there will be more."""

import asyncpg

from internal.entities.tasks import Queue, TaskPolicy
from internal.entities.waiting import room_seconds
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

CLOSE = 100
"""Uploads of one tenant that may be between their count and their commit at the same moment."""

LATEST_EVENTS = 500

OF_USER = (
    "select count(*) from (select 1 from tasks t where t.tenant_id = $1 and t.user_id = $2 and t.queue = $3"
    " and t.status in ('queued', 'running') limit $4) counted"
)


class RoomRepository:
    """Counts of the context's tenant's unfinished tasks, the invisible ones too, but for the operator's own."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context, policy: TaskPolicy) -> None:
        self._conn = conn
        self._ctx = ctx
        self._policy = policy

    async def require(self) -> None:
        """Raises QUEUE_FULL at the tenant's cap, with the time when its tasks of late say that there will be room.

        Close to the cap uploads take turns, each until its commit, so that those at the same moment don't exceed it.
        """
        cap = self._policy.queue_depth
        count = await self.unfinished()
        if cap - CLOSE <= count < cap:
            await self._take_turn()
            count = await self.unfinished()
        if count >= cap:
            raise AppError(
                Code.QUEUE_FULL,
                f"{cap} tasks of this tenant are waiting already; try again when some are done.",
                retry_after=await self._room_after(),
            )

    async def left(self) -> int:
        """How many tasks this transaction may add, 0 at the tenant's cap; others close to it wait for its commit.

        No more than up to where uploads begin to take turns: some that were below it may be under way.
        """
        await self._take_turn()
        count = await self.unfinished()
        close = self._policy.queue_depth - CLOSE
        return (close if count < close else self._policy.queue_depth) - count

    async def unfinished(self) -> int:
        """How many of the tenant's tasks are queued or running, the invisible ones too; counts up to the cap."""
        return sure(await self._conn.fetchval("select unfinished_v2($1)", self._policy.queue_depth))

    async def unfinished_of_user(self, queue: Queue, limit: int) -> int:
        """How many of the context's user's tasks in a queue are queued or running; counts up to `limit`."""
        return sure(
            await self._conn.fetchval(
                OF_USER,
                self._ctx.tenant_id,
                self._ctx.user_id,
                queue.value,
                limit,
            )
        )

    async def _take_turn(self) -> None:
        await self._conn.execute(
            "select pg_advisory_xact_lock(hashtextextended('room:' || $1::text, 0))", str(self._ctx.tenant_id)
        )

    async def _room_after(self) -> float:
        """Seconds until there is room, as the tenant's last events tell; work that mends or removes may have filled it
        beyond the cap."""
        cap = self._policy.queue_depth
        excess = sure(await self._conn.fetchval("select unfinished_v2($1)", 2 * cap)) - cap
        row = sure(
            await self._conn.fetchrow(
                "select ended, seconds from pace_v2($1)",
                LATEST_EVENTS,
            )
        )
        return room_seconds(excess, ended=row["ended"], seconds=row["seconds"])
