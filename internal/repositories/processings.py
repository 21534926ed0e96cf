"""SQL of processing versions for the operator, as the schema's owner: across tenants, ids and figures only."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from internal.entities.ids import new_id
from internal.entities.processing import ProcessingState, StoredComparison
from internal.entities.tasks import Queue, TaskKind
from internal.repositories.processing import STATE
from internal.repositories.rows import sure

LOCK = STATE + " for update"
COMPARISONS = (
    "select s.tenant_id, s.content_id, c.media_type, s.seconds, s.error_code, s.chunks_before, s.chunks_after,"
    " s.tokens_before, s.tokens_after, s.text_kept, s.text_added, s.chunks_same, s.vectors_mean, s.vectors_least"
    " from shadow_comparisons s join contents c on c.tenant_id = s.tenant_id and c.id = s.content_id"
    " where s.version = $1 and s.against = $2 order by s.compared_at"
)


class QueuedTask(NamedTuple):
    """A task and whose it is."""

    tenant_id: UUID
    task_id: UUID


class ProcessingsRepository:
    """One transaction of the operator's. The state stays locked until it ends."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def state(self) -> ProcessingState:
        """Which version reads, and which is tried."""
        return ProcessingState(**sure(await self._conn.fetchrow(LOCK)))

    async def set(self, state: ProcessingState) -> None:
        """Puts another state in its place."""
        await self._conn.execute(
            "update processing set current = $1, previous = $2, promoted_at = $3, candidate = $4, share = $5",
            state.current,
            state.previous,
            state.promoted_at,
            state.candidate,
            state.share,
        )

    async def now(self) -> datetime:
        """The database's time, by which everything ends."""
        return sure(await self._conn.fetchval("select now()"))

    async def queue(self, kind: TaskKind, queue: Queue, max_retries: int) -> list[QueuedTask]:
        """A task for each tenant that has anything, in nobody's name."""
        tenants = await self._conn.fetch(
            "select t.id from tenants t where exists (select 1 from contents c where c.tenant_id = t.id)"
        )
        queued = [QueuedTask(row["id"], new_id()) for row in tenants]
        await self._conn.executemany(
            "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries)"
            " values ($1, $2, $3, 1, $4, $1, 'member', '', '', $5)",
            [(item.tenant_id, item.task_id, kind.value, queue.value, max_retries) for item in queued],
        )
        await self._conn.execute("select pg_notify('dreamhub_tasks', '')")
        return queued

    async def followed(self, queued: list[QueuedTask]) -> tuple[int, int]:
        """How many of these tasks still wait or run, but for those of suspended tenants; how many ended in vain."""
        row = sure(
            await self._conn.fetchrow(
                "select count(*) filter (where t.status in ('queued', 'running') and o.status = 'active') as waiting,"
                " count(*) filter (where t.status in ('failed', 'dead', 'cancelled')) as failed"
                " from unnest($1::uuid[], $2::uuid[]) as q (tenant_id, task_id)"
                " join tasks t on t.tenant_id = q.tenant_id and t.id = q.task_id join tenants o on o.id = t.tenant_id",
                [item.tenant_id for item in queued],
                [item.task_id for item in queued],
            )
        )
        return row["waiting"], row["failed"]

    async def comparisons(self, version: str, against: str) -> list[StoredComparison]:
        """Every comparison of a version with another, the earliest first."""
        return [StoredComparison(**row) for row in await self._conn.fetch(COMPARISONS, version, against)]


@asynccontextmanager
async def processings(owner_dsn: str) -> AsyncGenerator[ProcessingsRepository]:
    """A transaction as the schema's owner; commits unless the block raises."""
    conn = await asyncpg.connect(owner_dsn)
    try:
        async with conn.transaction():
            yield ProcessingsRepository(conn)
    finally:
        await conn.close()
