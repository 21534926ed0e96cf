"""SQL of the outbox: events are written by the transaction that made them true."""

import asyncpg
import msgspec

from internal.entities.events import Event
from internal.entities.ids import new_id
from pkg.ctxutil import Context

CHANNEL = "dreamhub_outbox"


class OutboxRepository:
    """Events of one tenant on their way out. The relay reads them through the ledger's functions."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(self, event: Event) -> None:
        """Writes an event and wakes the relay at commit."""
        await self._conn.execute(
            "with event as (insert into outbox (tenant_id, id, kind, payload) values ($1, $2, $3, $4::jsonb))"
            " select pg_notify('dreamhub_outbox', '')",
            self._ctx.tenant_id,
            new_id(),
            event.kind,
            msgspec.json.encode(event.payload()).decode(),
        )
