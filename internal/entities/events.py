"""What has happened: facts that the transaction which made them true writes to the outbox."""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal
from uuid import UUID

import msgspec

from internal.entities.documents import Visibility

KEPT = timedelta(days=7)
"""How long an event can be read again after it was handed on."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact in the past tense. Fields hold ids and names of states, never content; readers look the rest up."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def payload(self) -> dict[str, Any]:
        """Fields and version, ready for the outbox."""
        return {"version": self.version, **msgspec.to_builtins(self)}


class FileUploaded(Event, frozen=True, kw_only=True):
    """A user stored a file, or went back to an earlier one, and the task that reads it waits."""

    kind: ClassVar[str] = "file.uploaded"

    document_id: UUID
    content_id: UUID
    task_id: UUID


class DocumentReady(Event, frozen=True, kw_only=True):
    """Searches find the document from now on."""

    kind: ClassVar[str] = "document.ready"

    document_id: UUID
    chunk_count: int


class DocumentDeleted(Event, frozen=True, kw_only=True):
    """A user's handle is gone; its content stays as long as somebody else holds it.

    `visibility` is what the document had: it can't be asked any more who may hear of it.
    """

    kind: ClassVar[str] = "document.deleted"

    document_id: UUID
    content_id: UUID
    task_id: UUID
    visibility: Visibility


class TaskFinished(Event, frozen=True, kw_only=True):
    """A task succeeded, failed, died or was cancelled. The sweeper writes the same shape in SQL."""

    kind: ClassVar[str] = "task.finished"

    task_id: UUID
    task_kind: str
    status: str
    document_id: UUID | None = None
    content_id: UUID | None = None
    error_code: str | None = None


class TaskRequeued(Event, frozen=True, kw_only=True):
    """A task that had ended waits again, since somebody asked for it. Bulk retries write this shape in SQL."""

    kind: ClassVar[str] = "task.requeued"

    task_id: UUID
    task_kind: str
    document_id: UUID | None = None


class BatchFinished(Event, frozen=True, kw_only=True):
    """Nothing of a batch waits or runs any more. The relay writes this shape in SQL."""

    kind: ClassVar[str] = "batch.finished"

    batch_id: UUID
    batch_kind: str
    status: str
    total: int
    succeeded: int
    failed: int
    dead: int
    cancelled: int
    refused: int


class AlertRaised(Event, frozen=True, kw_only=True):
    """Something that the people of a tenant should know of, or, not `active`, that it is over.

    `name` is dotted and stable, `detail` holds no content. A private one about a document is for those who see that.
    """

    kind: ClassVar[str] = "alert.raised"

    name: str
    severity: Literal["info", "warning", "critical"]
    detail: str
    active: bool = True
    visibility: Visibility = Visibility.TENANT
    document_id: UUID | None = None


class PublishedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay may know of an event: whose it is, which, and its place in the tenant's order, counted from 1."""

    tenant_id: UUID
    id: UUID
    kind: str
    position: int


class TaskMoved(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker broadcasts when a task has come further: which one, nothing more."""

    tenant_id: UUID
    task_id: UUID


class BatchMoved(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay broadcasts when a batch has come further: which one, nothing more."""

    tenant_id: UUID
    batch_id: UUID


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as its reader finds it in the outbox, with what its task says today.

    `shared`: everyone of the tenant may see it, so that it needs no second look for another reader.
    """

    position: int
    kind: str
    payload: dict[str, Any]
    created_at: datetime
    progress: float | None
    error_message: str | None
    shared: bool


class TaskProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a task is, as its reader may see it; `running` is False once it has ended or waits again."""

    task_id: UUID
    kind: str
    running: bool
    stage: str
    progress: float
    document_id: UUID | None
    shared: bool


class EventPositions(msgspec.Struct, frozen=True):
    """The first event of a tenant that can surely still be read, and its last; 0 before the first one."""

    oldest: int | None
    newest: int

    def reach(self, position: int) -> bool:
        """Whether everything after this position can still be read."""
        if position >= self.newest:
            return position == self.newest
        return self.oldest is not None and position + 1 >= self.oldest


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader is told. `id` is the event's place in the tenant's order; what has none isn't told again."""

    type: str
    id: int | msgspec.UnsetType = msgspec.UNSET
    created_at: datetime
    data: dict[str, Any]
