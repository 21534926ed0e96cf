"""/api/v1/batches: many files, an archive, or one order for many tasks or documents."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from internal.entities.batches import Batch, BatchItem, BatchKind, BatchStatus, ItemState
from internal.entities.documents import DocumentFilter, DocumentStatus
from internal.entities.tasks import Queue, TaskFilter, TaskStatus
from internal.handlers.auth import access
from internal.handlers.descriptions import described
from internal.handlers.documents import Filename, SourceType
from internal.handlers.documents import Name as TagName
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, bad_cursor, page_of, read_cursor, read_id
from internal.handlers.replays import CLAIMED, AnsweredBeforeError, claim
from internal.handlers.requests import JSON_LIMIT, JSON_TYPES, decode
from internal.handlers.schema import BatchOperation
from internal.handlers.tasks import Ids, Name, TaskError
from internal.handlers.uploads import FILE, FORM_BYTES, MAX_PARTS, UploadForm
from internal.services.batches import BatchService, Deletion, Incoming
from internal.services.documents import UploadRequest
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

ARCHIVE = "archive"
MAX_ORDINAL = 2**31 - 1


class BatchOut(msgspec.Struct, frozen=True):
    """A batch in numbers. `progress` goes from 0 to 1; `task_id` is of the task that does the batch's own work."""

    id: UUID
    kind: BatchKind
    status: BatchStatus
    total: int
    waiting: int
    running: int
    succeeded: int
    failed: int
    dead: int
    cancelled: int
    refused: int
    progress: float
    task_id: UUID | None
    error: TaskError | None
    created_at: datetime
    finished_at: datetime | None


class BatchItemOut(msgspec.Struct, frozen=True):
    """One file, document or task of a batch. `folder` is where in its archive the file lay; `error` is why it is
    refused, and what is wrong with a task its own page tells."""

    ordinal: int
    status: ItemState
    filename: str | None
    folder: str | None
    document_id: UUID | None
    task_id: UUID | None
    duplicate: bool
    error: TaskError | None


class BatchWithItems(BatchOut, frozen=True):
    """A batch that was just begun, with what became of each file."""

    items: list[BatchItemOut]


class RetriedIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which failed and dead tasks, of those that you may see: all that fulfil each condition given."""

    status: Literal["failed", "dead"] | None = None
    queue: Queue | None = None
    kind: Name | None = None
    error_code: Name | None = None
    document_ids: Ids | None = None
    ids: Ids | None = None


class DeletedIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which documents, of those that you may delete: all that fulfil each condition given."""

    collection_id: UUID | None = None
    tag: TagName | None = None
    source_type: SourceType | None = None
    status: DocumentStatus | None = None
    name: Filename | None = None


class RetryIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="action", tag="retry"):
    """Failed and dead tasks are queued again."""

    filter: RetriedIn = RetriedIn()


class DeleteIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="action", tag="delete"):
    """Documents are deleted: these, or those that fit."""

    document_ids: Ids | None = None
    filter: DeletedIn | None = None


@post(
    "/api/v1/batches",
    opt=access(Role.MEMBER) | CLAIMED,
    operation_class=BatchOperation,
    request_max_body_size=None,
    status_code=202,
    responses={202: ResponseSpec(BatchWithItems, description="The batch has begun.")},
)
async def add_batch(
    request: Request[Any, Any, Any], ctx: NamedDependency[Context], batches: NamedDependency[BatchService]
) -> Response[Any]:
    """Takes many files in, each answered for itself; or an archive, which a worker expands; or begins to retry tasks or
    to delete documents. A form's fields come with every file; without a priority it is batch."""
    media_type, options = request.content_type
    try:
        if media_type == "multipart/form-data":
            batch = await _receive(request, ctx, batches, options.get("boundary", ""))
        elif media_type in JSON_TYPES:
            batch = await _order(request, ctx, batches)
        else:
            raise AppError(
                Code.REQUEST_UNSUPPORTED_MEDIA_TYPE, "Send files as multipart/form-data, an order as application/json."
            )
    except AnsweredBeforeError as answered:
        return answered.response
    items = await batches.items(ctx, batch.id, state=None, after=-1, limit=batches.max_files)
    out = BatchWithItems(**msgspec.structs.asdict(batch_out(batch)), items=[_item_out(item) for item in items])
    return Response(out, status_code=202)


@get("/api/v1/batches", opt=access(Role.VIEWER))
async def list_batches(
    ctx: NamedDependency[Context],
    batches: NamedDependency[BatchService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[BatchOut]:
    """Batches that you began, newest first."""
    found = await batches.list(ctx, limit=limit + 1, before=read_cursor(cursor, UUID))
    items, following = page_of(found, limit, lambda item: item.id)
    return Page([batch_out(item) for item in items], following)


@get("/api/v1/batches/{batch_id:str}", opt=access(Role.VIEWER))
async def get_batch(ctx: NamedDependency[Context], batches: NamedDependency[BatchService], batch_id: Id) -> BatchOut:
    """How far a batch is."""
    return batch_out(await batches.get(ctx, _batch_id_of(batch_id)))


@get("/api/v1/batches/{batch_id:str}/items", opt=access(Role.VIEWER))
async def list_batch_items(
    ctx: NamedDependency[Context],
    batches: NamedDependency[BatchService],
    batch_id: Id,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    status: Annotated[ItemState | None, QueryParameter()] = None,
) -> Page[BatchItemOut]:
    """A batch's files, documents or tasks, in order."""
    after = read_cursor(cursor, int)
    if after is not None and not 0 <= after <= MAX_ORDINAL:
        raise bad_cursor()
    wanted = _batch_id_of(batch_id)
    found = await batches.items(ctx, wanted, state=status, after=-1 if after is None else after, limit=limit + 1)
    items, following = page_of(found, limit, lambda item: item.ordinal)
    return Page([_item_out(item) for item in items], following)


@post("/api/v1/batches/{batch_id:str}/cancel", opt=access(Role.MEMBER), status_code=202)
async def cancel_batch(ctx: NamedDependency[Context], batches: NamedDependency[BatchService], batch_id: Id) -> BatchOut:
    """Cancels whatever of a batch isn't done, within seconds; removals of deleted documents go on."""
    return batch_out(await batches.cancel(ctx, _batch_id_of(batch_id)))


@post("/api/v1/batches/{batch_id:str}/retry", opt=access(Role.MEMBER), status_code=202)
async def retry_batch(ctx: NamedDependency[Context], batches: NamedDependency[BatchService], batch_id: Id) -> BatchOut:
    """Queues a batch's failed and dead tasks again."""
    return batch_out(await batches.retry_failed(ctx, _batch_id_of(batch_id)))


async def _receive(request: Request[Any, Any, Any], ctx: Context, batches: BatchService, boundary: str) -> Batch:
    if (request.content_length or 0) > batches.max_bytes + FORM_BYTES:
        raise AppError(Code.REQUEST_TOO_LARGE, f"A request takes {batches.max_bytes // 1024**2} MB; send several.")
    form = UploadForm(
        request.stream(),
        boundary,
        max_file_bytes=batches.max_bytes,
        files=frozenset({FILE, ARCHIVE}),
        max_parts=batches.max_files + MAX_PARTS,
    )

    async def files() -> AsyncIterator[Incoming]:
        count = 0
        while await form.following():
            count += 1
            if count > batches.max_files:
                raise AppError(
                    Code.REQUEST_TOO_LARGE,
                    f"A request takes {batches.max_files} files; send the others in another one.",
                )
            yield Incoming(form.filename, form.chunks(), form.part == ARCHIVE)
            await form.skip()
        if count == 0:
            raise AppError(Code.REQUEST_INVALID, "There is no file; send parts named file, or one named archive.")

    async def completed(digest: bytes) -> UploadRequest:
        found = described(
            filename="",
            priority=form.field("priority"),
            tags=form.tags(),
            collection=form.field("collection"),
            visibility=form.field("visibility"),
        )
        await claim(request, digest + msgspec.json.encode(found))
        return found

    return await batches.upload(ctx, files(), completed)


async def _order(request: Request[Any, Any, Any], ctx: Context, batches: BatchService) -> Batch:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > JSON_LIMIT:
            raise AppError(Code.REQUEST_TOO_LARGE, "The request's body is larger than this path takes.")
    order = decode(bytes(body), RetryIn | DeleteIn)
    if isinstance(order, DeleteIn) and (order.document_ids is None) == (order.filter is None):
        raise AppError(
            Code.REQUEST_INVALID, "Say which documents: by document_ids or by filter; an empty filter chooses all."
        )
    await claim(request, bytes(body))
    if isinstance(order, DeleteIn):
        narrow = DocumentFilter(**msgspec.structs.asdict(order.filter)) if order.filter else DocumentFilter()
        return await batches.delete(ctx, Deletion(document_ids=order.document_ids, narrow=narrow))
    chosen = msgspec.structs.asdict(order.filter)
    status = chosen.pop("status")
    return await batches.retry(
        ctx, TaskFilter(statuses=None if status is None else frozenset({TaskStatus(status)}), **chosen)
    )


def _batch_id_of(text: str) -> UUID:
    return read_id(text, AppError(Code.BATCH_NOT_FOUND, "There is no such batch."))


def batch_out(batch: Batch) -> BatchOut:
    """As its user sees it."""
    fields = msgspec.structs.asdict(batch)
    code, message = fields.pop("error_code"), fields.pop("error_message")
    fields["progress"] = round(batch.progress, 4)
    return BatchOut(**fields, error=TaskError(code, message or "") if code else None)


def _item_out(item: BatchItem) -> BatchItemOut:
    return BatchItemOut(
        ordinal=item.ordinal,
        status=item.state,
        filename=item.filename,
        folder=item.folder,
        document_id=item.document_id,
        task_id=item.task_id,
        duplicate=item.duplicate,
        error=TaskError(item.error_code, item.error_message or "") if item.error_code else None,
    )
