"""What a document's content was, is, and will be once it has been read."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec


class VersionStatus(StrEnum):
    """`current` answers; a `superseded` one did, or was overtaken by a later one before it could."""

    READING = "reading"
    CURRENT = "current"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version, counted from 1. A failed one says why."""

    number: int
    content_id: UUID
    sha256: bytes
    size: int
    media_type: str
    blob_key: str
    filename: str
    created_by: UUID
    created_at: datetime
    status: VersionStatus
    error_code: str | None
    error_message: str | None


class Switched(msgspec.Struct, frozen=True):
    """A document that answers from another content now, and the contents that it answered from or passed over."""

    document_id: UUID
    left: list[UUID]


class Forgotten(msgspec.Struct, frozen=True):
    """A version that is kept no longer, and the task that was to read it; the first one has none of its own."""

    content_id: UUID
    task_id: UUID | None
