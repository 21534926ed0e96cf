"""SQL of collections."""

from uuid import UUID

import asyncpg

from internal.entities.documents import Collection
from internal.entities.ids import new_id
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context


class CollectionRepository:
    """Named groups of documents of one tenant.

    A collection that wasn't announced exists for those alone who see a document in it.
    """

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(self, name: str) -> Collection:
        """Makes a collection, or announces one of this name that the caller didn't see.

        Raises COLLECTION_EXISTS when the name is taken by one that he sees.
        """
        made = await self._conn.fetchval(
            "insert into collections as c (tenant_id, id, name) values ($1, $2, $3)"
            " on conflict (tenant_id, name) do update set announced = true, created_at = now()"
            " where not c.announced and not exists (select 1 from documents d"
            " where d.tenant_id = $1 and d.collection_id = c.id and (d.visibility = 'tenant' or d.owner_id = $4))"
            " returning c.id",
            self._ctx.tenant_id,
            new_id(),
            name,
            self._ctx.user_id,
        )
        if made is None:
            raise _taken(name)
        return await self.get(made)

    async def ensure(self, name: str, *, announced: bool) -> UUID:
        """The id of the collection with this name, made if need be; safe when several ask at once.

        With `announced`, one that was made in private is for all from now on, as if it were made now.
        """
        await self._conn.execute(
            "insert into collections (tenant_id, id, name, announced) values ($1, $2, $3, $4)"
            " on conflict (tenant_id, name) do update set announced = true, created_at = now()"
            " where excluded.announced and not collections.announced",
            self._ctx.tenant_id,
            new_id(),
            name,
            announced,
        )
        return sure(
            await self._conn.fetchval(
                "select id from collections where tenant_id = $1 and name = $2", self._ctx.tenant_id, name
            )
        )

    async def get(self, collection_id: UUID) -> Collection:
        """Raises COLLECTION_NOT_FOUND."""
        row = await self._conn.fetchrow(
            "select c.id, c.name, c.created_at, c.announced, (select count(*) from documents d"
            " where d.tenant_id = $1 and d.collection_id = c.id"
            " and (d.visibility = 'tenant' or d.owner_id = $3)) as documents"
            " from collections c where c.tenant_id = $1 and c.id = $2",
            self._ctx.tenant_id,
            collection_id,
            self._ctx.user_id,
        )
        if row is None or not (row["announced"] or row["documents"]):
            raise _missing()
        return _collection(row)

    async def rename(self, collection_id: UUID, name: str) -> None:
        """Raises COLLECTION_NOT_FOUND, or COLLECTION_EXISTS when the name is taken."""
        try:
            done = await self._conn.fetchval(
                "update collections set name = $3 where tenant_id = $1 and id = $2 returning id",
                self._ctx.tenant_id,
                collection_id,
                name,
            )
        except asyncpg.UniqueViolationError:
            raise _taken(name) from None
        if done is None:
            raise _missing()

    async def remove(self, collection_id: UUID) -> None:
        """Takes the documents out and removes the collection. Raises COLLECTION_NOT_FOUND."""
        done = await self._conn.fetchval(
            "delete from collections where tenant_id = $1 and id = $2 returning id", self._ctx.tenant_id, collection_id
        )
        if done is None:
            raise _missing()

    async def list(self, *, limit: int, after: str | None) -> list[Collection]:
        """Up to `limit` collections by name, those after `after`."""
        rows = await self._conn.fetch(
            "select c.id, c.name, c.created_at, (select count(*) from documents d"
            " where d.tenant_id = $1 and d.collection_id = c.id"
            " and (d.visibility = 'tenant' or d.owner_id = $4)) as documents"
            " from collections c where c.tenant_id = $1 and ($2::text is null or c.name > $2)"
            " and (c.announced or exists (select 1 from documents d where d.tenant_id = $1 and d.collection_id = c.id"
            " and (d.visibility = 'tenant' or d.owner_id = $4)))"
            " order by c.name limit $3",
            self._ctx.tenant_id,
            after,
            limit,
            self._ctx.user_id,
        )
        return [_collection(row) for row in rows]


def _collection(row: asyncpg.Record) -> Collection:
    return Collection(id=row["id"], name=row["name"], document_count=row["documents"], created_at=row["created_at"])


def _missing() -> AppError:
    return AppError(Code.COLLECTION_NOT_FOUND, "There is no such collection.")


def _taken(name: str) -> AppError:
    return AppError(Code.COLLECTION_EXISTS, f"A collection named {name!r} exists already; choose another name.")
