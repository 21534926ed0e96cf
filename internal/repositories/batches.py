"""SQL of batches as their user sees them, and of the items that a server or worker settles one by one."""

from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.batches import Batch, BatchItem, BatchKind, BatchStatus, ItemState, NewBatch
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

# $1 is the tenant and $2 the user in each statement that uses this.
BATCH = (
    "select b.id, b.kind, b.task_id, b.error_code, b.error_message, b.created_at, s.status, s.total, s.waiting,"
    " s.running, s.succeeded, s.failed, s.dead, s.cancelled, s.refused, s.progress, s.finished_at"
    " from batches b cross join lateral own_batches_v1(array[b.id]) s where b.tenant_id = $1 and b.user_id = $2"
)


class BatchRepository:
    """Batches of the context's user."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def open_ones(self) -> int:
        """How many batches of the tenant are under way; others wait to ask."""
        return sure(await self._conn.fetchval("select open_batches_v1()"))

    async def add(self, new: NewBatch) -> None:
        """Adds a batch of the context's user."""
        await self._conn.execute(
            "insert into batches (tenant_id, id, user_id, kind, request, task_id, stored)"
            " values ($1, $3, $2, $4, $5::jsonb, $6, $7)",
            self._ctx.tenant_id,
            self._ctx.user_id,
            new.id,
            new.kind.value,
            msgspec.json.encode(new.request).decode(),
            new.task_id,
            new.stored,
        )

    async def complete(self, batch_id: UUID) -> None:
        """Every item is known."""
        await self._conn.execute(
            "update batches set planned_at = coalesce(planned_at, clock_timestamp()) where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            batch_id,
        )

    async def get(self, batch_id: UUID) -> Batch:
        """Raises BATCH_NOT_FOUND, for another's too."""
        row = await self._conn.fetchrow(BATCH + " and b.id = $3", self._ctx.tenant_id, self._ctx.user_id, batch_id)
        if row is None:
            raise AppError(Code.BATCH_NOT_FOUND, "There is no such batch.")
        return _batch(row)

    async def unfinished(self, batch_ids: list[UUID]) -> list[Batch]:
        """Those of these batches that aren't over."""
        rows = await self._conn.fetch(
            BATCH + " and b.id = any($3) and b.settled_at is null and s.finished_at is null",
            self._ctx.tenant_id,
            self._ctx.user_id,
            batch_ids,
        )
        return [_batch(row) for row in rows]

    async def items(self, batch_id: UUID, *, state: ItemState | None, after: int, limit: int) -> list[BatchItem]:
        """Up to `limit` items behind the ordinal `after`, in order."""
        rows = await self._conn.fetch(
            "select s.ordinal, s.state, coalesce(d.filename, i.filename) as filename,"
            " coalesce(d.metadata ->> 'folder', i.folder) as folder, i.document_id, i.task_id, i.duplicate,"
            " i.error_code, i.error_message from own_batch_items_v1($3, $4, $5, $6) s"
            " join batch_items i on i.tenant_id = $1 and i.batch_id = $3 and i.ordinal = s.ordinal"
            " left join documents d on d.tenant_id = $1 and d.id = i.document_id"
            " and (d.visibility = 'tenant' or d.owner_id = $2) order by s.ordinal",
            self._ctx.tenant_id,
            self._ctx.user_id,
            batch_id,
            None if state is None else [state.value],
            after,
            limit,
        )
        return [_item(row) for row in rows]

    async def tasks(self, batch_id: UUID, *, after: int, limit: int) -> list[tuple[int, UUID, bool]]:
        """Ordinal and task of items behind `after` that have one, and whether it was there before the batch."""
        rows = await self._conn.fetch(
            "select i.ordinal, i.task_id, i.duplicate from batch_items i where i.tenant_id = $1 and i.batch_id = $2"
            " and i.ordinal > $3 and i.handled and i.task_id is not null order by i.ordinal limit $4",
            self._ctx.tenant_id,
            batch_id,
            after,
            limit,
        )
        return [(row["ordinal"], row["task_id"], row["duplicate"]) for row in rows]

    async def cancel(self, batch_id: UUID) -> None:
        """Nothing more is begun for it. Waits for an item that is being settled at this moment."""
        await self._conn.execute(
            "update batches set cancelled_at = coalesce(cancelled_at, clock_timestamp())"
            " where tenant_id = $1 and user_id = $2 and id = $3",
            self._ctx.tenant_id,
            self._ctx.user_id,
            batch_id,
        )

    async def reopen(self, batch_id: UUID) -> None:
        """It isn't over any more: its end will be told again."""
        await self._conn.execute(
            "update batches set settled_at = null, error_code = null, error_message = null"
            " where tenant_id = $1 and user_id = $2 and id = $3",
            self._ctx.tenant_id,
            self._ctx.user_id,
            batch_id,
        )

    async def take(
        self, batch_id: UUID, ordinal: int, *, document_id: UUID | None, task_id: UUID, duplicate: bool = False
    ) -> None:
        """Settles an item: this task is at it. Raises TASK_FENCED when it was settled before."""
        done = await self._conn.fetchval(
            "insert into batch_items (tenant_id, batch_id, ordinal, handled, document_id, task_id, duplicate)"
            " values ($1, $2, $3, true, $4, $5, $6) on conflict (tenant_id, batch_id, ordinal) do update set"
            " handled = true, filename = null, folder = null, document_id = excluded.document_id,"
            " task_id = excluded.task_id, duplicate = excluded.duplicate where not batch_items.handled returning true",
            self._ctx.tenant_id,
            batch_id,
            ordinal,
            document_id,
            task_id,
            duplicate,
        )
        if not done:
            raise AppError(Code.TASK_FENCED, "Another worker has settled this item.")

    async def refuse(self, batch_id: UUID, ordinal: int, *, filename: str | None, code: Code, message: str) -> None:
        """Settles an item: nothing was begun, because of this. One that was settled before stays as it is."""
        await self._conn.execute(
            "insert into batch_items (tenant_id, batch_id, ordinal, handled, filename, error_code, error_message)"
            " values ($1, $2, $3, true, $4, $5, $6) on conflict (tenant_id, batch_id, ordinal) do update set"
            " handled = true, error_code = excluded.error_code, error_message = excluded.error_message"
            " where not batch_items.handled",
            self._ctx.tenant_id,
            batch_id,
            ordinal,
            filename,
            code.value,
            message,
        )

    async def list(self, *, limit: int, before: UUID | None) -> list[Batch]:
        """Up to `limit` batches, the newest first, older than `before`."""
        rows = await self._conn.fetch(
            BATCH + " and ($3::uuid is null or b.id < $3) order by b.id desc limit $4",
            self._ctx.tenant_id,
            self._ctx.user_id,
            before,
            limit,
        )
        return [_batch(row) for row in rows]


def _batch(row: asyncpg.Record) -> Batch:
    fields: dict[str, Any] = dict(row)
    fields["kind"] = BatchKind(row["kind"])
    fields["status"] = BatchStatus(row["status"])
    return Batch(**fields)


def _item(row: asyncpg.Record) -> BatchItem:
    fields: dict[str, Any] = dict(row)
    fields["state"] = ItemState(row["state"])
    return BatchItem(**fields)
