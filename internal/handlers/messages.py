"""/api/v1/conversations/{id}/messages: questions, answers as JSON or as server-sent events, and feedback."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Literal, cast
from uuid import UUID

import msgspec
from litestar import Response, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from internal.entities.conversations import AnswerEvent, Attachment, Citation, Citations, Delta, Message, MessageStatus
from internal.handlers.auth import access
from internal.handlers.conversations import Ids, conversation_of
from internal.handlers.money import Usd, usd
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, page_of, read_cursor, read_id
from internal.handlers.problems import body_of, broken_off
from internal.handlers.streams import event, event_stream
from internal.services.chat import LONGEST_QUESTION, ChatService, Turn
from internal.services.conversations import LONGEST_COMMENT, ConversationService
from internal.services.pictures import MOST_PICTURES
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

Attached = Annotated[list[UUID], msgspec.Meta(max_length=MOST_PICTURES)]
"""Ids of documents that are pictures."""


class MessageIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question, below `parent_id` or what is shown last; with `stream` the answer comes as server-sent events.

    `attachment_ids` are documents that are pictures: it is asked about them.
    """

    content: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_QUESTION)]
    stream: bool = False
    document_ids: Ids = msgspec.field(default_factory=list)
    parent_id: UUID | None = None
    attachment_ids: Attached = msgspec.field(default_factory=list)


class EditIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another wording of a question; it keeps its pictures unless `attachment_ids` names others, or none."""

    content: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_QUESTION)]
    stream: bool = False
    document_ids: Ids = msgspec.field(default_factory=list)
    attachment_ids: Attached | None = None


class AgainIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How another answer is to be made; with `stream` it comes as server-sent events."""

    stream: bool = False
    document_ids: Ids = msgspec.field(default_factory=list)


class FeedbackIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An opinion of an answer: 1 for good, -1 for bad."""

    rating: Literal[1, -1]
    comment: Annotated[str, msgspec.Meta(max_length=LONGEST_COMMENT)] | None = None


class UsageOut(msgspec.Struct, frozen=True):
    """What an answer cost; `estimated` where the model's endpoint didn't tell."""

    prompt_tokens: int
    completion_tokens: int
    cost_usd: Usd
    estimated: bool


class MessageOut(msgspec.Struct, frozen=True):
    """A turn. `answered` is false when the documents don't hold an answer.

    `parent_id` is the turn that it follows, `siblings` all that follow the same, itself among them, the oldest first.
    """

    id: UUID
    parent_id: UUID | None
    siblings: list[UUID]
    role: Literal["user", "assistant"]
    content: str
    citations: list[Citation]
    attachments: list[Attachment]
    usage: UsageOut
    model: str | None
    status: MessageStatus
    answered: bool
    created_at: datetime


@get("/api/v1/conversations/{conversation_id:str}/messages", opt=access(Role.VIEWER))
async def list_messages(
    ctx: NamedDependency[Context],
    conversations: NamedDependency[ConversationService],
    conversation_id: Id,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[MessageOut]:
    """What was said on the branch that is shown, oldest first."""
    after = read_cursor(cursor, tuple[datetime, UUID])
    found = await conversations.messages(ctx, conversation_of(conversation_id), limit=limit + 1, after=after)
    items, following = page_of(found, limit, lambda item: (item.created_at, item.id))
    return Page([message_out(item) for item in items], following)


@post("/api/v1/conversations/{conversation_id:str}/messages", opt=access(Role.VIEWER), status_code=200)
async def add_message(
    ctx: NamedDependency[Context], chat: NamedDependency[ChatService], conversation_id: Id, data: JSONBody[MessageIn]
) -> Response[MessageOut]:
    """Asks, and answers with citations. With `stream`: events delta, citations, then done, or error."""
    turn = await chat.begin(
        ctx,
        conversation_of(conversation_id),
        data.content,
        data.document_ids or None,
        parent_id=data.parent_id,
        attachment_ids=data.attachment_ids,
    )
    return await _answer(ctx, chat, turn, stream=data.stream)


@patch("/api/v1/conversations/{conversation_id:str}/messages/{message_id:str}", opt=access(Role.VIEWER))
async def edit_message(
    ctx: NamedDependency[Context],
    chat: NamedDependency[ChatService],
    conversation_id: Id,
    message_id: Id,
    data: JSONBody[EditIn],
) -> Response[MessageOut]:
    """Asks a question in other words, beside the old one, and answers as a new question is answered."""
    conversation, message = conversation_of(conversation_id), _message(message_id)
    turn = await chat.begin_edited(
        ctx, conversation, message, data.content, data.document_ids or None, attachment_ids=data.attachment_ids
    )
    return await _answer(ctx, chat, turn, stream=data.stream)


@post(
    "/api/v1/conversations/{conversation_id:str}/messages/{message_id:str}/regenerate",
    opt=access(Role.VIEWER),
    status_code=200,
)
async def regenerate_message(
    ctx: NamedDependency[Context],
    chat: NamedDependency[ChatService],
    conversation_id: Id,
    message_id: Id,
    data: JSONBody[AgainIn],
) -> Response[MessageOut]:
    """Answers a question once more, beside the answers that it has; name it or one of them."""
    conversation, message = conversation_of(conversation_id), _message(message_id)
    turn = await chat.begin_again(ctx, conversation, message, data.document_ids or None)
    return await _answer(ctx, chat, turn, stream=data.stream)


@post(
    "/api/v1/conversations/{conversation_id:str}/messages/{message_id:str}/feedback",
    opt=access(Role.VIEWER),
    status_code=204,
)
async def add_feedback(
    ctx: NamedDependency[Context],
    conversations: NamedDependency[ConversationService],
    conversation_id: Id,
    message_id: Id,
    data: JSONBody[FeedbackIn],
) -> None:
    """Keeps your opinion of an answer; a later one replaces it."""
    message = _message(message_id)
    await conversations.rate(ctx, conversation_of(conversation_id), message, rating=data.rating, comment=data.comment)


async def _answer(ctx: Context, chat: ChatService, turn: Turn, *, stream: bool) -> Response[MessageOut]:
    if stream:
        return cast("Response[MessageOut]", event_stream(_events(ctx, chat, turn)))
    async with aclosing(chat.stream(ctx, turn)) as events:
        async for item in events:
            if not isinstance(item, Delta | Citations):
                return Response(message_out(item.message), status_code=200)
    raise AppError(Code.INTERNAL, "The answer ended without a message.")


async def _events(ctx: Context, chat: ChatService, turn: Turn) -> AsyncGenerator[bytes]:
    """The answer as events. Its status is sent already, so an error is an event too."""
    try:
        async with aclosing(chat.stream(ctx, turn)) as events:
            async for item in events:
                yield _event(item)
    except AppError as error:
        yield event("error", body_of(error))
    except Exception as error:  # noqa: BLE001 - see broken_off
        yield event("error", body_of(broken_off("an answer failed", error, "The answer broke off; ask again.")))


def _event(item: AnswerEvent) -> bytes:
    if isinstance(item, Delta):
        return event("delta", {"text": item.text})
    if isinstance(item, Citations):
        return event("citations", item.items)
    return event("done", message_out(item.message))


def message_out(message: Message) -> MessageOut:
    """A turn as its reader sees it."""
    usage = message.usage
    return MessageOut(
        id=message.id,
        parent_id=message.parent_id,
        siblings=message.siblings,
        role=message.role,
        content=message.content,
        citations=message.citations,
        attachments=message.attachments,
        usage=UsageOut(usage.prompt_tokens, usage.completion_tokens, usd(usage.cost_usd), usage.estimated),
        model=message.model,
        status=message.status,
        answered=message.answered,
        created_at=message.created_at,
    )


def _message(text: str) -> UUID:
    return read_id(text, AppError(Code.MESSAGE_NOT_FOUND, "There is no such message in this conversation."))
