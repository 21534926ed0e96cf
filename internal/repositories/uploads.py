"""SQL of uploads that come in pieces. A user's own for the application, a tenant's expired ones for the worker.

Whoever writes to an upload holds it for a time, and every write names the holder: of two servers that both believe
that they hold it, one is refused.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.ids import new_id
from internal.entities.uploads import NewUpload, Upload, UploadPart, UploadStatus
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

LOCKED_SECONDS = 5.0
MAX_PARTS = 10_000
"""Each is an object: a client that sends its file byte by byte would fill the store with them."""


class UploadRepository:
    """Uploads of the context's user, and what a worker removes."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def open_ones(self) -> tuple[int, int]:
        """How many uploads of the tenant are under way, and how many bytes they announced; others wait to ask."""
        row = sure(await self._conn.fetchrow("select uploads, bytes from open_uploads_v1()"))
        return row["uploads"], row["bytes"]

    async def add(self, new: NewUpload, *, keep: timedelta) -> Upload:
        """Adds an upload of the context's user that is forgotten after `keep`."""
        upload_id = new_id()
        await self._conn.execute(
            "insert into uploads (tenant_id, id, user_id, length, metadata, request, expires_at)"
            " values ($1, $3, $2, $4, $5, $6::jsonb, clock_timestamp() + $7::interval)",
            self._ctx.tenant_id,
            self._ctx.user_id,
            upload_id,
            new.length,
            new.metadata,
            msgspec.json.encode(new.request).decode(),
            keep,
        )
        return await self.get(upload_id)

    async def get(self, upload_id: UUID) -> Upload:
        """Raises UPLOAD_NOT_FOUND, for another's and for an expired one too."""
        row = await self._conn.fetchrow(
            "select id, length, received, metadata, request, status, document_id, task_id, error_code, error_message,"
            " expires_at from uploads where tenant_id = $1 and user_id = $2 and id = $3 and status <> 'ended'"
            " and expires_at > clock_timestamp()",
            self._ctx.tenant_id,
            self._ctx.user_id,
            upload_id,
        )
        if row is None:
            raise AppError(Code.UPLOAD_NOT_FOUND, "There is no such upload; begin a new one.")
        return _upload(row)

    async def hold(self, upload_id: UUID, holder: UUID, *, seconds: float) -> Upload:
        """Makes `holder` the only writer for a time. Raises UPLOAD_NOT_FOUND, UPLOAD_LOCKED."""
        held = await self._conn.fetchval(
            "update uploads set holder = $4, held_until = clock_timestamp() + make_interval(secs => $5)"
            " where tenant_id = $1 and user_id = $2 and id = $3 and status <> 'ended'"
            " and expires_at > clock_timestamp() and (holder is null or held_until < clock_timestamp())"
            " returning true",
            self._ctx.tenant_id,
            self._ctx.user_id,
            upload_id,
            holder,
            seconds,
        )
        upload = await self.get(upload_id)
        self._held(held)
        return upload

    async def renew(self, upload_id: UUID, holder: UUID, *, seconds: float) -> None:
        """Holds it for longer. Raises UPLOAD_LOCKED when somebody else holds it by now."""
        self._held(
            await self._conn.fetchval(
                "update uploads set held_until = clock_timestamp() + make_interval(secs => $5)"
                " where tenant_id = $1 and user_id = $2 and id = $3 and holder = $4 returning true",
                self._ctx.tenant_id,
                self._ctx.user_id,
                upload_id,
                holder,
                seconds,
            )
        )

    async def release(self, upload_id: UUID, holder: UUID) -> None:
        """Lets the next writer in."""
        await self._conn.execute(
            "update uploads set holder = null, held_until = null"
            " where tenant_id = $1 and user_id = $2 and id = $3 and holder = $4",
            self._ctx.tenant_id,
            self._ctx.user_id,
            upload_id,
            holder,
        )

    async def plan_part(self, upload_id: UUID) -> UUID:
        """Writes down an object that is about to be stored. Raises REQUEST_INVALID when there are MAX_PARTS."""
        count = await self._conn.fetchval(
            "select count(*) from upload_parts where tenant_id = $1 and upload_id = $2", self._ctx.tenant_id, upload_id
        )
        if sure(count) >= MAX_PARTS:
            raise AppError(
                Code.REQUEST_INVALID, f"The file came in {MAX_PARTS} pieces already; begin anew with larger ones."
            )
        part_id = new_id()
        await self._conn.execute(
            "insert into upload_parts (tenant_id, id, upload_id) values ($1, $2, $3)",
            self._ctx.tenant_id,
            part_id,
            upload_id,
        )
        return part_id

    async def commit_parts(
        self, upload_id: UUID, holder: UUID, parts: list[UploadPart], *, received: int, keep: timedelta
    ) -> Upload:
        """Counts stored parts, and the upload's time anew. Raises UPLOAD_LOCKED."""
        self._held(
            await self._conn.fetchval(
                "update uploads set received = $5, expires_at = clock_timestamp() + $6::interval"
                " where tenant_id = $1 and user_id = $2 and id = $3 and holder = $4 returning true",
                self._ctx.tenant_id,
                self._ctx.user_id,
                upload_id,
                holder,
                received,
                keep,
            )
        )
        await self._conn.execute(
            "update upload_parts p set start = s.start from unnest($2::uuid[], $3::bigint[]) as s (id, start)"
            " where p.tenant_id = $1 and p.id = s.id",
            self._ctx.tenant_id,
            [part.id for part in parts],
            [part.start for part in parts],
        )
        return await self.get(upload_id)

    async def finish(
        self, upload_id: UUID, holder: UUID, document_id: UUID, task_id: UUID, *, keep: timedelta
    ) -> Upload:
        """All bytes are in, as this document; its time counts anew, also when it is over. Raises UPLOAD_LOCKED."""
        self._held(
            await self._conn.fetchval(
                "update uploads set status = 'finished', received = length, document_id = $5, task_id = $6,"
                " expires_at = clock_timestamp() + $7::interval"
                " where tenant_id = $1 and user_id = $2 and id = $3 and holder = $4 returning true",
                self._ctx.tenant_id,
                self._ctx.user_id,
                upload_id,
                holder,
                document_id,
                task_id,
                keep,
            )
        )
        return await self.get(upload_id)

    async def refuse(self, upload_id: UUID, holder: UUID, code: str, message: str) -> None:
        """The file is at fault; whoever asks is told. Raises UPLOAD_LOCKED."""
        self._held(
            await self._conn.fetchval(
                "update uploads set status = 'refused', error_code = $5, error_message = $6"
                " where tenant_id = $1 and user_id = $2 and id = $3 and holder = $4 returning true",
                self._ctx.tenant_id,
                self._ctx.user_id,
                upload_id,
                holder,
                code,
                message,
            )
        )

    async def end(self, upload_id: UUID, holder: UUID) -> None:
        """Nobody finds it any more; its time is over. Raises UPLOAD_LOCKED."""
        self._held(
            await self._conn.fetchval(
                "update uploads set status = 'ended', expires_at = clock_timestamp()"
                " where tenant_id = $1 and user_id = $2 and id = $3 and holder = $4 returning true",
                self._ctx.tenant_id,
                self._ctx.user_id,
                upload_id,
                holder,
            )
        )

    async def end_expired(self, limit: int) -> list[UUID]:
        """Ends up to `limit` uploads of the tenant whose time is over and that nobody writes to; the worker's."""
        rows = await self._conn.fetch(
            "update uploads set status = 'ended', holder = null, held_until = null where tenant_id = $1"
            " and (holder is null or held_until < clock_timestamp()) and id = any(array(select u.id from uploads u"
            " where u.tenant_id = $1 and u.expires_at < clock_timestamp()"
            " and (u.holder is null or u.held_until < clock_timestamp()) order by u.expires_at limit $2))"
            " returning id",
            self._ctx.tenant_id,
            limit,
        )
        return [row["id"] for row in rows]

    async def parts(self, upload_id: UUID) -> list[UploadPart]:
        """What counts, in order."""
        rows = await self._conn.fetch(
            "select id, start from upload_parts where tenant_id = $1 and upload_id = $2 and start is not null"
            " order by start",
            self._ctx.tenant_id,
            upload_id,
        )
        return [UploadPart(row["id"], row["start"]) for row in rows]

    async def objects(self, upload_id: UUID) -> list[UUID]:
        """Every part that was ever planned and not removed, whether or not it counts."""
        rows = await self._conn.fetch(
            "select id from upload_parts where tenant_id = $1 and upload_id = $2", self._ctx.tenant_id, upload_id
        )
        return [row["id"] for row in rows]

    async def remove_parts(self, part_ids: list[UUID]) -> None:
        """Forgets parts whose objects are gone."""
        await self._conn.execute(
            "delete from upload_parts where tenant_id = $1 and id = any($2)", self._ctx.tenant_id, part_ids
        )

    async def remove(self, upload_id: UUID) -> None:
        """Forgets an upload that has ended and whose objects are gone."""
        await self._conn.execute(
            "delete from uploads where tenant_id = $1 and id = $2 and status = 'ended'",
            self._ctx.tenant_id,
            upload_id,
        )

    @staticmethod
    def _held(found: bool | None) -> None:
        if not found:
            raise locked()


def locked() -> AppError:
    """The answer for an upload that another request is writing to."""
    return AppError(
        Code.UPLOAD_LOCKED,
        "Another request is sending bytes of this upload; wait for its end.",
        retry_after=LOCKED_SECONDS,
    )


def _upload(row: asyncpg.Record) -> Upload:
    fields: dict[str, Any] = dict(row)
    fields["request"] = msgspec.json.decode(row["request"])
    fields["status"] = UploadStatus(row["status"])
    return Upload(**fields)
