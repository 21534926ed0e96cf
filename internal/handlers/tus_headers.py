"""The headers of tus: what a client says of its file in Upload-Metadata, and of its bytes in Upload-Checksum."""

import base64
import binascii
import hashlib
from datetime import UTC, datetime
from email.utils import format_datetime
from uuid import UUID

from internal.handlers.descriptions import described, read_tags
from internal.handlers.paging import read_id
from internal.handlers.requests import refuse_nul
from internal.services.documents import UploadRequest
from internal.services.pieces import ALGORITHMS, Checksum
from pkg.apperr import AppError, Code

MAX_LENGTH = 2**62
MAX_METADATA = 32 * 1024
METADATA, CHECKSUM = "Upload-Metadata", "Upload-Checksum"


def read_metadata(header: str) -> dict[str, str]:
    """`key base64,key base64`; a value may be missing. Raises REQUEST_INVALID."""
    if len(header) > MAX_METADATA or not header.isascii():
        raise invalid(METADATA, f"is longer than {MAX_METADATA} bytes, or not ASCII")
    found: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not key or key in found:
            raise invalid(METADATA, "has a pair without a key, or a key twice")
        found[key] = _text(key[:100], value)
    return found


def read_request(header: str) -> UploadRequest:
    """The file's name and what else an upload's form may say; keys that mean nothing here are left alone."""
    fields = read_metadata(header)
    if not fields.get("filename"):
        raise AppError(Code.FILE_NAME_INVALID, "Upload-Metadata has no filename; give the file a name.")
    return described(
        filename=fields["filename"],
        priority=fields.get("priority"),
        visibility=fields.get("visibility"),
        tags=read_tags(fields.get("tags", "")),
        collection=fields.get("collection") or None,
        document_id=_document(fields.get("document_id")),
    )


def read_checksum(header: str | None) -> Checksum | None:
    """`sha256 base64`. Raises REQUEST_INVALID for what can't be that."""
    if header is None:
        return None
    algorithm, _, encoded = header.partition(" ")
    if algorithm not in ALGORITHMS:
        raise invalid(CHECKSUM, f"names an algorithm that isn't one of {', '.join(ALGORITHMS)}")
    digest = _bytes(CHECKSUM, encoded)
    if len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise invalid(CHECKSUM, f"isn't a digest of {algorithm}")
    return Checksum(algorithm, digest)


def http_date(moment: datetime) -> str:
    """As RFC 9110 writes times."""
    return format_datetime(moment.astimezone(UTC), usegmt=True)


def invalid(field: str, what: str) -> AppError:
    """The answer for a header or a key that makes no sense."""
    return AppError(Code.REQUEST_INVALID, f"{field} {what}.", errors=[{"field": field, "message": what}])


def _document(text: str | None) -> UUID | None:
    return read_id(text, AppError(Code.DOCUMENT_NOT_FOUND, "There is no such document.")) if text else None


def _text(key: str, value: str) -> str:
    try:
        text = _bytes(f"{METADATA}: {key}", value).decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"{METADATA}: {key}", "is not UTF-8") from None
    if key != "filename":
        refuse_nul(text, key)
    return text


def _bytes(field: str, encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(field, "is not base64") from None
