"""/api/v1/uploads: resumable uploads by the tus protocol, version 1.0.0 (https://tus.io/protocols/resumable-upload)"""

from collections.abc import AsyncGenerator
from typing import Annotated, Any
from uuid import UUID

from litestar import HttpMethod, MediaType, Request, Response, delete, head, patch, post, route
from litestar.datastructures import MutableScopeHeaders
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException
from litestar.params import HeaderParameter
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from internal.entities.uploads import Upload
from internal.handlers import tus_headers
from internal.handlers.auth import Open, access
from internal.handlers.paging import Id, read_id
from internal.handlers.replays import STREAMED
from internal.handlers.schema import OFFSET_TYPE, FirstPieceOperation, PieceOperation
from internal.services.pieces import ALGORITHMS, Body
from internal.services.uploads import UploadService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

PATH = "/api/v1/uploads"
VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,termination,checksum"
OVERRIDES = ("PATCH", "DELETE")
EXPOSED = (
    "Location", "Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm",
    "Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Expires", "Dreamhub-Document-Id", "Dreamhub-Task-Id",
    "X-Request-ID", "Retry-After",
)  # fmt: skip
"""Headers that a page of another origin needs to read; for CORS."""

Version = Annotated[str | None, HeaderParameter(name="Tus-Resumable", description="1.0.0")]
Offset = Annotated[int, HeaderParameter(name="Upload-Offset", ge=0, le=tus_headers.MAX_LENGTH)]
Checksum = Annotated[
    str | None, HeaderParameter(name="Upload-Checksum", description="sha256 or sha1, a space, the digest in base64.")
]


@route(PATH, http_method=[HttpMethod.OPTIONS], opt=access(Open.ANYONE), status_code=204)
async def describe_uploads(max_file_bytes: NamedDependency[int]) -> Response[None]:
    """What this server knows of the protocol."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(max_file_bytes),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }
    return Response(None, status_code=204, headers=headers)


@post(PATH, opt=access(Role.MEMBER) | STREAMED, operation_class=FirstPieceOperation, request_max_body_size=None)
async def begin_upload(
    request: Request[Any, Any, Any],
    ctx: NamedDependency[Context],
    uploads: NamedDependency[UploadService],
    upload_length: Annotated[int, HeaderParameter(name="Upload-Length", ge=0, le=tus_headers.MAX_LENGTH)],
    upload_metadata: Annotated[
        str | None,
        HeaderParameter(
            name="Upload-Metadata",
            description="Pairs of a key and its value in base64, separated by commas: filename (needed), tags,"
            " collection, visibility, priority as in POST /api/v1/documents, or document_id to replace a document.",
        ),
    ] = None,
    upload_checksum: Checksum = None,
    tus_resumable: Version = None,
) -> Response[None]:
    """Announces a file, and may bring its first bytes; Location says where the others go."""
    _check_version(tus_resumable)
    for name in ("upload-defer-length", "upload-concat"):
        if name in request.headers:
            raise AppError(Code.REQUEST_INVALID, f"{name} belongs to an extension that this server doesn't have.")
    metadata = upload_metadata or ""
    carries = request.content_type[0] == OFFSET_TYPE
    if not carries and request.content_length:
        raise _wrong_type()
    checksum = tus_headers.read_checksum(upload_checksum)
    described = tus_headers.read_request(metadata)
    if carries:
        body = Body(chunks=_chunks(request), size=request.content_length, checksum=checksum)
        upload = await uploads.begin_with(ctx, upload_length, metadata, described, body)
    else:
        upload = await uploads.begin(ctx, upload_length, metadata, described)
    headers = {"Location": f"{PATH}/{upload.id}", **_headers(upload)}
    return Response(None, status_code=201, media_type=MediaType.TEXT, headers=headers)  # as JSON it would say null


@head(f"{PATH}/{{upload_id:str}}", opt=access(Role.MEMBER))
async def get_upload(
    ctx: NamedDependency[Context],
    uploads: NamedDependency[UploadService],
    upload_id: Id,
    tus_resumable: Version = None,
) -> Response[None]:
    """How many bytes are stored, and what became of a whole file."""
    _check_version(tus_resumable)
    upload = await uploads.get(ctx, _id(upload_id))
    headers = {"Upload-Length": str(upload.length), **_headers(upload)}
    if upload.metadata:
        headers["Upload-Metadata"] = upload.metadata
    return Response(None, status_code=200, headers=headers)


@patch(
    f"{PATH}/{{upload_id:str}}",
    opt=access(Role.MEMBER),
    operation_class=PieceOperation,
    status_code=204,
    request_max_body_size=None,
)
async def append_to_upload(
    request: Request[Any, Any, Any],
    ctx: NamedDependency[Context],
    uploads: NamedDependency[UploadService],
    upload_id: Id,
    upload_offset: Offset,
    upload_checksum: Checksum = None,
    tus_resumable: Version = None,
) -> Response[None]:
    """Takes the bytes from Upload-Offset on. The last of them make the document, which headers name."""
    _check_version(tus_resumable)
    if request.content_type[0] != OFFSET_TYPE:
        raise _wrong_type()
    checksum = tus_headers.read_checksum(upload_checksum)
    body = Body(chunks=_chunks(request), size=request.content_length, checksum=checksum)
    upload = await uploads.append(ctx, _id(upload_id), upload_offset, body)
    return Response(None, status_code=204, headers=_headers(upload))


@delete(f"{PATH}/{{upload_id:str}}", opt=access(Role.MEMBER))
async def remove_upload(
    ctx: NamedDependency[Context],
    uploads: NamedDependency[UploadService],
    upload_id: Id,
    tus_resumable: Version = None,
) -> None:
    """Forgets an upload and its bytes; a document that was made of it stays."""
    _check_version(tus_resumable)
    await uploads.remove(ctx, _id(upload_id))


class TusHeaders:
    """ASGI: names the version in every answer beneath PATH, and reads methods that a proxy wouldn't let through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Other paths pass."""
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(f"{PATH}/"):
            await self._app(scope, receive, send)
            return
        if scope["method"] == "POST":
            override = next((value for name, value in scope["headers"] if name == b"x-http-method-override"), b"")
            if override.decode("latin-1") in OVERRIDES:
                scope["method"] = override.decode("latin-1")  # type: ignore[typeddict-item]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableScopeHeaders.from_message(message)
                headers["Tus-Resumable"] = VERSION
                if message["status"] == 412:
                    headers["Tus-Version"] = VERSION
            await send(message)

        await self._app(scope, receive, sent)


async def _chunks(request: Request[Any, Any, Any]) -> AsyncGenerator[bytes]:
    """The body. Raises REQUEST_MALFORMED where it breaks off."""
    try:
        async for chunk in request.stream():
            yield chunk
    except InternalServerException:  # what Litestar says of a client that left
        raise AppError(Code.REQUEST_MALFORMED, "The connection ended before the request did.") from None


def _headers(upload: Upload) -> dict[str, str]:
    headers = {"Upload-Offset": str(upload.received), "Upload-Expires": tus_headers.http_date(upload.expires_at)}
    if upload.document_id is not None:
        headers["Dreamhub-Document-Id"] = str(upload.document_id)
    if upload.task_id is not None:
        headers["Dreamhub-Task-Id"] = str(upload.task_id)
    return headers


def _check_version(version: str | None) -> None:
    if version != VERSION:
        raise AppError(Code.UPLOAD_VERSION, f"This path speaks tus {VERSION}; send Tus-Resumable: {VERSION}.")


def _wrong_type() -> AppError:
    return AppError(Code.REQUEST_UNSUPPORTED_MEDIA_TYPE, f"Bytes of an upload come as Content-Type: {OFFSET_TYPE}.")


def _id(text: str) -> UUID:
    return read_id(text, AppError(Code.UPLOAD_NOT_FOUND, "There is no such upload; begin a new one."))
