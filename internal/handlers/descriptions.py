"""What comes with a file, whichever way the file comes: texts of a form or of a header, as what they mean."""

from uuid import UUID

import msgspec

from internal.entities.documents import Visibility
from internal.services.documents import QUEUES, UploadRequest
from pkg.apperr import AppError, Code


def read_tags(text: str) -> list[str]:
    """From a JSON list of texts, as programs send it, or from texts separated by commas, as people write it."""
    if text.lstrip().startswith("["):
        try:
            return [tag for tag in msgspec.json.decode(text, type=list[str]) if tag.strip()]
        except (msgspec.DecodeError, UnicodeError):
            pass  # a tag may begin with a bracket
    return [tag for tag in text.split(",") if tag.strip()]


def described(
    *,
    filename: str,
    priority: str | None,
    tags: list[str],
    collection: str | None,
    visibility: str | None,
    document_id: UUID | None = None,
) -> UploadRequest:
    """Fills in what is missing or empty. Raises REQUEST_INVALID for words that mean nothing."""
    seen_by = visibility or Visibility.TENANT.value
    if priority and priority not in QUEUES:
        raise _one_of("priority", tuple(QUEUES))
    if seen_by not in list(Visibility):
        raise _one_of("visibility", tuple(Visibility))
    return UploadRequest(
        filename=filename,
        priority=priority or None,
        tags=tags,
        collection=collection,
        visibility=Visibility(seen_by),
        document_id=document_id,
    )


def _one_of(field: str, known: tuple[str, ...]) -> AppError:
    message = f"must be one of {', '.join(known)}"
    return AppError(Code.REQUEST_INVALID, f"{field} {message}.", errors=[{"field": field, "message": message}])
