"""Where the OpenAPI document takes an id, and requests that put a foreign one, or one that never existed, there."""

import base64
import re
import secrets
from collections.abc import Generator, Mapping
from typing import Any
from uuid import UUID

import httpx
import msgspec

Schema = dict[str, Any]

# What stands behind a name wherever it occurs. `document` and so on are kinds of World.ids.
KINDS = {
    "Idempotency-Key": "idempotency_key",
    "archive": "archive",
    "batch_id": "batch",
    "collection": "collection_name",
    "collection_id": "collection",
    "collections": "collection",
    "current_message_id": "message",
    "conversation_id": "conversation",
    "document_id": "document",
    "attachment_ids": "document",
    "document_ids": "document",
    "email": "email",
    "file": "content",
    "filename": "filename",
    "ids": "task",
    "key_id": "api_key",
    "letter_id": "dead_letter",
    "memory_id": "memory",
    "message_id": "message",
    "owner_email": "email",
    "parent_id": "message",
    "refresh_token": "refresh_token",
    "tag": "tag",
    "tags": "tag",
    "task_id": "task",
    "tenant_id": "tenant",
    "upload_id": "upload",
    "user_id": "user",
}
# Names that mean different things on different paths.
KINDS_OF_PATH = {
    ("/api/v1/api-keys", "cursor"): "api_key",
    ("/api/v1/batches", "cursor"): "batch",
    ("/api/v1/batches", "name"): "filename",
    ("/api/v1/collections", "cursor"): "collection_name",
    ("/api/v1/collections", "name"): "collection_name",
    ("/api/v1/collections/{collection_id}", "name"): "collection_name",
    ("/api/v1/conversations", "cursor"): "conversation_place",
    ("/api/v1/conversations/{conversation_id}/messages", "cursor"): "message_place",
    ("/api/v1/dead-letters", "cursor"): "task",
    ("/api/v1/documents", "cursor"): "document_place",
    ("/api/v1/documents", "name"): "filename",
    ("/api/v1/documents/{document_id}", "name"): "filename",  # where an older document calls it so
    ("/api/v1/members", "cursor"): "email",
    ("/api/v1/tasks", "cursor"): "task",
}
PLAIN_CURSORS = {"/api/v1/tasks", "/api/v1/dead-letters"}
"""The others are JSON in base64."""
# Names that can't refer to anybody's data, with a value that is accepted.
HARMLESS: dict[str, Any] = {
    "after": "2020-01-01T00:00:00Z",
    "before": "2090-01-01T00:00:00Z",
    "Tus-Resumable": "1.0.0",
    "Upload-Checksum": "sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
    "Upload-Length": "10",
    "Upload-Metadata": "filename cHJvYmUudHh0",
    "Upload-Offset": "0",
    "across_conversations": False,
    "comment": "clear",
    "content": "Who counts the ships?",
    "created_after": "2020-01-01T00:00:00Z",
    "created_before": "2090-01-01T00:00:00Z",
    "cursor": "",  # of chunks: a place in one document's order
    "error_code": "task.poison",
    "importance": 0.5,
    "expires_at": "2090-01-01T00:00:00Z",
    "format": "json",
    "from": "2026-01-01",
    "group_by": "day",
    "diversity": 0.3,
    "k": 3,
    "kind": "ingest_content",
    "last_event_id": "0",  # a place in the order of one's own tenant; so is the header
    "Last-Event-ID": "0",
    "limit": 200,
    "mine": False,
    "neighbours": 2,
    "mode": "keyword",
    "number": "1",
    "name": "A name",
    "owner_password": "correct horse battery",
    "password": "correct horse battery",
    "priority": "normal",
    "query": "lighthouse",
    "question": "Who counts the ships?",
    "queue": "default",
    "queue_weight": 1,
    "rating": 1,
    "role": "viewer",
    "source_type": "document",
    "source_types": ["document"],
    "status": "queued",
    "stream": False,
    "text": "A text",
    "title": "A title",
    "to": "2026-02-01",
    "visibility": "tenant",
}
ALSO_NEEDED = {
    "file": b"A file that nobody has.",
    "email": "nobody@probe.example",
    "owner_email": "nobody@probe.example",
    "refresh_token": "dhr_none",
}
"""Required fields of a form or body where another one is probed."""

# What differs between two answers to the same question.
VOLATILE_HEADERS = {"date", "x-request-id"}
VOLATILE_FIELDS = {
    "access_token", "api_key", "content_id", "created_at", "current_message_id", "id", "key", "parent_id", "password",
    "prefix", "refresh_token", "siblings", "took_ms", "updated_at",
}  # fmt: skip
VOLATILE_OF = {
    ("post", "/api/v1/batches"): {
        "document_id",
        "finished_at",
        "progress",
        "running",
        "status",
        "succeeded",
        "task_id",
        "waiting",
    },
    ("post", "/api/v1/documents"): {"document_id", "status", "task_id"},
    ("put", "/api/v1/documents/{document_id}/content"): {"status", "task_id"},
    ("post", "/api/v1/documents/{document_id}/versions/{number}/restore"): {"status", "task_id"},
}


EMPTY_BODIES = {"/api/v1/conversations/{conversation_id}/messages/{message_id}/regenerate"}
"""They take a POST's body of which every field may be left out, but not none."""
FILES = ("file", "archive")
"""Parts of a form that are files."""
RAW_TYPE = "application/offset+octet-stream"
"""Bytes without a structure, in which no id can stand."""


class UncoveredError(Exception):
    """A route takes something for which there is no recipe here: name it in one of the tables above."""


class Position(msgspec.Struct, frozen=True):
    """One place of one operation that takes an id. `place` is path, query, header or body, `name` dotted."""

    method: str
    path: str
    place: str
    name: str
    kind: str
    many: bool
    fields: tuple[str, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()
    form: bool = False
    raw: str = ""
    headers: tuple[str, ...] = ()
    open: bool = False

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path} {self.place} {self.name}"


def positions(document: Schema) -> list[Position]:
    """Every place that takes an id. Raises UncoveredError for a name that no table knows."""
    found: list[Position] = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            found += _of_operation(document, path, method, operation)
    return found


def _of_operation(document: Schema, path: str, method: str, operation: Schema) -> Generator[Position]:
    content = operation.get("requestBody", {}).get("content", {})
    for media_type, body in content.items() or [("", {"schema": {}})]:
        schema = resolved(document, body["schema"])
        for variant in schema.get("oneOf", [schema]):
            yield from _of_body(document, path, method, operation, media_type, resolved(document, variant))


def _of_body(
    document: Schema, path: str, method: str, operation: Schema, media_type: str, schema: Schema
) -> Generator[Position]:
    common: dict[str, Any] = {
        "method": method,
        "path": path,
        "fields": tuple(schema.get("required", ())),
        "fixed": tuple(
            (name, field["enum"][0]) for name, field in schema.get("properties", {}).items() if is_fixed(field)
        ),
        "form": media_type == "multipart/form-data",
        "raw": media_type if media_type == RAW_TYPE else "",
        "headers": tuple(
            item["name"]
            for item in operation.get("parameters", [])
            if item["in"] == "header" and item["name"] in HARMLESS
        ),
        "open": operation["security"] == [],
    }
    for parameter in operation.get("parameters", []):
        kind = kind_of(path, parameter["name"], f"{method.upper()} {path}")
        if kind:
            yield Position(place=parameter["in"], name=parameter["name"], kind=kind, many=False, **common)
    for name, many in leaves(document, schema):
        kind = kind_of(path, name.rpartition(".")[2], f"{method.upper()} {path}")
        if kind:
            yield Position(place="body", name=name, kind=kind, many=many, **common)


def kind_of(path: str, name: str, route: str) -> str | None:
    """The kind of id that stands there, None for what is harmless."""
    kind = KINDS_OF_PATH.get((path, name)) or KINDS.get(name)
    if kind is None and name not in HARMLESS:
        raise UncoveredError(f"{route}: {name}")
    return kind


def leaves(document: Schema, schema: Schema, prefix: str = "") -> Generator[tuple[str, bool]]:
    """Dotted names of a body's fields, and whether each takes a list."""
    for name, field in schema.get("properties", {}).items():
        if is_fixed(field):
            continue
        parts = [resolved(document, part) for part in (field, *field.get("oneOf", []), *field.get("anyOf", []))]
        nested = [part for part in parts if "properties" in part]
        many = [resolved(document, part["items"]) for part in parts if "items" in part]
        if nested or any("properties" in part for part in many):
            for part in (*nested, *many):
                yield from leaves(document, part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", bool(many)


def is_fixed(field: Schema) -> bool:
    """A field that takes one word only, and so tells one kind of body from another."""
    return len(field.get("enum", ())) == 1


def resolved(document: Schema, schema: Schema) -> Schema:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def twin(value: Any) -> Any:
    """A value of the same form, and as an id of the same moment, that never existed."""
    if isinstance(value, list):
        return [*value[:-1], twin(value[-1])]
    if isinstance(value, bytes):
        return value[:-6] + secrets.token_hex(3).encode()
    if value.startswith("dhr_"):
        raw = base64.urlsafe_b64decode(value[4:] + "==")
        ids = twin(str(UUID(bytes=raw[:16]))), twin(str(UUID(bytes=raw[16:32])))
        raw = b"".join(UUID(text).bytes for text in ids) + raw[32:]
        return "dhr_" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    if re.fullmatch(r"[0-9a-f-]{36}", value):
        return value[:-12] + secrets.token_hex(6)
    # The hexadecimal mark of a world, in the middle of a name.
    return re.sub(r"[0-9a-f]{16}", lambda mark: mark[0][:10] + secrets.token_hex(3), value)


def request(client: httpx.Client, position: Position, value: Any, own: Mapping[str, Any]) -> httpx.Response:
    """Puts `value` into the position and one's own ids, or what is accepted, into all others that must be filled."""
    path = filled(position.path, own)
    query: dict[str, Any] = {}
    headers: dict[str, str] = {name: HARMLESS[name] for name in position.headers}
    body: dict[str, Any] = {name: _needed(name, own) for name in position.fields}
    body |= dict(position.fixed)
    if position.place == "path":
        path = filled(position.path.replace(f"{{{position.name}}}", value), own)
    elif position.place == "query":
        query[position.name] = cursor(position, value) if position.name == "cursor" else value
    elif position.place == "header":
        headers[position.name] = value
    else:
        _put(body, position.name.split("."), [value] if position.many else value)
    if position.form:
        files = [(name, ("probe.txt", data)) for name in FILES for data in _listed(body.pop(name, []))]
        files = files or [("file", ("probe.txt", ALSO_NEEDED["file"]))]
        return client.request(position.method, path, params=query, headers=headers, data=body, files=files)
    if position.raw:
        headers["Content-Type"] = position.raw
        return client.request(position.method, path, params=query, headers=headers, content=b"")
    has_body = bool(body) or position.method in ("patch", "put") or position.path in EMPTY_BODIES
    return client.request(position.method, path, params=query, headers=headers, json=body if has_body else None)


def _needed(name: str, own: Mapping[str, Any]) -> Any:
    """What is accepted for a required field that isn't probed: one's own where it is a single id."""
    if name.endswith("_id"):
        return own[KINDS[name]]
    return ALSO_NEEDED.get(name, HARMLESS.get(name))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def filled(path: str, own: Mapping[str, Any]) -> str:
    """A path with one's own ids in it, and what is accepted where no id stands."""
    return re.sub(r"{(\w+)}", lambda part: own[KINDS[part[1]]] if part[1] in KINDS else HARMLESS[part[1]], path)


def _put(body: dict[str, Any], names: list[str], value: Any) -> None:
    for name in names[:-1]:
        body = body.setdefault(name, {})
    body[names[-1]] = value


def cursor(position: Position, value: Any) -> str:
    """As a list's own `next_cursor` would name that place."""
    if position.path in PLAIN_CURSORS:
        return value
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


def comparable(answer: httpx.Response, position: Position, value: Any) -> tuple[int, Any, Any]:
    """Status, headers and body, without what differs between two answers to the same question."""
    headers = sorted((name, text) for name, text in answer.headers.multi_items() if name not in VOLATILE_HEADERS)
    text = answer.text.replace(answer.headers["x-request-id"], "REQUEST")
    for echo in _echoes(position, value):
        text = text.replace(echo, "VALUE")
    json = answer.headers.get("content-type", "").startswith(("application/json", "application/problem+json"))
    if not json or position.method == "head":
        return answer.status_code, headers, text
    body = msgspec.json.decode(text)
    if answer.is_success:
        names = VOLATILE_FIELDS | VOLATILE_OF.get((position.method, position.path), set())
        headers = [item for item in headers if item[0] != "content-length"]
        body = _without(body, names)
    return answer.status_code, headers, body


def _echoes(position: Position, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    plain = [item for item in values if isinstance(item, str)]
    return [*plain, cursor(position, value)] if position.name == "cursor" else plain


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, list):
        return [_without(item, names) for item in value]
    if isinstance(value, dict):
        return {name: "MASKED" if name in names else _without(item, names) for name, item in value.items()}
    return value
