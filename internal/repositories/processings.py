"""SQL of processing versions for the operator, as the schema's owner: across tenants, ids and figures only."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
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
    " where s.version = $1 order by s.compared_at"
)


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

    async def queue(self, kind: TaskKind, queue: Queue, max_retries: int) -> list[UUID]:
        """A task for each tenant that has anything, in nobody's name; answers their ids."""
        tenants = await self._conn.fetch(
            "select t.id from tenants t where exists (select 1 from contents c where c.tenant_id = t.id)"
        )
        ids = [new_id() for _ in tenants]
        await self._conn.executemany(
            "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries)"
            " values ($1, $2, $3, 1, $4, $1, 'member', '', '', $5)",
            [(row["id"], task, kind.value, queue.value, max_retries) for row, task in zip(tenants, ids, strict=True)],
        )
        await self._conn.execute("select pg_notify('dreamhub_tasks', '')")
        return ids

    async def unfinished(self, task_ids: list[UUID]) -> int:
        """How many of these tasks still wait or run."""
        return sure(
            await self._conn.fetchval(
                "select count(*) from tasks where id = any($1) and status in ('queued', 'running')", task_ids
            )
        )

    async def comparisons(self, version: str) -> list[StoredComparison]:
        """Every comparison of a version, the earliest first."""
        return [StoredComparison(**row) for row in await self._conn.fetch(COMPARISONS, version)]


@asynccontextmanager
async def processings(owner_dsn: str) -> AsyncGenerator[ProcessingsRepository]:
    """A transaction as the schema's owner; commits unless the block raises."""
    conn = await asyncpg.connect(owner_dsn)
    try:
        async with conn.transaction():
            yield ProcessingsRepository(conn)
    finally:
        await conn.close()
