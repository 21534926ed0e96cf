"""What the statements on tasks share: their columns, who sees them, how they are narrowed, and what a row means."""

from typing import Any

import asyncpg
import msgspec

from internal.entities.tasks import Attempt, Outcome, Queue, Task, TaskFilter, TaskStatus
from pkg.ctxutil import Role

TASK = (
    "select t.tenant_id, t.id, t.kind, t.version, t.queue, t.priority, t.status, t.stage, t.progress, t.user_id,"
    " t.role, t.request_id, t.trace_id, t.document_id, t.content_id, t.payload, t.result, t.error_code,"
    " t.error_message, t.attempts, t.retry_count, t.max_retries, t.lost_leases,"
    " t.cancel_requested_at is not null as cancel_requested, t.due_at, clock_timestamp() as read_at, t.created_at,"
    " t.started_at, t.finished_at, t.size"
    " from tasks t"
)
# $1 is the tenant and $2 the user in each statement that uses this. The policy of the application's role says the same.
VISIBLE = (
    " where t.tenant_id = $1 and (t.user_id = $2 or exists (select 1 from documents d where d.tenant_id = $1"
    " and d.id = t.document_id and (d.visibility = 'tenant' or d.owner_id = $2)))"
)

# What a TaskFilter says, after VISIBLE; `conditions` gives the parameters.
NARROWED = (
    " and ($3::text[] is null or t.status = any($3)) and ($4::text is null or t.queue = $4)"
    " and ($5::text is null or t.kind = $5) and ($6::text is null or t.error_code = $6)"
    " and ($7::uuid[] is null or t.document_id = any($7)) and ($8::uuid[] is null or t.id = any($8))"
    " and ($9::timestamptz is null or t.finished_at >= $9) and ($10::timestamptz is null or t.finished_at < $10)"
)

# A task that begins anew, with all its tries.
ANEW = (
    " set status = 'queued', stage = 'queued', progress = 0, retry_count = 0, lost_leases = 0, error_code = null,"
    " error_message = null, result = null, dispatched_at = null, cancel_requested_at = null, finished_at = null,"
    " due_at = clock_timestamp()"
)


def conditions(narrow: TaskFilter) -> tuple[object, ...]:
    """The parameters $3 to $10 of NARROWED."""
    return (
        None if narrow.statuses is None else [status.value for status in narrow.statuses],
        narrow.queue and narrow.queue.value,
        narrow.kind,
        narrow.error_code,
        narrow.document_ids,
        narrow.ids,
        narrow.ended_after,
        narrow.ended_before,
    )


def task_of(row: asyncpg.Record) -> Task:
    """A row of TASK."""
    fields: dict[str, Any] = dict(row)
    fields["queue"] = Queue(row["queue"])
    fields["status"] = TaskStatus(row["status"])
    fields["role"] = Role(row["role"])
    fields["payload"] = msgspec.json.decode(row["payload"])
    fields["result"] = None if row["result"] is None else msgspec.json.decode(row["result"])
    return Task(**fields)


def attempt_of(row: asyncpg.Record) -> Attempt:
    """A row with an attempt's columns."""
    fields: dict[str, Any] = dict(row)
    fields["outcome"] = None if row["outcome"] is None else Outcome(row["outcome"])
    return Attempt(**fields)
