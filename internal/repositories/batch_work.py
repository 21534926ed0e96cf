"""SQL of a worker's part in batches: writing down what there is to do, and what of it is left."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.batches import BatchWork, PlannedItem
from internal.entities.documents import DocumentFilter
from internal.entities.tasks import TaskFilter
from internal.repositories.documents import LATEST_READING, NARROWED, VISIBLE, narrowing
from internal.repositories.task_rows import NARROWED as TASKS_NARROWED
from internal.repositories.task_rows import VISIBLE as TASKS_VISIBLE
from internal.repositories.task_rows import conditions
from pkg.apperr import Code
from pkg.ctxutil import Context

ONCE = " on conflict (tenant_id, batch_id, ordinal) do nothing"
PLAN_TASKS = (
    "insert into batch_items (tenant_id, batch_id, ordinal, document_id, task_id)"  # noqa: S608 - constants
    " select $1, $11, row_number() over (order by t.id) - 1, t.document_id, t.id from tasks t"
    + TASKS_VISIBLE + TASKS_NARROWED + " order by t.id limit $12" + ONCE
)  # fmt: skip
PLAN_DOCUMENTS = (
    "insert into batch_items (tenant_id, batch_id, ordinal, document_id)"  # noqa: S608 - constants
    " select $1, $8, row_number() over (order by d.id) - 1, d.id from documents d"
    + LATEST_READING + VISIBLE + NARROWED + " and ($9 or d.owner_id = $2) order by d.id limit $10" + ONCE
)  # fmt: skip


class BatchWorkRepository:
    """Batches of one tenant for the worker that holds their task."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def find(self, batch_id: UUID) -> BatchWork | None:
        """What is to be done; None when the batch is gone."""
        row = await self._conn.fetchrow(
            "select b.id, b.request, b.stored, b.planned_at is not null as planned,"
            " b.cancelled_at is not null as cancelled from batches b where b.tenant_id = $1 and b.id = $2",
            self._ctx.tenant_id,
            batch_id,
        )
        if row is None:
            return None
        fields: dict[str, Any] = dict(row)
        fields["request"] = msgspec.json.decode(row["request"])
        return BatchWork(**fields)

    async def hold(self, batch_id: UUID) -> bool:
        """Keeps the batch from being cancelled until the transaction ends; False when it is already, or gone."""
        held = await self._conn.fetchval(
            "select true from batches where tenant_id = $1 and id = $2 and cancelled_at is null for share",
            self._ctx.tenant_id,
            batch_id,
        )
        return held is not None

    async def plan(self, batch_id: UUID, items: Sequence[PlannedItem]) -> None:
        """Writes every item down; those with an error are settled with it. What is there already stays."""
        await self._conn.execute(
            "insert into batch_items (tenant_id, batch_id, ordinal, filename, folder, document_id, task_id, handled,"
            " error_code, error_message) select $1, $2, i.ordinal, i.filename, i.folder, i.document_id, i.task_id,"
            " i.error_code is not null, i.error_code, i.error_message"
            " from unnest($3::integer[], $4::text[], $5::text[], $6::uuid[], $7::uuid[], $8::text[], $9::text[])"
            " as i (ordinal, filename, folder, document_id, task_id, error_code, error_message)"
            " on conflict (tenant_id, batch_id, ordinal) do nothing",
            self._ctx.tenant_id,
            batch_id,
            [item.ordinal for item in items],
            [item.filename for item in items],
            [item.folder for item in items],
            [item.document_id for item in items],
            [item.task_id for item in items],
            [item.error_code for item in items],
            [item.error_message for item in items],
        )

    async def plan_tasks(self, batch_id: UUID, narrow: TaskFilter, limit: int) -> None:
        """Makes items of the tasks that fit and that the context's user may see, the oldest first."""
        await self._conn.execute(
            PLAN_TASKS,
            self._ctx.tenant_id,
            self._ctx.user_id,
            *conditions(narrow),
            batch_id,
            limit,
        )

    async def plan_documents(self, batch_id: UUID, narrow: DocumentFilter, limit: int, *, others: bool) -> None:
        """Makes items of the documents that fit: the context's user's own, with `others` all that they may see."""
        await self._conn.execute(
            PLAN_DOCUMENTS,
            self._ctx.tenant_id,
            self._ctx.user_id,
            *narrowing(narrow),
            batch_id,
            others,
            limit,
        )

    async def left(self, batch_id: UUID, limit: int) -> list[PlannedItem]:
        """Up to `limit` items that aren't settled, in order."""
        rows = await self._conn.fetch(
            "select i.ordinal, i.filename, i.folder, i.document_id, i.task_id from batch_items i"
            " where i.tenant_id = $1 and i.batch_id = $2 and not i.handled order by i.ordinal limit $3",
            self._ctx.tenant_id,
            batch_id,
            limit,
        )
        return [PlannedItem(**row) for row in rows]

    async def settle(self, batch_id: UUID, ordinals: list[int]) -> None:
        """These were done, as their tasks tell."""
        await self._conn.execute(
            "update batch_items set handled = true where tenant_id = $1 and batch_id = $2 and ordinal = any($3)",
            self._ctx.tenant_id,
            batch_id,
            ordinals,
        )

    async def fail(self, batch_id: UUID, code: Code, message: str) -> None:
        """The batch as a whole is at fault."""
        await self._conn.execute(
            "update batches set error_code = $3, error_message = $4 where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            batch_id,
            code.value,
            message,
        )

    async def forget_archive(self, batch_id: UUID) -> None:
        """Its object is gone."""
        await self._conn.execute(
            "update batches set stored = false where tenant_id = $1 and id = $2", self._ctx.tenant_id, batch_id
        )

    async def archives(self, ended: timedelta, limit: int) -> list[UUID]:
        """Batches that ended so long ago and still have an archive among the objects."""
        rows = await self._conn.fetch(
            "select b.id from batches b where b.tenant_id = $1 and b.stored"
            " and b.settled_at < clock_timestamp() - $2::interval order by b.settled_at limit $3",
            self._ctx.tenant_id,
            ended,
            limit,
        )
        return [row["id"] for row in rows]

    async def remove_ended(self, ended: timedelta, limit: int) -> int:
        """Forgets up to `limit` batches that ended so long ago and whose archives are gone; answers how many."""
        rows = await self._conn.fetch(
            "delete from batches where tenant_id = $1 and id = any(array(select b.id from batches b"
            " where b.tenant_id = $1 and not b.stored and b.settled_at < clock_timestamp() - $2::interval"
            " order by b.settled_at limit $3)) returning id",
            self._ctx.tenant_id,
            ended,
            limit,
        )
        return len(rows)
