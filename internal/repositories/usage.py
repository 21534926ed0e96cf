"""SQL of the ledger of usage."""

from datetime import datetime

import asyncpg

from internal.entities.ids import new_id
from internal.entities.usage import Grouping, NewUsage, Storage, UsageSum
from internal.repositories.rows import sure
from pkg.ctxutil import Context


class UsageRepository:
    """Entries of one tenant. They are added and summed, never changed."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(self, new: NewUsage) -> None:
        """Writes what the context's user is charged with."""
        await self._conn.execute(
            "insert into usage_entries (tenant_id, id, user_id, purpose, model, source_id, prompt_tokens,"
            " completion_tokens, cost_usd, estimated) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            self._ctx.tenant_id,
            new_id(),
            new.user_id or self._ctx.user_id,
            new.purpose.value,
            new.model,
            new.source_id,
            new.usage.prompt_tokens,
            new.usage.completion_tokens,
            new.usage.cost_usd,
            new.usage.estimated,
        )

    async def sums(self, grouping: Grouping, *, since: datetime, until: datetime) -> list[UsageSum]:
        """Of all users of the tenant, `since` inclusive; ordered by key."""
        rows = await self._conn.fetch(
            "select case $2 when 'day' then to_char(e.created_at at time zone 'UTC', 'YYYY-MM-DD')"
            " when 'user' then e.user_id::text when 'model' then e.model else e.purpose end as key,"
            " count(*) as requests, sum(e.prompt_tokens)::bigint as prompt_tokens,"
            " sum(e.completion_tokens)::bigint as completion_tokens, sum(e.cost_usd) as cost_usd,"
            " bool_or(e.estimated) as estimated from usage_entries e"
            " where e.tenant_id = $1 and e.created_at >= $3 and e.created_at < $4 group by 1 order by 1",
            self._ctx.tenant_id,
            grouping.value,
            since,
            until,
        )
        return [UsageSum(**row) for row in rows]

    async def storage(self) -> Storage:
        """What the tenant keeps at the moment."""
        row = sure(
            await self._conn.fetchrow(
                "select count(*) as files, coalesce(sum(c.size), 0)::bigint as bytes from contents c"
                " where c.tenant_id = $1",
                self._ctx.tenant_id,
            )
        )
        return Storage(row["files"], row["bytes"])
