"""/api/v1/conversations: messages, answers as JSON or as server-sent events, and feedback."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Literal, cast
from uuid import UUID

import msgspec
from litestar import Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from internal.entities.conversations import (
    AnswerEvent,
    Citation,
    Citations,
    Conversation,
    ConversationChanges,
    Delta,
    Message,
    MessageStatus,
)
from internal.handlers.auth import access
from internal.handlers.money import Usd, usd
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, page_of, read_cursor, read_id
from internal.handlers.problems import body_of, broken_off
from internal.handlers.streams import event, event_stream
from internal.services.chat import (
    LONGEST_COMMENT,
    LONGEST_QUESTION,
    MOST_DOCUMENTS,
    ChatService,
    Turn,
)
from internal.services.names import MAX_TITLE
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

Title = Annotated[str, msgspec.Meta(max_length=MAX_TITLE)]
Ids = Annotated[list[UUID], msgspec.Meta(max_length=MOST_DOCUMENTS)]


class ConversationIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new conversation; `document_ids` narrows what its answers are drawn from."""

    title: Title = ""
    document_ids: Ids = msgspec.field(default_factory=list)


class ConversationChangesIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; what isn't named stays."""

    title: Title | msgspec.UnsetType = msgspec.UNSET
    document_ids: Ids | msgspec.UnsetType = msgspec.UNSET


class MessageIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question; with `stream` the answer comes as server-sent events."""

    content: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_QUESTION)]
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
    """A turn. `answered` is false when the documents don't hold an answer."""

    id: UUID
    role: Literal["user", "assistant"]
    content: str
    citations: list[Citation]
    usage: UsageOut
    model: str | None
    status: MessageStatus
    answered: bool
    created_at: datetime


@post("/api/v1/conversations", opt=access(Role.VIEWER))
async def add_conversation(
    ctx: NamedDependency[Context], chat: NamedDependency[ChatService], data: JSONBody[ConversationIn]
) -> Conversation:
    """Starts a conversation of your own."""
    return await chat.add(ctx, title=data.title, document_ids=data.document_ids)


@get("/api/v1/conversations", opt=access(Role.VIEWER))
async def list_conversations(
    ctx: NamedDependency[Context],
    chat: NamedDependency[ChatService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Conversation]:
    """Your conversations, last used first."""
    found = await chat.list(ctx, limit=limit + 1, before=read_cursor(cursor, tuple[datetime, UUID]))
    return Page(*page_of(found, limit, lambda item: (item.updated_at, item.id)))


@get("/api/v1/conversations/{conversation_id:str}", opt=access(Role.VIEWER))
async def get_conversation(
    ctx: NamedDependency[Context], chat: NamedDependency[ChatService], conversation_id: Id
) -> Conversation:
    """One of your conversations."""
    return await chat.get(ctx, _id(conversation_id))


@patch("/api/v1/conversations/{conversation_id:str}", opt=access(Role.VIEWER))
async def update_conversation(
    ctx: NamedDependency[Context],
    chat: NamedDependency[ChatService],
    conversation_id: Id,
    data: JSONBody[ConversationChangesIn],
) -> Conversation:
    """Changes the title, or what answers are drawn from."""
    changes = ConversationChanges(title=data.title, document_ids=data.document_ids)
    return await chat.update(ctx, _id(conversation_id), changes)


@delete("/api/v1/conversations/{conversation_id:str}", opt=access(Role.VIEWER))
async def remove_conversation(
    ctx: NamedDependency[Context], chat: NamedDependency[ChatService], conversation_id: Id
) -> None:
    """Removes a conversation with all that was said in it."""
    await chat.remove(ctx, _id(conversation_id))


@get("/api/v1/conversations/{conversation_id:str}/messages", opt=access(Role.VIEWER))
async def list_messages(
    ctx: NamedDependency[Context],
    chat: NamedDependency[ChatService],
    conversation_id: Id,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[MessageOut]:
    """What was said, oldest first."""
    after = read_cursor(cursor, tuple[datetime, UUID])
    found = await chat.messages(ctx, _id(conversation_id), limit=limit + 1, after=after)
    items, following = page_of(found, limit, lambda item: (item.created_at, item.id))
    return Page([message_out(item) for item in items], following)


@post("/api/v1/conversations/{conversation_id:str}/messages", opt=access(Role.VIEWER), status_code=200)
async def add_message(
    ctx: NamedDependency[Context], chat: NamedDependency[ChatService], conversation_id: Id, data: JSONBody[MessageIn]
) -> Response[MessageOut]:
    """Asks, and answers with citations. With `stream`: events delta, citations, then done, or error."""
    turn = await chat.begin(ctx, _id(conversation_id), data.content, data.document_ids or None)
    if data.stream:
        return cast("Response[MessageOut]", event_stream(_events(ctx, chat, turn)))
    async with aclosing(chat.stream(ctx, turn)) as events:
        async for item in events:
            if not isinstance(item, Delta | Citations):
                return Response(message_out(item.message), status_code=200)
    raise AppError(Code.INTERNAL, "The answer ended without a message.")


@post(
    "/api/v1/conversations/{conversation_id:str}/messages/{message_id:str}/feedback",
    opt=access(Role.VIEWER),
    status_code=204,
)
async def add_feedback(
    ctx: NamedDependency[Context],
    chat: NamedDependency[ChatService],
    conversation_id: Id,
    message_id: Id,
    data: JSONBody[FeedbackIn],
) -> None:
    """Keeps your opinion of an answer; a later one replaces it."""
    message = read_id(message_id, AppError(Code.MESSAGE_NOT_FOUND, "There is no such message."))
    await chat.rate(ctx, _id(conversation_id), message, rating=data.rating, comment=data.comment)


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
        role=message.role,
        content=message.content,
        citations=message.citations,
        usage=UsageOut(usage.prompt_tokens, usage.completion_tokens, usd(usage.cost_usd), usage.estimated),
        model=message.model,
        status=message.status,
        answered=message.answered,
        created_at=message.created_at,
    )


def _id(text: str) -> UUID:
    return read_id(text, AppError(Code.CONVERSATION_NOT_FOUND, "There is no such conversation."))
