"""What has happened: facts that the transaction which made them true writes to the outbox."""

from typing import Any, ClassVar
from uuid import UUID

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact in the past tense. Fields hold ids and names of states, never content; readers look the rest up."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def payload(self) -> dict[str, Any]:
        """Fields and version, ready for the outbox."""
        return {"version": self.version, **msgspec.to_builtins(self)}


class FileUploaded(Event, frozen=True, kw_only=True):
    """A user stored a file, and the task that reads it waits."""

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
    """A user's handle is gone; its content stays as long as somebody else holds it."""

    kind: ClassVar[str] = "document.deleted"

    document_id: UUID
    content_id: UUID
    task_id: UUID


class TaskFinished(Event, frozen=True, kw_only=True):
    """A task succeeded, failed, died or was cancelled. The sweeper writes the same shape in SQL."""

    kind: ClassVar[str] = "task.finished"

    task_id: UUID
    task_kind: str
    status: str
    document_id: UUID | None = None
    content_id: UUID | None = None
    error_code: str | None = None


class PublishedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay may know of an event: whose it is, which, and its place in the tenant's order, counted from 1."""

    tenant_id: UUID
    id: UUID
    kind: str
    position: int
