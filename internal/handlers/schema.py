"""The OpenAPI document: Litestar's, with our errors, credentials and upload form written in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any

from litestar import HttpMethod, Litestar
from litestar.handlers import HTTPRouteHandler, WebsocketRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    RequestBody,
    Schema,
    SecurityScheme,
)
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.params import QueryParameter
from litestar.routes import WebSocketRoute
from litestar.types import ControllerRouterHandler, Method

from internal.entities.documents import DocumentStatus
from internal.entities.tasks import Queue
from internal.handlers.auth import Open
from pkg.apperr import Code

PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `code` is stable; `detail` is for people.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": [code.value for code in Code]},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same request with the same key, within 24 hours, is done once.",
    "schema": {"type": "string", "maxLength": 255},
}
WRITES = ("post",)
OFFSET_TYPE = "application/offset+octet-stream"


def _fields() -> dict[str, Schema]:
    """What may come with a file in a form."""
    return {
        "priority": _priority(),
        "tags": Schema(type=OpenAPIType.STRING, description="Separated by commas, a JSON list, or the field repeated."),
        "collection": Schema(type=OpenAPIType.STRING, description="Its name; made if need be."),
        "visibility": Schema(type=OpenAPIType.STRING, enum=["tenant", "private"]),
    }


def _priority() -> Schema:
    return Schema(type=OpenAPIType.STRING, enum=["high", "normal", "batch"])


def _form(**fields: Schema) -> RequestBody:
    """A form with one file, and what may come with it."""
    file = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
    schema = Schema(type=OpenAPIType.OBJECT, required=["file"], properties={"file": file, **fields})
    return RequestBody(required=True, content={"multipart/form-data": OpenAPIMediaType(schema=schema)})


@dataclass
class UploadOperation(Operation):
    """The form of an upload, which the handler reads by itself."""

    def __post_init__(self) -> None:
        self.request_body = _form(**_fields())


@dataclass
class BatchOperation(Operation):
    """A form of many files or of one archive, or an order in JSON; the handler reads both by itself."""

    def __post_init__(self) -> None:
        binary = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
        form = Schema(
            type=OpenAPIType.OBJECT,
            properties={
                "file": Schema(type=OpenAPIType.ARRAY, items=binary, description="The part repeated for each file."),
                "archive": Schema(
                    type=OpenAPIType.STRING,
                    format=OpenAPIFormat.BINARY,
                    description="A ZIP, TAR, TAR.GZ, TAR.BZ2 or TAR.XZ, without any file beside it.",
                ),
                **_fields(),
            },
        )
        self.request_body = RequestBody(
            required=True,
            content={
                "multipart/form-data": OpenAPIMediaType(schema=form),
                "application/json": OpenAPIMediaType(schema=Schema(one_of=[_retry_order(), _delete_order()])),
            },
        )


def _retry_order() -> Schema:
    text = Schema(type=OpenAPIType.STRING)
    return Schema(
        type=OpenAPIType.OBJECT,
        required=["action"],
        properties={
            "action": Schema(type=OpenAPIType.STRING, enum=["retry"]),
            "filter": Schema(
                type=OpenAPIType.OBJECT,
                description="Which failed and dead tasks; without it all that you may see.",
                properties={
                    "status": Schema(type=OpenAPIType.STRING, enum=["failed", "dead"]),
                    "queue": Schema(type=OpenAPIType.STRING, enum=[queue.value for queue in Queue]),
                    "kind": text,
                    "error_code": text,
                    "document_ids": _ids(),
                    "ids": _ids(),
                },
            ),
        },
    )


def _delete_order() -> Schema:
    text = Schema(type=OpenAPIType.STRING)
    return Schema(
        type=OpenAPIType.OBJECT,
        required=["action"],
        description="Either the documents or a filter.",
        properties={
            "action": Schema(type=OpenAPIType.STRING, enum=["delete"]),
            "document_ids": _ids(),
            "filter": Schema(
                type=OpenAPIType.OBJECT,
                description="Which of the documents that you may delete; an empty object chooses them all.",
                properties={
                    "collection_id": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.UUID),
                    "tag": text,
                    "source_type": text,
                    "status": Schema(type=OpenAPIType.STRING, enum=[status.value for status in DocumentStatus]),
                    "name": Schema(type=OpenAPIType.STRING, description="A part of the file's name."),
                },
            ),
        },
    )


def _ids() -> Schema:
    return Schema(
        type=OpenAPIType.ARRAY,
        items=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.UUID),
        min_items=1,
        max_items=1000,
    )


@dataclass
class ReplacementOperation(Operation):
    """The form of a document's next version."""

    def __post_init__(self) -> None:
        self.request_body = _form(priority=_priority())


@dataclass
class PieceOperation(Operation):
    """The bytes of a resumable upload, which the handler reads by itself."""

    def __post_init__(self) -> None:
        self.request_body = _bytes_of_file(required=True)


@dataclass
class FirstPieceOperation(Operation):
    """The same where the bytes may come later."""

    def __post_init__(self) -> None:
        self.request_body = _bytes_of_file(required=False)


@dataclass
class ExportOperation(Operation):
    """An answer in either of two forms."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse):
            answer.content = {
                "text/markdown": OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING)),
                "application/json": OpenAPIMediaType(schema=Schema(type=OpenAPIType.OBJECT)),
            }


def _bytes_of_file(*, required: bool) -> RequestBody:
    schema = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
    return RequestBody(required=required, content={OFFSET_TYPE: OpenAPIMediaType(schema=schema)})


def describe(handlers: Sequence[ControllerRouterHandler], *, version: str, **options: Any) -> dict[str, Any]:
    """The document for these handlers. An application of its own makes it, so that none of its routes is served."""
    app = Litestar(
        handlers,
        logging_config=None,  # else it takes the root logger over, and no line is JSON any more
        openapi_config=OpenAPIConfig(
            title="DreamHub",
            version=version,
            description="Documents in, answers with citations out. Errors are application/problem+json.",
            use_handler_docstrings=True,
            operation_id_creator=_operation_id,
            components=Components(
                security_schemes={
                    "bearer": SecurityScheme(
                        type="http", scheme="bearer", description="An API key (dh_…) or an access token."
                    )
                }
            ),
        ),
        **options,
    )
    document = app.openapi_schema.to_schema()
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = PROBLEM
    for name, schema in schemas.items():
        if name.endswith("In"):
            schema["additionalProperties"] = False  # as `forbid_unknown_fields` has it, which Litestar doesn't tell
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            for method in handler.http_methods:
                operation = document["paths"].get(route.path_format, {}).get(method.lower())
                if operation is not None:
                    _complete(operation, handler.opt, method.lower())
    document["x-websockets"] = {
        route.path_format: _socket(route.route_handler) for route in app.routes if isinstance(route, WebSocketRoute)
    }
    return document


def _socket(handler: WebsocketRouteHandler) -> dict[str, Any]:
    """OpenAPI knows no WebSockets: what an operation would say of one, where no generator takes it for one."""
    query = [
        {"name": name, "in": "query", "description": parameter.kwarg_definition.description}
        for name, parameter in handler.parsed_fn_signature.parameters.items()
        if isinstance(parameter.kwarg_definition, QueryParameter)
    ]
    return {
        "description": cleandoc(handler.fn.__doc__ or ""),
        "x-role": str(handler.opt["access"]),
        "parameters": query,
        "message": {"$ref": "#/components/schemas/NoticeOut"},
    }


def _operation_id(handler: HTTPRouteHandler, method: Method, _path: Sequence[object]) -> str:
    return f"head_{handler.handler_name}" if method == HttpMethod.HEAD else handler.handler_name


def _complete(operation: dict[str, Any], opt: Mapping[str, Any], method: str) -> None:
    needed = opt.get("access")
    operation["security"] = [] if needed is Open.ANYONE else [{"bearer": []}]
    responses = operation["responses"]
    for status in [status for status in responses if status.startswith(("4", "5"))]:
        del responses[status]
    if "204" in responses:
        responses["204"].pop("content", None)
    responses["default"] = {
        "description": "An error.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    replayed = not (opt.get("secret_answer") or opt.get("streamed"))
    if method in WRITES and not isinstance(needed, Open) and replayed:
        operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
    if not isinstance(needed, Open) and needed is not None:
        operation["x-role"] = str(needed)
