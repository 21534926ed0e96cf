"""The ledger across tenants: calls of functions that the migrations create, and nothing else."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.events import BatchMoved, PublishedEvent, TaskFinished
from internal.entities.ids import new_id
from internal.entities.tasks import Ending, Lease, Queue, QueueDepth, Task, TaskStatus, Wakeup, check_transition
from internal.repositories.rows import sure
from pkg.ctxutil import Role

POISON_AFTER = 3
JANITOR_BATCH = 5_000
EXPIRY_BATCH = 100


class LedgerRepository:
    """Dispatch, claims, sweeps and publication. Times are the database server's, durations are seconds."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def dispatch(self, queues: Sequence[Queue], *, window: int, per_tenant: int) -> dict[Queue, list[Wakeup]]:
        """Picks due tasks, fairly, until `window` of a queue lie in Redis, `per_tenant` of each tenant and weight."""
        rows = await self._conn.fetch(
            "select q.queue, d.task_id, d.number, d.turn from unnest($1::text[]) as q (queue),"
            " lateral dispatch_v3(q.queue, $2, $3) as d order by d.turn",
            [queue.value for queue in queues],
            window,
            per_tenant,
        )
        found: dict[Queue, list[Wakeup]] = {}
        for row in rows:
            found.setdefault(Queue(row["queue"]), []).append(Wakeup(row["task_id"], row["number"], row["turn"]))
        return found

    async def wake_relay(self) -> None:
        """Tells the relay at commit that there is something to dispatch or to publish."""
        await self._conn.execute("select pg_notify('dreamhub_tasks', '')")

    async def unclaimed(self, *, older_than: float, limit: int) -> dict[Queue, list[Wakeup]]:
        """Dispatched tasks that no worker has claimed for so long."""
        rows = await self._conn.fetch("select queue, task_id, number from unclaimed_v1($1, $2)", older_than, limit)
        return _by_queue(rows)

    async def redispatch(self, lost: Sequence[Wakeup]) -> dict[Queue, list[Wakeup]]:
        """Gives lost wake-ups a new number; those that were claimed meanwhile are left out."""
        rows = await self._conn.fetch(
            "select queue, task_id, number from redispatch_v1($1, $2)",
            [wakeup.task_id for wakeup in lost],
            [wakeup.number for wakeup in lost],
        )
        return _by_queue(rows)

    async def claim(
        self, delivered: Sequence[Wakeup], *, worker: str, lease_seconds: float, versions: Mapping[str, int]
    ) -> list[tuple[Lease, bool]]:
        """Leases on those of the delivered tasks that were free, each with whether it has a payload to read.

        `versions` maps each kind that the worker knows to the newest version that it understands; a task beyond
        them goes back to the queue untouched.
        """
        rows = await self._conn.fetch(
            "select * from claim_v3($1, $2, $3, $4, $5, $6)",
            [wakeup.task_id for wakeup in delivered],
            [wakeup.number for wakeup in delivered],
            worker,
            lease_seconds,
            list(versions),
            list(versions.values()),
        )
        return [(Lease(task=_claimed(row), fence=row["fence"], worker=worker), row["has_payload"]) for row in rows]

    async def end(self, endings: Sequence[tuple[Lease, Ending]]) -> set[tuple[UUID, int]]:
        """Gives leases back, for good or for another attempt, and tells the outbox.

        Answers (task id, fence) of those that were still held. One transaction: all are written down or none is.
        """
        for _lease, ending in endings:
            check_transition(TaskStatus.RUNNING, ending.status)
        rows = await self._conn.fetch(
            "select task_id, fence from end_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            [lease.task.tenant_id for lease, _ending in endings],
            [lease.task.id for lease, _ending in endings],
            [lease.fence for lease, _ending in endings],
            [ending.status.value for _lease, ending in endings],
            [ending.outcome.value for _lease, ending in endings],
            [None if ending.result is None else _json(ending.result) for _lease, ending in endings],
            [ending.error_code for _lease, ending in endings],
            [ending.error_message for _lease, ending in endings],
            [int(ending.used_try) for _lease, ending in endings],
            [ending.delay for _lease, ending in endings],
            [new_id() for _ in endings],
            [_json(_finished(lease.task, ending).payload()) for lease, ending in endings],
        )
        return {(row["task_id"], row["fence"]) for row in rows}

    async def sweep(self, *, grace: float) -> list[tuple[UUID, TaskStatus]]:
        """Takes expired leases away: each task's id, and whether it is queued again, dead or cancelled."""
        rows = await self._conn.fetch("select task_id, status from sweep_v2($1, $2)", POISON_AFTER, grace)
        return [(row["task_id"], TaskStatus(row["status"])) for row in rows]

    async def publish(self, limit: int) -> list[PublishedEvent]:
        """Events that are still to be handed on, with their positions; the same again until they are marked."""
        rows = await self._conn.fetch("select tenant_id, event_id, kind, event_position from publish_v1($1)", limit)
        return [
            PublishedEvent(
                tenant_id=row["tenant_id"], id=row["event_id"], kind=row["kind"], position=row["event_position"]
            )
            for row in rows
        ]

    async def mark_published(self, events: Sequence[PublishedEvent]) -> None:
        """Remembers that these were handed on."""
        await self._conn.fetchval(
            "select published_v1($1, $2)", [event.tenant_id for event in events], [event.id for event in events]
        )

    async def depth(self) -> list[QueueDepth]:
        """Counts of each queue that isn't empty."""
        rows = await self._conn.fetch("select queue, waiting, dispatched, running, oldest_seconds from depth_v1()")
        return [
            QueueDepth(
                queue=Queue(row["queue"]),
                waiting=row["waiting"],
                dispatched=row["dispatched"],
                running=row["running"],
                oldest_seconds=row["oldest_seconds"],
            )
            for row in rows
        ]

    async def forget(self, *, keys_after: timedelta, events_after: timedelta) -> tuple[int, int]:
        """Removes old idempotency keys and published events, a bounded number of each; answers how many."""
        row = sure(
            await self._conn.fetchrow(
                "select keys, events from janitor_v1($1, $2, $3)", keys_after, events_after, JANITOR_BATCH
            )
        )
        return row["keys"], row["events"]

    async def expire_dead(self, after: timedelta) -> int:
        """Gives up dead letters that are older, a bounded number of them; answers how many."""
        return sure(await self._conn.fetchval("select expire_dead_v2($1, $2)", after, JANITOR_BATCH))

    async def expire_uploads(self, *, max_retries: int) -> int:
        """Queues the removal of uploads whose time is over, one task a tenant; answers how many tasks."""
        ids = [new_id() for _ in range(EXPIRY_BATCH)]
        return sure(await self._conn.fetchval("select expire_uploads_v1($1, $2)", ids, max_retries))

    async def queue_sweeps(self, *, every: timedelta, max_retries: int) -> int:
        """Queues the comparison of objects with rows for tenants whose turn it is, one task each; answers how many."""
        ids = [new_id() for _ in range(EXPIRY_BATCH)]
        return sure(await self._conn.fetchval("select queue_sweeps_v1($1, $2, $3)", ids, every, max_retries))

    async def settle_batches(self, limit: int) -> list[BatchMoved]:
        """Looks at up to `limit` unfinished batches; those that have come further. The outbox is told of their ends."""
        rows = await self._conn.fetch("select tenant_id, batch_id from settle_batches_v1($1)", limit)
        return [BatchMoved(tenant_id=row["tenant_id"], batch_id=row["batch_id"]) for row in rows]

    async def expire_batches(self, *, batches: timedelta, archives: timedelta, max_retries: int) -> int:
        """Queues the removal of batches, or of archives alone, that ended so long ago; answers how many tasks."""
        ids = [new_id() for _ in range(EXPIRY_BATCH)]
        return sure(
            await self._conn.fetchval("select expire_batches_v1($1, $2, $3, $4)", ids, batches, archives, max_retries)
        )


def _by_queue(rows: Sequence[asyncpg.Record]) -> dict[Queue, list[Wakeup]]:
    found: dict[Queue, list[Wakeup]] = {}
    for row in rows:
        found.setdefault(Queue(row["queue"]), []).append(Wakeup(row["task_id"], row["number"]))
    return found


def _claimed(row: asyncpg.Record) -> Task:
    """A task that has just been claimed; its payload is read under its own tenant."""
    fields: dict[str, Any] = dict(row)
    del fields["fence"], fields["has_payload"]
    fields["id"] = fields.pop("task_id")
    fields["queue"] = Queue(row["queue"])
    fields["role"] = Role(row["role"])
    return Task(
        **fields,
        status=TaskStatus.RUNNING,
        payload={},
        result=None,
        error_code=None,
        error_message=None,
        cancel_requested=False,
        due_at=row["started_at"],
        read_at=row["started_at"],
        finished_at=None,
    )


def _finished(task: Task, ending: Ending) -> TaskFinished:
    return TaskFinished(
        task_id=task.id,
        task_kind=task.kind,
        status=ending.status.value,
        document_id=task.document_id,
        content_id=task.content_id,
        error_code=ending.error_code,
    )


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()
