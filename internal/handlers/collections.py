"""/api/v1/collections"""

from typing import Annotated
from uuid import UUID

import msgspec
from litestar import delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from internal.entities.documents import Collection
from internal.handlers.auth import access
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, page_of, read_cursor, read_id
from internal.services.collections import CollectionService
from internal.services.names import MAX_NAME
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role


class CollectionIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A collection's name."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]


@get("/api/v1/collections", opt=access(Role.VIEWER))
async def list_collections(
    ctx: NamedDependency[Context],
    collections: NamedDependency[CollectionService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Collection]:
    """Collections by name, with how many of their documents you may see."""
    found = await collections.list(ctx, limit=limit + 1, after=read_cursor(cursor, str))
    return Page(*page_of(found, limit, lambda item: item.name))


@post("/api/v1/collections", opt=access(Role.MEMBER))
async def add_collection(
    ctx: NamedDependency[Context], collections: NamedDependency[CollectionService], data: JSONBody[CollectionIn]
) -> Collection:
    """Makes an empty collection."""
    return await collections.add(ctx, data.name)


@patch("/api/v1/collections/{collection_id:str}", opt=access(Role.MEMBER))
async def rename_collection(
    ctx: NamedDependency[Context],
    collections: NamedDependency[CollectionService],
    collection_id: Id,
    data: JSONBody[CollectionIn],
) -> Collection:
    """Gives a collection another name."""
    return await collections.rename(ctx, _id(collection_id), data.name)


@delete("/api/v1/collections/{collection_id:str}", opt=access(Role.MEMBER))
async def remove_collection(
    ctx: NamedDependency[Context], collections: NamedDependency[CollectionService], collection_id: Id
) -> None:
    """Removes a collection; its documents stay."""
    await collections.remove(ctx, _id(collection_id))


def _id(text: str) -> UUID:
    return read_id(text, AppError(Code.COLLECTION_NOT_FOUND, "There is no such collection."))
