"""What was uploaded, who holds it, and what was read from it."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from internal.entities.parsed import Location, Part


class Visibility(StrEnum):
    """Who of the tenant may see a document."""

    TENANT = "tenant"
    PRIVATE = "private"


class DocumentStatus(StrEnum):
    """How far a document's reading has come. `ready` means that searches find it."""

    QUEUED = "queued"
    PROCESSING = "processing"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a tenant uploaded, once for each SHA-256. `generation_id` is the published processing."""

    id: UUID
    sha256: bytes
    size: int
    media_type: str
    source_type: str
    blob_key: str
    generation_id: UUID | None
    metadata: dict[str, Any]


class NewContent(msgspec.Struct, frozen=True, kw_only=True):
    """A content that is about to be stored; `id` also names its object."""

    id: UUID
    sha256: bytes
    size: int
    media_type: str
    source_type: str
    blob_key: str


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One user's handle on a content; `version` counts the contents that it had."""

    id: UUID
    version: int
    content_id: UUID
    owner_id: UUID
    generation_id: UUID | None
    filename: str
    media_type: str
    source_type: str
    size: int
    sha256: bytes
    visibility: Visibility
    collection_id: UUID | None
    collection: str | None
    tags: list[str]
    metadata: dict[str, Any]
    chunk_count: int
    status: DocumentStatus
    created_at: datetime
    updated_at: datetime


class NewDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document that is about to be added for the context's user."""

    content_id: UUID
    filename: str
    source_type: str
    visibility: Visibility
    collection_id: UUID | None
    tags: list[str]
    metadata: dict[str, Any] = {}


class DocumentChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What a PATCH sets; UNSET leaves a field as it is, None for `collection` takes the document out of its own."""

    filename: str | msgspec.UnsetType = msgspec.UNSET
    tags: list[str] | msgspec.UnsetType = msgspec.UNSET
    collection: str | msgspec.UnsetType | None = msgspec.UNSET
    visibility: Visibility | msgspec.UnsetType = msgspec.UNSET


class DocumentFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Narrows a list of documents; empty fields don't."""

    collection_id: UUID | None = None
    tag: str | None = None
    source_type: str | None = None
    status: DocumentStatus | None = None
    name: str | None = None


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """A named group; `document_count` counts the documents that the reader may see."""

    id: UUID
    name: str
    document_count: int
    created_at: datetime


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One processing of a content by one version of the pipeline into one embedding space."""

    id: UUID
    content_id: UUID
    version: str
    space_id: int
    status: str
    chunk_count: int


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A passage as it is stored. `hash` and `text_hash` are SHA-256 (C7: identity, and what was embedded).

    `location` is where it begins, `parts` where its parts stand if they don't all stand there.
    """

    id: UUID
    ordinal: int
    hash: bytes
    text_hash: bytes
    text: str
    tokens: int
    location: Location
    parts: tuple[Part, ...] = ()


class Neighbourhood(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk, and those that stand around it in the same generation, in the order of the text."""

    generation_id: UUID
    chunk: Chunk
    around: tuple[Chunk, ...]
