"""Files that come in pieces, over as many requests and servers as it takes."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec


class UploadStatus(StrEnum):
    """`refused`: the whole file was looked at and is at fault; `ended`: its objects are being removed."""

    OPEN = "open"
    FINISHED = "finished"
    REFUSED = "refused"
    ENDED = "ended"


class NewUpload(msgspec.Struct, frozen=True, kw_only=True):
    """What a client announces: `length` in bytes, `metadata` as it was sent, `request` as it was understood."""

    length: int
    metadata: str
    request: dict[str, Any]


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is: `received` of `length` bytes. A finished one names its document, a refused one its error."""

    id: UUID
    length: int
    received: int
    metadata: str
    request: dict[str, Any]
    status: UploadStatus
    document_id: UUID | None
    task_id: UUID | None
    error_code: str | None
    error_message: str | None
    expires_at: datetime


class UploadPart(msgspec.Struct, frozen=True):
    """An object with the bytes of an upload from `start` on."""

    id: UUID
    start: int
