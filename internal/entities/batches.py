"""What one request began for many files, documents or tasks."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

BATCHES_KEPT = timedelta(days=30)
"""How long a batch can be looked at after its end."""
ARCHIVES_KEPT = timedelta(days=1)
"""How long an archive that could not be expanded, or was cancelled, waits for another try."""


class BatchKind(StrEnum):
    """What a batch does with its items."""

    UPLOAD = "upload"
    ARCHIVE = "archive"
    RETRY = "retry"
    DELETE = "delete"


class BatchStatus(StrEnum):
    """`succeeded`: every item did. `failed`: at least one didn't, or was refused; the counts tell how many."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ItemState(StrEnum):
    """How far one item is. `refused`: nothing was begun for it, and its error says why."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEAD = "dead"
    CANCELLED = "cancelled"
    REFUSED = "refused"


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch of the context's user that is about to be added. `task_id` is of the task that does its work."""

    id: UUID
    kind: BatchKind
    request: dict[str, Any]
    task_id: UUID | None = None
    stored: bool = False


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch in numbers; `progress` goes from 0 to 1."""

    id: UUID
    kind: BatchKind
    status: BatchStatus
    total: int
    waiting: int
    running: int
    succeeded: int
    failed: int
    dead: int
    cancelled: int
    refused: int
    progress: float
    task_id: UUID | None
    error_code: str | None
    error_message: str | None
    created_at: datetime
    finished_at: datetime | None


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """One file, document or task of a batch. `folder` is where in its archive the file lay."""

    ordinal: int
    state: ItemState
    filename: str | None
    folder: str | None
    document_id: UUID | None
    task_id: UUID | None
    duplicate: bool
    error_code: str | None
    error_message: str | None


class PlannedItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item that a batch's work has found; with an error it is refused at once."""

    ordinal: int
    filename: str | None = None
    folder: str | None = None
    document_id: UUID | None = None
    task_id: UUID | None = None
    error_code: str | None = None
    error_message: str | None = None


class BatchWork(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker needs to know of a batch. `planned`: its items are written down already."""

    id: UUID
    request: dict[str, Any]
    stored: bool
    planned: bool
    cancelled: bool
