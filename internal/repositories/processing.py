"""SQL of processing versions, of one tenant: comparing, switching from one reading to another, reading again."""

from uuid import UUID

import asyncpg
import msgspec

from internal.entities.processing import Comparison, ProcessingState, Switch
from internal.repositories.rows import sure
from pkg.ctxutil import Context

STATE = "select current, previous, promoted_at, candidate, share from processing"
# The values in the order of Comparison's fields.
RECORD = (
    "insert into shadow_comparisons (tenant_id, content_id, version, against, seconds, error_code, chunks_before,"
    " chunks_after, tokens_before, tokens_after, text_kept, text_added, chunks_same, vectors_mean, vectors_least)"
    " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
    " on conflict (tenant_id, content_id, version) do update set compared_at = now(), against = excluded.against,"
    " seconds = excluded.seconds, error_code = excluded.error_code, chunks_before = excluded.chunks_before,"
    " chunks_after = excluded.chunks_after, tokens_before = excluded.tokens_before,"
    " tokens_after = excluded.tokens_after, text_kept = excluded.text_kept, text_added = excluded.text_added,"
    " chunks_same = excluded.chunks_same, vectors_mean = excluded.vectors_mean,"
    " vectors_least = excluded.vectors_least"
)

# What `expire` takes, of generations g and the row p. What one is going back to is kept until it answers, however long
# that takes.
OVER = (
    " (g.status = 'kept' and g.kept_until < now() or g.status in ('ready', 'building') and g.version <> p.current)"
    " and g.version is distinct from p.candidate and exists (select 1 from contents c join generations a"
    " on a.tenant_id = $1 and a.id = c.generation_id where c.tenant_id = $1 and c.id = g.content_id"
    " and (g.version <> p.current or a.version = p.current))"
)


class ProcessingRepository:
    """What one tenant's contents were read by; the worker's."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def state(self) -> ProcessingState:
        """Which version reads now, for all tenants."""
        return ProcessingState(**sure(await self._conn.fetchrow(STATE)))

    async def record(self, content_id: UUID, version: str, against: str, found: Comparison) -> None:
        """Writes down a comparison, instead of an earlier one of the same content and version."""
        await self._conn.execute(
            RECORD, self._ctx.tenant_id, content_id, version, against, *msgspec.structs.astuple(found)
        )

    async def switchable(self, version: str, space_id: int, limit: int) -> list[Switch]:
        """Up to `limit` contents that another version's reading answers for, and of which this one's is there whole.

        Locked so that who uploads the same bytes doesn't wait: he may hold another one of these.
        """
        rows = await self._conn.fetch(
            "select c.id as content_id, o.id as old, g.id as new, o.chunk_count + g.chunk_count as chunks"
            " from generations g"
            " join contents c on c.tenant_id = $1 and c.id = g.content_id and c.purged_at is null"
            " join generations o on o.tenant_id = $1 and o.id = c.generation_id and o.id <> g.id"
            " where g.tenant_id = $1 and g.version = $2 and g.space_id = $3 and g.status in ('ready', 'kept')"
            " order by c.id limit $4 for no key update of c, g",
            self._ctx.tenant_id,
            version,
            space_id,
            limit,
        )
        return [Switch(**row) for row in rows]

    async def switch(self, switches: list[Switch]) -> None:
        """Lets contents and documents answer from the other generation. The counts are the lexicon's."""
        olds, news = [item.old for item in switches], [item.new for item in switches]
        await self._conn.execute(
            "update contents c set generation_id = s.new from unnest($2::uuid[], $3::uuid[]) as s (content, new)"
            " where c.tenant_id = $1 and c.id = s.content",
            self._ctx.tenant_id,
            [item.content_id for item in switches],
            news,
        )
        await self._conn.execute(
            "update documents d set generation_id = s.new from unnest($2::uuid[], $3::uuid[]) as s (old, new)"
            " where d.tenant_id = $1 and d.generation_id = s.old",
            self._ctx.tenant_id,
            olds,
            news,
        )
        await self._conn.execute(
            "update generations set status = 'published', kept_until = null, published_at = now()"
            " where tenant_id = $1 and id = any($2)",
            self._ctx.tenant_id,
            news,
        )

    async def unread(self, version: str, space_id: int, *, after: UUID, limit: int) -> list[UUID]:
        """Up to `limit` contents in the order of their ids, behind `after`, that another version's reading answers
        for."""
        rows = await self._conn.fetch(
            "select c.id from contents c join generations g on g.tenant_id = $1 and g.id = c.generation_id"
            " where c.tenant_id = $1 and c.id > $4 and c.purged_at is null and g.version <> $2 and g.space_id = $3"
            " order by c.id limit $5",
            self._ctx.tenant_id,
            version,
            space_id,
            after,
            limit,
        )
        return [row["id"] for row in rows]

    async def come_to(self, task_id: UUID, content_id: UUID) -> None:
        """Notes in the task's payload how far it has come, for the next time."""
        await self._conn.execute(
            "update tasks set payload = payload || jsonb_build_object('after', $3::uuid)"
            " where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            task_id,
            content_id,
        )

    async def expire(self) -> None:
        """Retires what nobody will go back to: kept ones whose time is over, and whatever a version left that neither
        reads nor is tried. What is still read for the first time is left to its reader."""
        await self._conn.execute(
            "update generations g set status = 'retired', kept_until = null from processing p"  # noqa: S608 - constants
            " where g.tenant_id = $1 and" + OVER,
            self._ctx.tenant_id,
        )

    async def retired(self, limit: int) -> list[UUID]:
        """Up to `limit` generations that may be removed."""
        rows = await self._conn.fetch(
            "select id from generations where tenant_id = $1 and status = 'retired' limit $2",
            self._ctx.tenant_id,
            limit,
        )
        return [row["id"] for row in rows]

    async def has_expired(self) -> bool:
        """Whether `expire` or `retired` would find anything."""
        return sure(
            await self._conn.fetchval(
                "select exists (select 1 from generations g cross join processing p"  # noqa: S608 - constants
                " where g.tenant_id = $1 and (g.status = 'retired' or" + OVER + "))",
                self._ctx.tenant_id,
            )
        )

    async def is_behind(self) -> bool:
        """Whether a whole reading by the current version lies there, and an earlier one answers."""
        return sure(
            await self._conn.fetchval(
                "select exists (select 1 from processing p join generations g on g.tenant_id = $1"
                " and g.version = p.current and g.status in ('ready', 'kept')"
                " join contents c on c.tenant_id = $1 and c.id = g.content_id and c.purged_at is null"
                " join generations a on a.tenant_id = $1 and a.id = c.generation_id and a.version <> g.version"
                " and a.space_id = g.space_id)",
                self._ctx.tenant_id,
            )
        )
