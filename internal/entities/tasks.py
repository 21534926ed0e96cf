"""Work that takes longer than a request: tasks, their attempts, and the lease that allows a worker to write."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from pkg.apperr import AppError, Code
from pkg.ctxutil import Role


class TaskStatus(StrEnum):
    """`failed`: the input is at fault; `dead`: tries are used up, the task lies among the dead letters."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEAD = "dead"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """True when nothing more happens unless somebody asks for it."""
        return self not in (TaskStatus.QUEUED, TaskStatus.RUNNING)


class Queue(StrEnum):
    """Priority classes, the most urgent first."""

    HIGH_PRIORITY = "high_priority"
    DEFAULT = "default"
    BATCH = "batch"
    LEARNING = "learning"


class TaskKind(StrEnum):
    """Kinds of the product's own; start-up fails if one of them has no job."""

    INGEST_CONTENT = "ingest_content"
    PURGE_CONTENT = "purge_content"
    PURGE_UPLOADS = "purge_uploads"
    SWEEP_OBJECTS = "sweep_objects"
    EXPAND_ARCHIVE = "expand_archive"
    RETRY_TASKS = "retry_tasks"
    DELETE_DOCUMENTS = "delete_documents"
    PURGE_BATCHES = "purge_batches"
    SHADOW_CONTENT = "shadow_content"
    SWITCH_PROCESSING = "switch_processing"
    REREAD_CONTENTS = "reread_contents"
    PURGE_GENERATIONS = "purge_generations"
    DIGEST_CONVERSATION = "digest_conversation"


INGEST_VERSION = 3
PURGE_VERSION = 3
"""What these tasks mean today: a content may be a document's history, or its next version; another version of the
processing may read, and what an earlier one read may be kept. Workers that don't know of
that put them back for others; raise it whenever older workers would do a task wrongly."""

REMOVALS = frozenset({TaskKind.PURGE_CONTENT, TaskKind.PURGE_UPLOADS, TaskKind.PURGE_BATCHES})
"""Their document is gone for its readers already: nobody may cancel them, or its text and file would stay for good."""


class Outcome(StrEnum):
    """How one attempt ended. `held` and `released` use up no try."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRIED = "retried"
    HELD = "held"
    RELEASED = "released"
    LOST = "lost"
    CANCELLED = "cancelled"


TRANSITIONS: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.QUEUED: frozenset({TaskStatus.RUNNING, TaskStatus.CANCELLED}),
    TaskStatus.RUNNING: frozenset(
        {TaskStatus.QUEUED, TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.DEAD, TaskStatus.CANCELLED}
    ),
    TaskStatus.SUCCEEDED: frozenset(),
    TaskStatus.FAILED: frozenset({TaskStatus.QUEUED}),
    TaskStatus.DEAD: frozenset({TaskStatus.QUEUED, TaskStatus.FAILED}),
    TaskStatus.CANCELLED: frozenset({TaskStatus.QUEUED}),
}
"""What may follow what; a dead letter that is discarded has failed. The database's trigger `tasks_transition` holds the
same table, and refuses every other change whoever asks for it."""

RETRYABLE = frozenset(status for status, after in TRANSITIONS.items() if status.finished and TaskStatus.QUEUED in after)
CANCELLABLE = frozenset(status for status, after in TRANSITIONS.items() if TaskStatus.CANCELLED in after)


class TaskPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger gives each new task, and how many unfinished ones a tenant may have."""

    max_retries: int = 5
    queue_depth: int = 10_000


class NewTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is about to be added. `bounded` is False for work that mends or removes: no cap refuses it.

    `size` is of the file that it is about, in bytes.
    """

    kind: str
    version: int
    queue: Queue = Queue.DEFAULT
    priority: int = 0
    payload: dict[str, Any] = {}
    document_id: UUID | None = None
    content_id: UUID | None = None
    size: int = 0
    bounded: bool = True


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the tasks that a user may see are meant: those that fulfil all that is said.

    `ended_after` is inclusive, `ended_before` isn't.
    """

    statuses: frozenset[TaskStatus] | None = None
    queue: Queue | None = None
    kind: str | None = None
    error_code: str | None = None
    document_ids: list[UUID] | None = None
    ids: list[UUID] | None = None
    ended_after: datetime | None = None
    ended_before: datetime | None = None


class Acted(msgspec.Struct, frozen=True):
    """On how many tasks something was done, and whether more of them were left for another time."""

    count: int
    more: bool


class Matter(msgspec.Struct, frozen=True, kw_only=True):
    """What a task works on, as far as it is still there; never its content. `size` is in bytes."""

    filename: str | None = None
    media_type: str | None = None
    size: int | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One task as the ledger has it. Tenant, user, role and both ids of the request rebuild its context.

    All times are the database's, `read_at`, when the row was read, too.
    """

    tenant_id: UUID
    id: UUID
    kind: str
    version: int
    queue: Queue
    priority: int
    status: TaskStatus
    stage: str
    progress: float
    user_id: UUID
    role: Role
    request_id: str
    trace_id: str
    document_id: UUID | None
    content_id: UUID | None
    payload: dict[str, Any]
    result: dict[str, Any] | None
    error_code: str | None
    error_message: str | None
    attempts: int
    retry_count: int
    max_retries: int
    lost_leases: int
    cancel_requested: bool
    due_at: datetime
    read_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    size: int = 0


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's try at a task, counted from 1; without an outcome it is under way."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None
    outcome: Outcome | None
    error_code: str | None
    error_message: str | None


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Proves the right to write a task's effects, as long as the ledger still has this fence."""

    task: Task
    fence: int
    worker: str


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker writes down when it lets go of a task. `delay` is in seconds, for a task that is queued again."""

    status: TaskStatus
    outcome: Outcome
    result: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    used_try: bool = False
    delay: float = 0.0


class Wakeup(msgspec.Struct, frozen=True):
    """What lies in Redis: a task's id, and how many times it has been put there.

    `turn` is its place in its tenant's share when it was dispatched; the lower one goes first.
    """

    task_id: UUID
    number: int
    turn: float = 0.0

    @property
    def job_id(self) -> str:
        """A new one for each number, so that nothing left of an earlier delivery stands in the way."""
        return f"{self.task_id}:{self.number}"

    @classmethod
    def of(cls, job_id: str) -> "Wakeup":
        """Reads a job id."""
        task_id, _, number = job_id.partition(":")
        return cls(UUID(task_id), int(number))


class QueueDepth(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one queue over all tenants; `oldest_seconds` is how long the oldest due task has waited."""

    queue: Queue
    waiting: int
    dispatched: int
    running: int
    oldest_seconds: float


def check_transition(before: TaskStatus, after: TaskStatus) -> None:
    """Raises TASK_NOT_CANCELLABLE or TASK_NOT_RETRYABLE for what users ask, INTERNAL for what only a bug can ask."""
    if after in TRANSITIONS[before]:
        return
    if after is TaskStatus.CANCELLED:
        raise AppError(Code.TASK_NOT_CANCELLABLE, f"The task is {before} already; there is nothing left to cancel.")
    if after is TaskStatus.QUEUED:
        raise AppError(Code.TASK_NOT_RETRYABLE, f"A task that is {before} can't be tried again.")
    raise AppError(Code.INTERNAL, f"A task that is {before} can't become {after}.")
