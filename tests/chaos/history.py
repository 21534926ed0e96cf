"""What happened in a run, and what was found when it was over. Nothing here knows how either came about.

Times are seconds since the epoch; database, harness and product share one machine's clock.
"""

from typing import Literal

import msgspec

Verb = Literal["upload", "delete", "replace", "restore"]
"""`upload` by whichever way. `replace` is named after the file that comes, `restore` after the one that comes back."""
Kind = Literal[
    "kill",
    "pause",
    "crash",
    "flush",
    "redis",
    "postgres",
    "cut",
    "clamd",
    "endpoint",
    "repeat",
    "stopped",
    "term",
    "armed",
]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the product was set to, and what it is held to."""

    batch: int
    lease_seconds: float
    resume_seconds: float = 30.0
    backlog_seconds: float = 60.0


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What must become of one file of one tenant: refused, failed with a code, or ready with these passages.

    `replaces` is the file whose document this one takes over; only one of the two answers at the end.
    """

    tenant: str
    file: str
    sha256: str
    refused: str = ""
    failed: str = ""
    replaces: str = ""
    texts: list[str] = []
    """SHA-256 of each text that is embedded, in order."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request that a client made, or several that are one upload in pieces.

    `status` 0: no answer was read, so nobody knows what became of it. `document` is empty where only an archive as a
    whole was acknowledged.
    """

    at: float
    tenant: str
    file: str
    verb: Verb
    status: int
    document: str = ""
    task: str = ""
    code: str = ""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What one search for a file's mark found: passages by document."""

    at: float
    tenant: str
    file: str
    found: dict[str, int]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was done to the product. `until` is its end, for what lasts; `pid` is the process it was done to.

    `took` is how long the product needed to be itself again, where that is measured.
    """

    at: float
    kind: Kind
    target: str = ""
    pid: int = 0
    until: float = 0.0
    took: float | None = None


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger."""

    tenant: str
    id: str
    kind: str
    status: str
    document: str
    content: str
    error: str
    attempts: int
    fence: int


class AttemptRow(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's try. `pid` is its process, `finished` 0 while it lasts."""

    tenant: str
    task: str
    number: int
    pid: int
    started: float
    finished: float
    outcome: str


class ContentRow(msgspec.Struct, frozen=True, kw_only=True):
    """Uploaded bytes."""

    tenant: str
    id: str
    sha256: str
    key: str
    generation: str


class DocumentRow(msgspec.Struct, frozen=True, kw_only=True):
    """A user's handle on a content."""

    tenant: str
    id: str
    content: str
    generation: str


class GenerationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A processing, with the rows that belong to it counted. `texts` are the hashes of what was embedded, in order."""

    tenant: str
    id: str
    content: str
    status: str
    chunks: int
    texts: list[str]
    vectors: int
    terms: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the API says of a file at the end. `document` is empty where no document has its bytes."""

    tenant: str
    file: str
    document: str
    status: str
    chunks: int
    found: dict[str, int]


class History(msgspec.Struct, kw_only=True):
    """A whole run."""

    seed: int
    limits: Limits
    wanted: list[Wanted]
    calls: list[Call] = []
    sightings: list[Sighting] = []
    faults: list[Fault] = []
    tasks: list[TaskRow] = []
    attempts: list[AttemptRow] = []
    contents: list[ContentRow] = []
    documents: list[DocumentRow] = []
    versions: list[str] = []
    """Contents that a document has, had, or is to have, by id."""
    unsettled: int = 0
    """Batches that haven't ended."""
    generations: list[GenerationRow] = []
    answers: list[Answer] = []
    objects: list[str] = []
    """Keys in the object store."""
    embedded: dict[str, int] = {}
    """How often the endpoint was paid for a text, by its SHA-256."""
    unpublished: int = 0
    """Events that were never handed on."""
    gaps: int = 0
    """Positions that no event of a tenant has."""
    statistics: dict[str, int] = {}
    """Passages that the word index counts, by tenant."""
    redriven: list[str] = []
    """Tasks that lay among the dead letters as poison and were tried again by hand."""
