"""Collections: named groups of documents."""

from uuid import UUID

from internal.entities.documents import Collection
from internal.repositories.store import Store
from internal.services.names import check_name
from pkg.ctxutil import Context


class CollectionService:
    """The rules of collections."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, ctx: Context, name: str) -> Collection:
        """Raises COLLECTION_EXISTS."""
        async with self._store.tenant(ctx) as tx:
            return await tx.collections.add(check_name(name, "collection name"))

    async def get(self, ctx: Context, collection_id: UUID) -> Collection:
        """Raises COLLECTION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            return await tx.collections.get(collection_id)

    async def rename(self, ctx: Context, collection_id: UUID, name: str) -> Collection:
        """Raises COLLECTION_NOT_FOUND or COLLECTION_EXISTS."""
        async with self._store.tenant(ctx) as tx:
            await tx.lexicon.touch()  # before any row is locked, as a publication does it; searches name collections
            await tx.collections.get(collection_id)
            await tx.collections.rename(collection_id, check_name(name, "collection name"))
            return await tx.collections.get(collection_id)

    async def remove(self, ctx: Context, collection_id: UUID) -> None:
        """Its documents stay, without a collection. Raises COLLECTION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            await tx.lexicon.touch()  # before the documents' rows are locked, as a publication does it
            await tx.collections.get(collection_id)
            await tx.collections.remove(collection_id)

    async def list(self, ctx: Context, *, limit: int, after: str | None) -> list[Collection]:
        """Up to `limit` collections by name, those after `after`."""
        async with self._store.tenant(ctx) as tx:
            return await tx.collections.list(limit=limit, after=after)
