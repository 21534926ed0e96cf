"""Conversations: what was asked, what was answered, and where each statement stands."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Literal
from uuid import UUID

import msgspec

from internal.entities.parsed import Location, Part

NOT_IN_DOCUMENTS = "NOT_IN_DOCUMENTS"
"""What a model says, alone, when the passages don't hold an answer; readers get a sentence in their language."""


class MessageStatus(StrEnum):
    """`complete`: all of it was sent; `cut`: the reader went away; `failed`: the model broke off."""

    COMPLETE = "complete"
    CUT = "cut"
    FAILED = "failed"


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One user's conversation. `document_ids` narrows what answers are drawn from; empty means everything visible.

    `current_message_id` is the last message of the path that is shown; None while nothing was said.
    """

    id: UUID
    title: str
    document_ids: list[UUID]
    current_message_id: UUID | None = None
    created_at: datetime
    updated_at: datetime


class ConversationChanges(msgspec.Struct, frozen=True, kw_only=True):
    """What a PATCH sets; UNSET leaves a field as it is."""

    title: str | msgspec.UnsetType = msgspec.UNSET
    document_ids: list[UUID] | msgspec.UnsetType = msgspec.UNSET
    current_message_id: UUID | msgspec.UnsetType = msgspec.UNSET


class Citation(msgspec.Struct, frozen=True, kw_only=True):
    """The source of a statement marked `[index]`. `quote` is a part of the stored passage, character for character;
    `location` is where the quote begins.

    Not `available` is one whose document was deleted or is hidden from the reader since: it has no quote any more.
    """

    index: int
    chunk_id: UUID
    document_id: UUID
    filename: str
    quote: str
    location: Location
    available: bool = True


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that a question was asked with: a document. Not `available` is one that was deleted or is hidden from
    the reader since: it has no name any more."""

    document_id: UUID
    filename: str = ""
    media_type: str = ""
    available: bool = False


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one model call; `estimated` where the endpoint didn't tell and they were counted approximately."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    estimated: bool = False

    def __add__(self, other: "Usage") -> "Usage":
        """That of both calls."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
            estimated=self.estimated or other.estimated,
        )


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. `answered` is false when the documents don't hold an answer; `model` is None for a user's turn.

    `parent_id` is the turn that it follows, None for a first one; `siblings` are all that follow the same, itself
    among them, the oldest first.
    """

    id: UUID
    role: Literal["user", "assistant"]
    content: str
    created_at: datetime
    parent_id: UUID | None = None
    siblings: list[UUID] = []
    citations: list[Citation] = []
    attachments: list[Attachment] = []
    usage: Usage = Usage()
    model: str | None = None
    status: MessageStatus = MessageStatus.COMPLETE
    answered: bool = True


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that is about to be stored below `parent_id`, or as a first one."""

    role: Literal["user", "assistant"]
    content: str
    parent_id: UUID | None
    citations: tuple[Citation, ...] = ()
    attachment_ids: tuple[UUID, ...] = ()
    usage: Usage = Usage()
    model: str | None = None
    status: MessageStatus = MessageStatus.COMPLETE
    answered: bool = True


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk within a longer passage: its whole text stands at [start, end), where it may overlap with the next.

    `location` and `parts` are the chunk's own.
    """

    chunk_id: UUID
    start: int
    end: int
    location: Location
    parts: tuple[Part, ...] = ()


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A retrieved chunk. `number` counts from 1 and is what a model cites; `score` is the search's own.

    `location` is where it begins, `parts` where its parts stand if they don't all stand there. Where chunks around it
    were joined to it, all of them, itself among them, are `pieces`. An `attached` one wasn't searched for: it was read
    from a picture that the question is asked about.
    """

    number: int
    chunk_id: UUID
    document_id: UUID
    filename: str
    text: str
    score: float
    location: Location
    parts: tuple[Part, ...] = ()
    pieces: tuple[Piece, ...] = ()
    attached: bool = False

    def piece(self, start: int, end: int) -> Piece:
        """The chunk in which text[start:end] stands, or at least begins; the retrieved one if it does."""
        whole = Piece(chunk_id=self.chunk_id, start=0, end=len(self.text), location=self.location, parts=self.parts)
        inside = [piece for piece in self.pieces if piece.start <= start < piece.end]
        return max(inside, key=lambda piece: (end <= piece.end, piece.chunk_id == self.chunk_id), default=whole)


class ChatMessage(msgspec.Struct, frozen=True):
    """One message in the form that chat models take; `images` are `data:` addresses, for a model that sees."""

    role: Literal["system", "user", "assistant"]
    content: str
    images: tuple[str, ...] = ()


class Recollection(msgspec.Struct, frozen=True, kw_only=True):
    """Something of earlier turns. `told` says that it is what the user told, at `said_at`; else it is of a summary, or
    a question with its answer."""

    text: str
    said_at: datetime | None = None
    told: bool = False


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the pictures of a question tell: `passages` of what is written on them, and what was `seen` in them, in a
    model's own words.

    `shown` are those that the question is about, by its own words or because it came with them; `attached` are those
    that it may well be about, told before what documents say. `usage` is that of `model`, where one looked.
    """

    passages: tuple[Passage, ...] = ()
    seen: str = ""
    attached: bool = False
    shown: bool = False
    usage: Usage | None = None
    model: str = ""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a chat model gets: the framed messages, and what they were made of.

    `question` is the user's own; `searched` is what the passages were found with: the same, or the question before it
    and this one where this one can't be understood alone. `remembered` is what was recalled of earlier turns. These
    `passages` are the best of `extent`, 0 where nobody counted; `coverage` is the search's. `seen` is what a model saw
    in the pictures of the question, `clue` what they say that was searched for, too; `shown` says that it is about
    them, `blind` that nothing could be told of them.
    """

    messages: tuple[ChatMessage, ...]
    question: str
    searched: str
    passages: tuple[Passage, ...]
    remembered: tuple[Recollection, ...] = ()
    extent: int = 0
    coverage: float = 0.0
    seen: str = ""
    clue: str = ""
    shown: bool = False
    blind: bool = False

    @property
    def follows(self) -> bool:
        """Whether turns before the question are told."""
        return len(self.messages) > 2

    @property
    def grounded(self) -> bool:
        """Whether there is anything to answer from; a model that is asked without it could only invent."""
        return bool(self.passages or self.remembered or self.seen)


class Delta(msgspec.Struct, frozen=True):
    """More of the answer's text, safe to render."""

    text: str


class Citations(msgspec.Struct, frozen=True):
    """The sources of the whole answer, sent once the text has ended."""

    items: list[Citation]


class Done(msgspec.Struct, frozen=True):
    """The answer as it was stored."""

    message: Message


AnswerEvent = Delta | Citations | Done
