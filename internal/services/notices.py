"""What an event is to those who follow it: its type and data, as the REST API names them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from internal.entities.batches import Batch
from internal.entities.events import (
    AlertRaised,
    BatchFinished,
    DocumentDeleted,
    DocumentReady,
    Event,
    FileUploaded,
    Notice,
    StoredEvent,
    TaskFinished,
    TaskProgress,
    TaskRequeued,
)
from internal.entities.tasks import TaskKind, TaskStatus

OUTCOMES = ("total", "succeeded", "failed", "dead", "cancelled", "refused")
"""The counts of a batch that its end tells."""


def notice_of(event: StoredEvent) -> Notice | None:
    """None for an event that only the product itself has a use for."""
    described = TELLING.get(event.kind)
    if described is None:
        return None
    kind, data = described(event)
    return Notice(type=kind, id=event.position, created_at=event.created_at, data=data)


def progress_notice(progress: TaskProgress) -> Notice:
    """How far a running task is."""
    data = {
        "task_id": progress.task_id,
        "kind": progress.kind,
        "status": TaskStatus.RUNNING,
        "stage": progress.stage,
        "progress": round(progress.progress, 4),
        "document_id": progress.document_id,
    }
    return Notice(type="task.progress", created_at=datetime.now(UTC), data=data)


def batch_notice(batch: Batch) -> Notice:
    """How far a batch is."""
    data = {"batch_id": batch.id, "kind": batch.kind, "status": batch.status, "progress": round(batch.progress, 4)}
    data |= {name: getattr(batch, name) for name in (*OUTCOMES, "waiting", "running")}
    return Notice(type="batch.progress", created_at=datetime.now(UTC), data=data)


def _batch_finished(event: StoredEvent) -> tuple[str, dict[str, Any]]:
    payload = event.payload
    data = {
        "batch_id": payload["batch_id"],
        "kind": payload["batch_kind"],
        "status": payload["status"],
        "progress": 1.0,
    }
    return "batch.finished", data | {name: payload[name] for name in OUTCOMES}


def _queued(event: StoredEvent) -> tuple[str, dict[str, Any]]:
    data = {
        "task_id": event.payload["task_id"],
        "kind": event.payload.get("task_kind", TaskKind.INGEST_CONTENT),  # an upload's is always this one
        "status": TaskStatus.QUEUED,
        "document_id": event.payload.get("document_id"),
    }
    return "task.queued", data


def _finished(event: StoredEvent) -> tuple[str, dict[str, Any]]:
    payload = event.payload
    status = TaskStatus(payload["status"])
    code = payload.get("error_code")
    data = {
        "task_id": payload["task_id"],
        "kind": payload["task_kind"],
        "status": status,
        "stage": status,
        "progress": 1.0 if status is TaskStatus.SUCCEEDED else round(event.progress or 0.0, 4),
        "document_id": payload.get("document_id"),
        "error": {"code": code, "message": event.error_message or ""} if code else None,
    }
    return f"task.{status}", data


def _ready(event: StoredEvent) -> tuple[str, dict[str, Any]]:
    return "document.ready", {name: event.payload[name] for name in ("document_id", "chunk_count")}


def _deleted(event: StoredEvent) -> tuple[str, dict[str, Any]]:
    return "document.deleted", {name: event.payload[name] for name in ("document_id", "task_id")}


def _alert(event: StoredEvent) -> tuple[str, dict[str, Any]]:
    data = {name: event.payload[name] for name in ("name", "severity", "detail")}
    return "alert", {
        **data,
        "active": event.payload.get("active", True),
        "document_id": event.payload.get("document_id"),
    }


def _telling(*pairs: tuple[type[Event], Callable[[StoredEvent], tuple[str, dict[str, Any]]]]) -> dict[str, Any]:
    return {event.kind: described for event, described in pairs}


TELLING = _telling(
    (FileUploaded, _queued),
    (TaskRequeued, _queued),
    (TaskFinished, _finished),
    (DocumentReady, _ready),
    (DocumentDeleted, _deleted),
    (BatchFinished, _batch_finished),
    (AlertRaised, _alert),
)
"""Every kind of event that a reader is told of."""
