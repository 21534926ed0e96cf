"""/api/v1/documents/{id}/content (PUT) and /api/v1/documents/{id}/versions"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import HttpMethod, Request, Response, get, post, put, route
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter

from internal.entities.versions import Version, VersionStatus
from internal.handlers.auth import access
from internal.handlers.documents import UploadOut, document_id_of, receive, send_file, upload_answer
from internal.handlers.paging import Id, Page
from internal.handlers.schema import ReplacementOperation
from internal.services.documents import DocumentService
from internal.services.versions import VersionService
from pkg.ctxutil import Context, Role

MAX_DIGITS = 9
REPLACEMENT_FIELDS = frozenset({"priority"})
Number = Annotated[str, PathParameter(schema_extra={"type": "integer", "minimum": 1})]
"""Read by `_number`, so that a malformed one is answered like one that doesn't exist."""


class VersionErrorOut(msgspec.Struct, frozen=True):
    """Why a version could not be read."""

    code: str
    message: str


class VersionOut(msgspec.Struct, frozen=True):
    """One version; `created_by` is the user who sent it, `sha256` is in hexadecimal."""

    number: int
    status: VersionStatus
    filename: str
    media_type: str
    size: int
    sha256: str
    created_at: datetime
    created_by: UUID
    error: VersionErrorOut | None


@put(
    "/api/v1/documents/{document_id:str}/content",
    opt=access(Role.MEMBER),
    operation_class=ReplacementOperation,
    request_max_body_size=None,
    status_code=202,
    responses={200: ResponseSpec(UploadOut, description="The newest version has the same bytes.")},
)
async def replace_document_content(
    request: Request[Any, Any, Any],
    ctx: NamedDependency[Context],
    versions: NamedDependency[VersionService],
    max_file_bytes: NamedDependency[int],
    document_id: Id,
) -> Response[UploadOut]:
    """Takes in the document's next version: 202, or 200 when it is the newest one already. Until it was read the old
    one answers."""
    wanted = document_id_of(document_id)
    await versions.check(ctx, wanted)
    form, completed = await receive(request, max_file_bytes, REPLACEMENT_FIELDS)
    result = await versions.replace(ctx, wanted, form.chunks(), completed)
    return upload_answer(result)


@get("/api/v1/documents/{document_id:str}/versions", opt=access(Role.VIEWER))
async def list_document_versions(
    ctx: NamedDependency[Context], versions: NamedDependency[VersionService], document_id: Id
) -> Page[VersionOut]:
    """A document's versions that are kept, the newest first; all of them on one page."""
    return Page([_version_out(item) for item in await versions.list(ctx, document_id_of(document_id))], None)


@route(
    "/api/v1/documents/{document_id:str}/versions/{number:str}/content",
    http_method=(HttpMethod.GET, HttpMethod.HEAD),
    opt=access(Role.VIEWER),
    media_type="application/octet-stream",
)
async def get_document_version_content(
    request: Request[Any, Any, Any],
    ctx: NamedDependency[Context],
    documents: NamedDependency[DocumentService],
    versions: NamedDependency[VersionService],
    document_id: Id,
    number: Number,
) -> Response[Any]:
    """The file of one version, as `GET …/content` sends that of the document."""
    found = await versions.get(ctx, document_id_of(document_id), _number(number))
    return await send_file(request, ctx, documents, found, found.blob_key)


@post(
    "/api/v1/documents/{document_id:str}/versions/{number:str}/restore",
    opt=access(Role.MEMBER),
    status_code=202,
    responses={200: ResponseSpec(UploadOut, description="The newest version has the same bytes.")},
)
async def restore_document_version(
    ctx: NamedDependency[Context], versions: NamedDependency[VersionService], document_id: Id, number: Number
) -> Response[UploadOut]:
    """Reads an earlier version again, as the next one: 202, or 200 when the newest has the same bytes."""
    result = await versions.restore(ctx, document_id_of(document_id), _number(number))
    return upload_answer(result)


def _number(text: str) -> int:
    """Nought for what is no number: no version has it."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else 0


def _version_out(version: Version) -> VersionOut:
    error = (
        None
        if version.status is not VersionStatus.FAILED
        else VersionErrorOut(
            version.error_code or "task.cancelled", version.error_message or "Its reading was cancelled."
        )
    )
    return VersionOut(
        number=version.number,
        status=version.status,
        filename=version.filename,
        media_type=version.media_type,
        size=version.size,
        sha256=version.sha256.hex(),
        created_at=version.created_at,
        created_by=version.created_by,
        error=error,
    )
