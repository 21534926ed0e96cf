"""Typed application errors. One class, one enum of stable codes; HTTP is not known here."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """Stable, dotted error codes. Clients switch on them: never rename one."""

    AUTH_MISSING_TOKEN = "auth.missing_token"
    AUTH_INVALID_TOKEN = "auth.invalid_token"
    AUTH_BAD_CREDENTIALS = "auth.bad_credentials"
    AUTH_TENANT_REQUIRED = "auth.tenant_required"
    AUTH_FORBIDDEN = "auth.forbidden"
    AUTH_CSRF = "auth.csrf"
    REQUEST_MALFORMED = "request.malformed"
    REQUEST_INVALID = "request.invalid"
    REQUEST_NOT_FOUND = "request.not_found"
    REQUEST_METHOD_NOT_ALLOWED = "request.method_not_allowed"
    REQUEST_TOO_LARGE = "request.too_large"
    REQUEST_TOO_SLOW = "request.too_slow"
    REQUEST_UNSUPPORTED_MEDIA_TYPE = "request.unsupported_media_type"
    REQUEST_CONFLICT = "request.conflict"
    REQUEST_RANGE_NOT_SATISFIABLE = "request.range_not_satisfiable"
    RATE_LIMITED = "rate.limited"
    EVENTS_TOO_MANY_READERS = "events.too_many_readers"
    EVENTS_TOO_SLOW = "events.too_slow"
    SERVER_STOPPING = "server.stopping"
    TENANT_NOT_FOUND = "tenant.not_found"
    USER_NOT_FOUND = "user.not_found"
    API_KEY_NOT_FOUND = "api_key.not_found"
    DOCUMENT_NOT_FOUND = "document.not_found"
    VERSION_NOT_FOUND = "version.not_found"
    COLLECTION_NOT_FOUND = "collection.not_found"
    COLLECTION_EXISTS = "collection.exists"
    CONVERSATION_NOT_FOUND = "conversation.not_found"
    MESSAGE_NOT_FOUND = "message.not_found"
    MESSAGE_NOT_A_QUESTION = "message.not_a_question"
    ATTACHMENT_NOT_A_PICTURE = "attachment.not_a_picture"
    ATTACHMENT_NOT_READY = "attachment.not_ready"
    ATTACHMENT_UNREADABLE = "attachment.unreadable"
    MEMORY_NOT_FOUND = "memory.not_found"
    TASK_NOT_FOUND = "task.not_found"
    TASK_NOT_RETRYABLE = "task.not_retryable"
    TASK_NOT_CANCELLABLE = "task.not_cancellable"
    TASK_FENCED = "task.fenced"
    TASK_POISON = "task.poison"
    TASK_LEASE_LOST = "task.lease_lost"
    FILE_EMPTY = "file.empty"
    FILE_TOO_LARGE = "file.too_large"
    FILE_TYPE_NOT_ALLOWED = "file.type_not_allowed"
    FILE_NAME_INVALID = "file.name_invalid"
    FILE_INFECTED = "file.infected"
    FILE_SCAN_LIMIT = "file.scan_limit"
    FILE_UNREADABLE = "file.unreadable"
    FILE_MISSING = "file.missing"
    FILE_ENCRYPTED = "file.encrypted"
    FILE_TOO_COMPLEX = "file.too_complex"
    FILE_NO_TEXT = "file.no_text"
    SCAN_UNAVAILABLE = "scan.unavailable"
    UPLOAD_NOT_FOUND = "upload.not_found"
    UPLOAD_OFFSET_MISMATCH = "upload.offset_mismatch"
    UPLOAD_LOCKED = "upload.locked"
    UPLOAD_CHECKSUM_MISMATCH = "upload.checksum_mismatch"
    UPLOAD_TOO_MANY = "upload.too_many"
    UPLOAD_VERSION = "upload.version"
    BATCH_NOT_FOUND = "batch.not_found"
    BATCH_TOO_MANY = "batch.too_many"
    QUOTA_EXCEEDED = "quota.exceeded"
    BUDGET_EXCEEDED = "budget.exceeded"
    QUEUE_FULL = "queue.full"
    MODEL_UNAVAILABLE = "model.unavailable"
    MODEL_TIMEOUT = "model.timeout"
    MODEL_REFUSED = "model.refused"
    MODEL_BAD_ANSWER = "model.bad_answer"
    BLOB_UNAVAILABLE = "blob.unavailable"
    DATABASE_UNAVAILABLE = "database.unavailable"
    REDIS_UNAVAILABLE = "redis.unavailable"
    IDEMPOTENCY_CONFLICT = "idempotency.conflict"
    SERVER_UNAVAILABLE = "server.unavailable"
    SETTING_INVALID = "setting.invalid"
    INTERNAL = "internal.error"


TRANSIENT: frozenset[Code] = frozenset(
    {
        Code.SCAN_UNAVAILABLE,
        Code.MODEL_UNAVAILABLE,
        Code.BLOB_UNAVAILABLE,
        Code.DATABASE_UNAVAILABLE,
        Code.REDIS_UNAVAILABLE,
    }
)
"""A dependency is down: a task is held without using up its tries, a request answers 503."""

PERMANENT: frozenset[Code] = frozenset(
    {
        Code.FILE_EMPTY,
        Code.FILE_TYPE_NOT_ALLOWED,
        Code.FILE_INFECTED,
        Code.FILE_SCAN_LIMIT,
        Code.FILE_UNREADABLE,
        Code.FILE_MISSING,
        Code.FILE_ENCRYPTED,
        Code.FILE_TOO_COMPLEX,
        Code.FILE_NO_TEXT,
        Code.MODEL_REFUSED,
    }
)
"""The input itself is at fault: a task fails at once, a retry would say the same."""


class AppError(Exception):
    """An error that a caller may be told about.

    `detail` is shown to users: no secret, no other tenant's data, no stack. `retry_after` is in seconds.
    `errors` are `{"field", "message"}` items for requests that fail validation.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        retry_after: float | None = None,
        errors: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_after = retry_after
        self.errors = list(errors) if errors else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Keeps code and detail when the error crosses from a child process."""
        return (_rebuild, (self.code, self.detail, self.retry_after, self.errors))


def _rebuild(code: Code, detail: str, retry_after: float | None, errors: list[dict[str, Any]] | None) -> AppError:
    return AppError(code, detail, retry_after=retry_after, errors=errors)


class SettingsError(Exception):
    """A setting is missing, unknown or makes no sense. The message names it and says what to set."""
