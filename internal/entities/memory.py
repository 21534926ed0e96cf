"""What is remembered of conversations."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt

from internal.entities.conversations import Usage

MEMORY_LIMIT = 2000
"""Characters of one memory."""


class MemoryKind(StrEnum):
    """`turn` is a question with its answer: recalled when it fits, but not shown among what is known of the user."""

    FACT = "fact"
    PREFERENCE = "preference"
    TURN = "turn"


class SummaryLine(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a conversation's summary. `source_id` is the user's message that it tells of; None: of several.
    `answer_id` is the message with which that exchange ends: the line holds on its branch.

    It is of no use to who doesn't see all of `document_ids` any more.
    """

    text: str
    source_id: UUID | None = None
    answer_id: UUID | None = None
    importance: float = 0.0
    document_ids: tuple[UUID, ...] = ()


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """A question and its answer, which is empty where there was none; what it cites, by id and by name.

    `answer_id` is the message with which it ends. `again` says that the question was digested with another answer.
    """

    id: UUID
    answer_id: UUID
    again: bool = False
    question: str
    answer: str
    answered: bool
    filenames: tuple[str, ...]
    document_ids: tuple[UUID, ...]
    created_at: datetime


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something worth remembering. `subject` is what it is about: a later finding on it takes this one's place.

    `document_ids` are what it was drawn from besides what the user said.
    """

    kind: MemoryKind
    text: str
    importance: float
    source_id: UUID
    answer_id: UUID
    created_at: datetime
    subject: str | None = None
    document_ids: tuple[UUID, ...] = ()


class Digest(msgspec.Struct, frozen=True, kw_only=True):
    """What a summarizer made of some exchanges: the whole summary as it is now, and what it found in them.

    `usage` and `model` tell of the call of a model, where one was asked.
    """

    lines: tuple[SummaryLine, ...]
    findings: tuple[Finding, ...]
    usage: Usage | None = None
    model: str = ""


class MemoryState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a conversation is digested: up to the message at `place`, (created_at, id)."""

    lines: tuple[SummaryLine, ...] = ()
    place: tuple[datetime, UUID] | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """One memory. `importance` lies between 0 and 1; `created_at` is when it was said."""

    id: UUID
    conversation_id: UUID
    kind: MemoryKind
    text: str
    importance: float
    source_id: UUID | None
    created_at: datetime


class NewMemory(msgspec.Struct, frozen=True, kw_only=True):
    """A finding with what it is recalled by: its terms, sorted, and its unit vector of shape (dim,)."""

    finding: Finding
    terms: list[int]
    vector: npt.NDArray[np.float32]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A memory that might be recalled; `vector` is None where another model made it."""

    memory: Memory
    terms: frozenset[int]
    vector: npt.NDArray[np.float32] | None


class MemoryChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What a PATCH sets; UNSET leaves a field as it is."""

    text: str | msgspec.UnsetType = msgspec.UNSET
    importance: float | msgspec.UnsetType = msgspec.UNSET


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation's summary and its memories, the newest first."""

    summary: str
    items: list[Memory]


class Recalled(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is told of earlier turns: the summary, empty where all of the conversation is told anyway, and
    memories, the best first."""

    summary: str = ""
    items: tuple[Memory, ...] = ()
