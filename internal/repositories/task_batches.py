"""SQL that acts on many tasks at once, a bounded number a statement, so that no transaction grows with the backlog."""

import asyncpg
import msgspec

from internal.entities.tasks import CANCELLABLE, RETRYABLE, TaskFilter, TaskStatus
from internal.repositories.rows import sure
from internal.repositories.task_rows import ANEW, NARROWED, VISIBLE, conditions
from pkg.ctxutil import Context

CHOSEN = "with chosen as (select t.id, t.status from tasks t" + VISIBLE + NARROWED  # noqa: S608 - constants
LOCKED = " order by t.id limit $11 for update of t),"
TOUCHED = " from chosen c where t.tenant_id = $1 and t.id = c.id"
ENDED = (
    TOUCHED + " returning t.id, t.kind, t.status, t.document_id, t.content_id, t.error_code,"
    " gen_random_uuid() as event_id),"
)
# The same shape as TaskFinished in internal/entities/events.py.
TOLD = (
    " event as (insert into outbox (tenant_id, id, kind, payload)"
    " select $1, d.event_id, 'task.finished', jsonb_build_object("
    "'version', 1, 'task_id', d.id, 'task_kind', d.kind, 'status', d.status, 'document_id', d.document_id,"
    " 'content_id', d.content_id, 'error_code', d.error_code) from done d where d.status <> 'running')"
    " select count(*) from done, pg_notify('dreamhub_outbox', '')"
)
# The shape of TaskRequeued.
RETRY = (
    CHOSEN + LOCKED + " done as (update tasks t" + ANEW + TOUCHED  # noqa: S608 - constants
    + " returning t.id, t.kind, t.document_id, gen_random_uuid() as event_id),"
    " event as (insert into outbox (tenant_id, id, kind, payload)"
    " select $1, d.event_id, 'task.requeued', jsonb_build_object("
    "'version', 1, 'task_id', d.id, 'task_kind', d.kind, 'document_id', d.document_id) from done d)"
    " select count(*) from done, pg_notify('dreamhub_tasks', '') as tasks, pg_notify('dreamhub_outbox', '') as events"
)  # fmt: skip
CANCEL = (
    CHOSEN + " and t.kind not in ('purge_content', 'purge_uploads', 'purge_batches')"  # noqa: S608 - constants
    " and ($12 or t.user_id = $2) and (t.status = 'queued' or t.cancel_requested_at is null)" + LOCKED
    + " done as (update tasks t set cancel_requested_at = clock_timestamp(),"
    " status = case c.status when 'queued' then 'cancelled' else t.status end,"
    " stage = case c.status when 'queued' then 'cancelled' else t.stage end,"
    " dispatched_at = case c.status when 'queued' then null else t.dispatched_at end,"
    " finished_at = case c.status when 'queued' then clock_timestamp() end" + ENDED + TOLD
)  # fmt: skip
DISCARD = CHOSEN + LOCKED + " done as (update tasks t set status = 'failed', stage = 'failed'" + ENDED + TOLD  # noqa: S608 - constants


class TaskBatchRepository:
    """Tasks that the context's user may see. What was acted on no longer fits, so call until nothing does."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def retry(self, narrow: TaskFilter, limit: int) -> int:
        """Queues up to `limit` tasks anew, the oldest first; answers how many. Those that can't be are passed over."""
        return sure(
            await self._conn.fetchval(
                RETRY,
                self._ctx.tenant_id,
                self._ctx.user_id,
                *conditions(_only(narrow, RETRYABLE)),
                limit,
            )
        )

    async def cancel(self, narrow: TaskFilter, limit: int, *, of_others: bool) -> int:
        """Cancels queued tasks and asks the workers of running ones; removals of deleted documents go on.

        Without `of_others` only those that the context's user began.
        """
        return sure(
            await self._conn.fetchval(
                CANCEL,
                self._ctx.tenant_id,
                self._ctx.user_id,
                *conditions(_only(narrow, CANCELLABLE)),
                limit,
                of_others,
            )
        )

    async def discard(self, narrow: TaskFilter, limit: int) -> int:
        """Gives up to `limit` dead letters up for good: they have failed, with their last error."""
        return sure(
            await self._conn.fetchval(
                DISCARD,
                self._ctx.tenant_id,
                self._ctx.user_id,
                *conditions(_only(narrow, frozenset({TaskStatus.DEAD}))),
                limit,
            )
        )


def _only(narrow: TaskFilter, allowed: frozenset[TaskStatus]) -> TaskFilter:
    """Those that the transition is open to."""
    return msgspec.structs.replace(narrow, statuses=allowed if narrow.statuses is None else narrow.statuses & allowed)
