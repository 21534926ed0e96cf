"""SQL of what readers are told: events and the progress of tasks, as far as the context's user may see them."""

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.events import KEPT, EventPositions, StoredEvent, TaskProgress
from internal.repositories.rows import sure
from pkg.ctxutil import Context

SURELY_KEPT = KEPT - timedelta(hours=1)
"""What is older may go while it is being read."""

# $1 is the tenant and $2 the user. The policy of the application's role says the same.
EVENTS = (
    "select o.position, o.kind, o.payload, o.created_at, t.progress,"
    " case when t.error_code = o.payload ->> 'error_code' then t.error_message end as error_message,"
    " coalesce(o.payload ->> 'visibility' = 'tenant', false) or coalesce(d.visibility = 'tenant', false) as shared"
    " from outbox o"
    " left join tasks t on t.tenant_id = $1 and t.id = (o.payload ->> 'task_id')::uuid"
    " left join documents d on d.tenant_id = $1 and d.id = (o.payload ->> 'document_id')::uuid"
    " left join batches b on b.tenant_id = $1 and b.id = (o.payload ->> 'batch_id')::uuid"
    " where o.tenant_id = $1 and (o.payload ->> 'visibility' = 'tenant' or t.user_id = $2"
    " or d.visibility = 'tenant' or d.owner_id = $2 or b.user_id = $2)"
)


class NoticeRepository:
    """Reads the outbox and the ledger for those who follow a tenant's events."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def positions(self) -> EventPositions:
        """Where the tenant's events begin and end, those that the user may not see included."""
        row = sure(await self._conn.fetchrow("select oldest, newest from event_positions_v1($1)", SURELY_KEPT))
        return EventPositions(row["oldest"], row["newest"])

    async def events(self, *, after: int, upto: int) -> list[StoredEvent]:
        """Events with a position behind `after` and no further than `upto`, in order."""
        rows = await self._conn.fetch(
            EVENTS + " and o.position > $3 and o.position <= $4 order by o.position",
            self._ctx.tenant_id,
            self._ctx.user_id,
            after,
            upto,
        )
        return [StoredEvent(**{**row, "payload": msgspec.json.decode(row["payload"])}) for row in rows]

    async def progress(self, task_ids: Iterable[UUID]) -> list[TaskProgress]:
        """How far these tasks are; those that the user may not see are left out."""
        rows = await self._conn.fetch(
            "select t.id as task_id, t.kind, t.status = 'running' as running, t.stage, t.progress, t.document_id,"
            " coalesce(d.visibility = 'tenant', false) as shared from tasks t"
            " left join documents d on d.tenant_id = $1 and d.id = t.document_id"
            " where t.tenant_id = $1 and (t.user_id = $2 or d.visibility = 'tenant' or d.owner_id = $2)"
            " and t.id = any($3)",
            self._ctx.tenant_id,
            self._ctx.user_id,
            list(task_ids),
        )
        return [TaskProgress(**row) for row in rows]
