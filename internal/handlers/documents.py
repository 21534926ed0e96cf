"""/api/v1/documents"""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import HttpMethod, Request, Response, delete, get, patch, post, route
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, QueryParameter

from internal.entities.documents import Chunk, Document, DocumentChanges, DocumentFilter, DocumentStatus, Visibility
from internal.entities.parsed import Location, Part
from internal.entities.versions import Version
from internal.handlers.auth import access
from internal.handlers.descriptions import described
from internal.handlers.downloads import download
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, bad_cursor, page_of, read_cursor, read_id
from internal.handlers.replays import AnsweredBeforeError, claim
from internal.handlers.schema import UploadOperation
from internal.handlers.tasks import TaskOut, task_out
from internal.handlers.uploads import FIELDS, FORM_BYTES, UploadForm
from internal.services.documents import Describe, DocumentService, UploadRequest, UploadResult
from internal.services.names import MAX_FILENAME, MAX_NAME, MAX_TAGS
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

MAX_ORDINAL = 2**31 - 1
Filename = Annotated[str, msgspec.Meta(max_length=MAX_FILENAME)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
SourceType = Literal["document", "photo", "audio", "video", "web", "email", "calendar"]


class DocumentOut(msgspec.Struct, frozen=True):
    """A document as its readers see it. `sha256` is in hexadecimal."""

    id: UUID
    filename: str
    media_type: str
    source_type: str
    status: DocumentStatus
    size: int
    sha256: str
    chunk_count: int
    created_at: datetime
    updated_at: datetime
    visibility: Visibility
    collection: str | None
    tags: list[str]
    metadata: dict[str, Any]
    owner_id: UUID
    version: int


class UploadOut(msgspec.Struct, frozen=True):
    """What an upload answers; `status` is the task's."""

    document_id: UUID
    task_id: UUID
    status: str
    duplicate: bool


class ChunkOut(msgspec.Struct, frozen=True):
    """A passage of a document, with the place where it begins.

    `parts` tells for each part where it stands; `start` counts characters of `text`, and a part reaches to the next.
    """

    id: UUID
    ordinal: int
    text: str
    tokens: int
    location: Location
    parts: tuple[Part, ...]


class DocumentChangesIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change. `name` (or `filename`, as answers call it) is the file's name; `collection` null takes the
    document out of its collection."""

    name: Filename | msgspec.UnsetType = msgspec.UNSET
    filename: Filename | msgspec.UnsetType = msgspec.UNSET
    tags: Annotated[list[Name], msgspec.Meta(max_length=MAX_TAGS)] | msgspec.UnsetType = msgspec.UNSET
    collection: Name | msgspec.UnsetType | None = msgspec.UNSET
    visibility: Visibility | msgspec.UnsetType = msgspec.UNSET


@post(
    "/api/v1/documents",
    opt=access(Role.MEMBER),
    operation_class=UploadOperation,
    request_max_body_size=None,
    status_code=202,
    responses={
        200: ResponseSpec(UploadOut, description="You had uploaded the same bytes before."),
        202: ResponseSpec(UploadOut, description="Its reading is queued."),
    },
)
async def upload_document(
    request: Request[Any, Any, Any],
    ctx: NamedDependency[Context],
    documents: NamedDependency[DocumentService],
    max_file_bytes: NamedDependency[int],
) -> Response[Any]:
    """Takes a file in and queues its reading: 202, or 200 when you had uploaded the same bytes before."""
    form, completed = await receive(request, max_file_bytes, FIELDS)
    try:
        result = await documents.upload(ctx, form.chunks(), completed)
    except AnsweredBeforeError as answered:
        return answered.response
    return upload_answer(result)


@get("/api/v1/documents", opt=access(Role.VIEWER))
async def list_documents(
    ctx: NamedDependency[Context],
    documents: NamedDependency[DocumentService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    status: Annotated[DocumentStatus | None, QueryParameter()] = None,
    source_type: Annotated[SourceType | None, QueryParameter()] = None,
    tag: Annotated[str | None, QueryParameter(max_length=MAX_NAME)] = None,
    collection_id: Annotated[UUID | None, QueryParameter()] = None,
    name: Annotated[
        str | None, QueryParameter(max_length=MAX_FILENAME, description="A part of the file's name.")
    ] = None,
) -> Page[DocumentOut]:
    """Documents that you may see, newest first."""
    found = await documents.list(
        ctx,
        limit=limit + 1,
        before=read_cursor(cursor, tuple[datetime, UUID]),
        narrow=DocumentFilter(collection_id=collection_id, tag=tag, source_type=source_type, status=status, name=name),
    )
    items, following = page_of(found, limit, lambda item: (item.created_at, item.id))
    return Page([document_out(item) for item in items], following)


@get("/api/v1/documents/{document_id:str}", opt=access(Role.VIEWER))
async def get_document(
    ctx: NamedDependency[Context], documents: NamedDependency[DocumentService], document_id: Id
) -> DocumentOut:
    """One document."""
    return document_out(await documents.get(ctx, document_id_of(document_id)))


@route(
    "/api/v1/documents/{document_id:str}/content",
    http_method=(HttpMethod.GET, HttpMethod.HEAD),
    opt=access(Role.VIEWER),
    media_type="application/octet-stream",
)
async def get_document_content(
    request: Request[Any, Any, Any],
    ctx: NamedDependency[Context],
    documents: NamedDependency[DocumentService],
    document_id: Id,
) -> Response[Any]:
    """The file as it was uploaded, whole or one range of it; always as an attachment, never rendered."""
    document, key = await documents.content(ctx, document_id_of(document_id))
    return await send_file(request, ctx, documents, document, key)


@get("/api/v1/documents/{document_id:str}/chunks", opt=access(Role.VIEWER))
async def list_document_chunks(
    ctx: NamedDependency[Context],
    documents: NamedDependency[DocumentService],
    document_id: Id,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[ChunkOut]:
    """The passages that were read from a document, in order."""
    after = read_cursor(cursor, int)
    if after is not None and not 0 <= after <= MAX_ORDINAL:
        raise bad_cursor()
    wanted = document_id_of(document_id)
    found = await documents.chunks(ctx, wanted, limit=limit + 1, after=-1 if after is None else after)
    items, following = page_of(found, limit, lambda item: item.ordinal)
    return Page([_chunk_out(item) for item in items], following)


@patch("/api/v1/documents/{document_id:str}", opt=access(Role.MEMBER))
async def update_document(
    ctx: NamedDependency[Context],
    documents: NamedDependency[DocumentService],
    document_id: Id,
    data: JSONBody[DocumentChangesIn],
) -> DocumentOut:
    """Changes name, tags, collection or visibility; what isn't named stays."""
    changes = DocumentChanges(
        filename=data.filename if data.name is msgspec.UNSET else data.name,
        tags=data.tags,
        collection=data.collection,
        visibility=data.visibility,
    )
    return document_out(await documents.update(ctx, document_id_of(document_id), changes))


@delete("/api/v1/documents/{document_id:str}", opt=access(Role.MEMBER), status_code=202)
async def delete_document(
    ctx: NamedDependency[Context], documents: NamedDependency[DocumentService], document_id: Id
) -> TaskOut:
    """Removes a document at once; the task that is answered removes its text, vectors and file."""
    return task_out(await documents.delete(ctx, document_id_of(document_id)))


async def receive(
    request: Request[Any, Any, Any], max_file_bytes: int, fields: frozenset[str]
) -> tuple[UploadForm, Describe]:
    """A form that has come as far as its file, and what to ask once the file's bytes are read."""
    media_type, options = request.content_type
    if media_type != "multipart/form-data":
        raise AppError(Code.REQUEST_UNSUPPORTED_MEDIA_TYPE, "Send the file as multipart/form-data.")
    declared = request.content_length
    form = UploadForm(request.stream(), options.get("boundary", ""), max_file_bytes=max_file_bytes, fields=fields)
    size = None if declared is None else max(0, declared - FORM_BYTES)
    if size is not None and size > max_file_bytes:
        raise AppError(Code.FILE_TOO_LARGE, f"The file is larger than the limit of {max_file_bytes // 1024**2} MB.")
    await form.begin()
    _described(form)  # fields that came before the file are refused before the file is read

    async def completed(sha256: bytes) -> UploadRequest:
        await form.finish()
        found = _described(form)
        await claim(request, sha256 + msgspec.json.encode(found))
        return found

    return form, completed


def _described(form: UploadForm) -> UploadRequest:
    return described(
        filename=form.filename,
        priority=form.field("priority"),
        tags=form.tags(),
        collection=form.field("collection"),
        visibility=form.field("visibility"),
    )


def document_id_of(text: str) -> UUID:
    """The id in a path. Raises DOCUMENT_NOT_FOUND for a malformed one."""
    return read_id(text, AppError(Code.DOCUMENT_NOT_FOUND, "There is no such document."))


def upload_answer(result: UploadResult) -> Response[UploadOut]:
    """Of what became a document or a version: 202, or 200 when the same bytes were there."""
    answer = UploadOut(result.document.id, result.task.id, result.task.status.value, result.duplicate)
    return Response(answer, status_code=200 if result.duplicate else 202)


async def send_file(
    request: Request[Any, Any, Any], ctx: Context, documents: DocumentService, file: Document | Version, key: str
) -> Response[Any]:
    """A stored file, whole or one range of it. Raises FILE_MISSING when its object is gone."""
    await documents.require(ctx, key)
    return download(request, file, lambda start, end: documents.read(ctx, key, start=start, end=end))


def document_out(document: Document) -> DocumentOut:
    """Without what only the inside needs."""
    return DocumentOut(
        id=document.id,
        filename=document.filename,
        media_type=document.media_type,
        source_type=document.source_type,
        status=document.status,
        size=document.size,
        sha256=document.sha256.hex(),
        chunk_count=document.chunk_count,
        created_at=document.created_at,
        updated_at=document.updated_at,
        visibility=document.visibility,
        collection=document.collection,
        tags=document.tags,
        metadata=document.metadata,
        owner_id=document.owner_id,
        version=document.version,
    )


def _chunk_out(chunk: Chunk) -> ChunkOut:
    parts = chunk.parts or (Part(start=0, location=chunk.location),)
    return ChunkOut(chunk.id, chunk.ordinal, chunk.text, chunk.tokens, chunk.location, parts)
