"""Objects in the store and the rows that hold them."""

from datetime import datetime
from uuid import UUID

import msgspec


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """An object as the store lists it; `modified` is by the store's clock."""

    key: str
    modified: datetime


class HeldObject(msgspec.Struct, frozen=True, kw_only=True):
    """A content that needs its object; `missing` when that was found to be gone."""

    id: UUID
    blob_key: str
    missing: bool
