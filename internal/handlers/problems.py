"""Errors to answers: one mapping, `application/problem+json` (RFC 9457). No stack, no SQL, no secret in any of them."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from litestar.exceptions import HTTPException, InternalServerException, ValidationException
from litestar.plugins.problem_details import ProblemDetailsException

from pkg import ctxutil, logger
from pkg.apperr import AppError, Code

STATUS: Mapping[Code, int] = {
    Code.AUTH_MISSING_TOKEN: 401,
    Code.AUTH_INVALID_TOKEN: 401,
    Code.AUTH_BAD_CREDENTIALS: 401,
    Code.AUTH_TENANT_REQUIRED: 409,
    Code.AUTH_FORBIDDEN: 403,
    Code.AUTH_CSRF: 403,
    Code.REQUEST_MALFORMED: 400,
    Code.REQUEST_INVALID: 400,
    Code.REQUEST_NOT_FOUND: 404,
    Code.REQUEST_METHOD_NOT_ALLOWED: 405,
    Code.REQUEST_TOO_LARGE: 413,
    Code.REQUEST_TOO_SLOW: 408,
    Code.REQUEST_UNSUPPORTED_MEDIA_TYPE: 415,
    Code.REQUEST_CONFLICT: 409,
    Code.REQUEST_RANGE_NOT_SATISFIABLE: 416,
    Code.RATE_LIMITED: 429,
    Code.EVENTS_TOO_MANY_READERS: 429,
    Code.EVENTS_TOO_SLOW: 408,
    Code.SERVER_STOPPING: 503,
    Code.TENANT_NOT_FOUND: 404,
    Code.USER_NOT_FOUND: 404,
    Code.API_KEY_NOT_FOUND: 404,
    Code.DOCUMENT_NOT_FOUND: 404,
    Code.VERSION_NOT_FOUND: 404,
    Code.COLLECTION_NOT_FOUND: 404,
    Code.COLLECTION_EXISTS: 409,
    Code.CONVERSATION_NOT_FOUND: 404,
    Code.MESSAGE_NOT_FOUND: 404,
    Code.MESSAGE_NOT_A_QUESTION: 409,
    Code.ATTACHMENT_NOT_A_PICTURE: 422,
    Code.ATTACHMENT_NOT_READY: 409,
    Code.ATTACHMENT_UNREADABLE: 422,
    Code.MEMORY_NOT_FOUND: 404,
    Code.TASK_NOT_FOUND: 404,
    Code.TASK_NOT_RETRYABLE: 409,
    Code.TASK_NOT_CANCELLABLE: 409,
    Code.TASK_FENCED: 409,
    Code.TASK_POISON: 409,
    Code.TASK_LEASE_LOST: 409,
    Code.FILE_EMPTY: 422,
    Code.FILE_TOO_LARGE: 413,
    Code.FILE_TYPE_NOT_ALLOWED: 415,
    Code.FILE_NAME_INVALID: 422,
    Code.FILE_INFECTED: 422,
    Code.FILE_SCAN_LIMIT: 422,
    Code.FILE_UNREADABLE: 422,
    Code.FILE_MISSING: 410,
    Code.FILE_ENCRYPTED: 422,
    Code.FILE_TOO_COMPLEX: 422,
    Code.FILE_NO_TEXT: 422,
    Code.SCAN_UNAVAILABLE: 503,
    Code.UPLOAD_NOT_FOUND: 404,
    Code.UPLOAD_OFFSET_MISMATCH: 409,
    Code.UPLOAD_LOCKED: 423,
    Code.UPLOAD_CHECKSUM_MISMATCH: 460,
    Code.UPLOAD_TOO_MANY: 429,
    Code.UPLOAD_VERSION: 412,
    Code.BATCH_NOT_FOUND: 404,
    Code.BATCH_TOO_MANY: 429,
    Code.QUOTA_EXCEEDED: 402,
    Code.BUDGET_EXCEEDED: 402,
    Code.QUEUE_FULL: 429,
    Code.MODEL_UNAVAILABLE: 503,
    Code.MODEL_TIMEOUT: 504,
    Code.MODEL_REFUSED: 502,
    Code.MODEL_BAD_ANSWER: 502,
    Code.BLOB_UNAVAILABLE: 503,
    Code.DATABASE_UNAVAILABLE: 503,
    Code.REDIS_UNAVAILABLE: 503,
    Code.SERVER_UNAVAILABLE: 503,
    Code.IDEMPOTENCY_CONFLICT: 422,
    Code.SETTING_INVALID: 500,
    Code.INTERNAL: 500,
}

OF_STATUS: Mapping[int, Code] = {
    401: Code.AUTH_MISSING_TOKEN,
    403: Code.AUTH_FORBIDDEN,
    404: Code.REQUEST_NOT_FOUND,
    405: Code.REQUEST_METHOD_NOT_ALLOWED,
    413: Code.REQUEST_TOO_LARGE,
    415: Code.REQUEST_UNSUPPORTED_MEDIA_TYPE,
    429: Code.RATE_LIMITED,
}
TITLE: Mapping[int, str] = {460: "Checksum Mismatch"}
"""Of statuses that HTTP itself doesn't know; this one is tus's."""
DETAIL: Mapping[int, str] = {
    404: "There is nothing at this path; /docs lists what there is.",
    405: "This path doesn't know this method; see the Allow header.",
    413: "The request's body is larger than this path takes.",
}
DEFAULT_RETRY_SECONDS = 5.0
GONE = "client disconnected prematurely"  # what Litestar says of a reader that left


def to_problem(error: Exception, headers: Mapping[str, str] | None = None) -> ProblemDetailsException:
    """Any exception as an answer, which carries `headers` where it is a caller's fault.

    What isn't expected is logged with its stack and answered without a word of it.
    """
    if isinstance(error, AppError) and STATUS[error.code] < HTTPStatus.INTERNAL_SERVER_ERROR:
        return _problem(error, headers)
    if isinstance(error, AppError) and STATUS[error.code] != HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.get("http").warning("a dependency failed", code=error.code.value, cause=repr(error.__cause__))
        return _problem(error)
    if isinstance(error, ValidationException):
        return _problem(_invalid(error))
    if isinstance(error, InternalServerException) and error.detail == GONE:
        return _problem(AppError(Code.REQUEST_MALFORMED, "The connection ended before the request did."))
    if isinstance(error, HTTPException) and error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        code = OF_STATUS.get(error.status_code, Code.REQUEST_MALFORMED)
        detail = DETAIL.get(error.status_code) or error.detail
        return _problem(AppError(code, detail), headers=error.headers)
    logger.get("http").error("request failed", exc_info=error)
    return _problem(
        AppError(Code.INTERNAL, "Something went wrong here; the operator's log has it under this request_id.")
    )


def broken_off(what: str, error: Exception, advice: str) -> AppError:
    """What is told of an error that nobody expects when the answer's status is sent already: `advice`, and no word of
    the error, which is logged with its stack as `what`."""
    logger.get("http").error(what, exc_info=error)
    return AppError(Code.INTERNAL, advice)


def body_of(error: AppError) -> dict[str, Any]:
    """The fields of a problem, for answers and for `event: error` in streams."""
    status = STATUS[error.code]
    body: dict[str, Any] = {
        "type": f"/docs#{error.code.value}",
        "title": TITLE.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": error.detail,
        "code": error.code.value,
        "request_id": ctxutil.request_id(),
    }
    if error.errors:
        body["errors"] = error.errors
    return body


def _problem(error: AppError, headers: Mapping[str, str] | None = None) -> ProblemDetailsException:
    body = body_of(error)
    status = body.pop("status")
    return ProblemDetailsException(
        status_code=status,
        type_=body.pop("type"),
        title=body.pop("title"),
        detail=body.pop("detail"),
        headers={**(headers or {}), **_headers(error, status)},
        extra=body,
    )


def _headers(error: AppError, status: int) -> dict[str, str]:
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) or error.retry_after is not None:
        wait = DEFAULT_RETRY_SECONDS if error.retry_after is None else error.retry_after
        return {"Retry-After": str(max(1, math.ceil(wait)))}
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        # What the client still has to send is not worth reading.
        return {"Connection": "close"}
    return {}


def _invalid(error: ValidationException) -> AppError:
    """Litestar's report on parameters, as `errors` of ours."""
    items: list[Any] = error.extra if isinstance(error.extra, list) else []
    errors = [{"field": str(item.get("key", "")), "message": str(item.get("message", ""))} for item in items]
    if [item["field"] for item in errors] == ["data"]:
        return AppError(Code.REQUEST_MALFORMED, "This path needs a JSON object as its body.")
    named = "; ".join(f"{item['field']}: {item['message']}" for item in errors)
    return AppError(
        Code.REQUEST_INVALID, f"The request can't be taken: {named or error.detail}.", errors=errors or None
    )
