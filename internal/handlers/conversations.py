"""/api/v1/conversations: their names, what they are about, and their branches."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from internal.entities.conversations import Conversation, ConversationChanges
from internal.handlers.auth import access
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, page_of, read_cursor, read_id
from internal.services.conversations import MOST_DOCUMENTS, ConversationService
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
    current_message_id: UUID | msgspec.UnsetType = msgspec.UNSET


class BranchIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last message that the new conversation copies."""

    message_id: UUID


@post("/api/v1/conversations", opt=access(Role.VIEWER))
async def add_conversation(
    ctx: NamedDependency[Context], conversations: NamedDependency[ConversationService], data: JSONBody[ConversationIn]
) -> Conversation:
    """Starts a conversation of your own."""
    return await conversations.add(ctx, title=data.title, document_ids=data.document_ids)


@get("/api/v1/conversations", opt=access(Role.VIEWER))
async def list_conversations(
    ctx: NamedDependency[Context],
    conversations: NamedDependency[ConversationService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Conversation]:
    """Your conversations, last used first."""
    found = await conversations.list(ctx, limit=limit + 1, before=read_cursor(cursor, tuple[datetime, UUID]))
    return Page(*page_of(found, limit, lambda item: (item.updated_at, item.id)))


@get("/api/v1/conversations/{conversation_id:str}", opt=access(Role.VIEWER))
async def get_conversation(
    ctx: NamedDependency[Context], conversations: NamedDependency[ConversationService], conversation_id: Id
) -> Conversation:
    """One of your conversations."""
    return await conversations.get(ctx, conversation_of(conversation_id))


@patch("/api/v1/conversations/{conversation_id:str}", opt=access(Role.VIEWER))
async def update_conversation(
    ctx: NamedDependency[Context],
    conversations: NamedDependency[ConversationService],
    conversation_id: Id,
    data: JSONBody[ConversationChangesIn],
) -> Conversation:
    """Changes the title, what answers are drawn from, or the branch that is shown: the newest below a message."""
    changes = ConversationChanges(
        title=data.title, document_ids=data.document_ids, current_message_id=data.current_message_id
    )
    return await conversations.update(ctx, conversation_of(conversation_id), changes)


@delete("/api/v1/conversations/{conversation_id:str}", opt=access(Role.VIEWER))
async def remove_conversation(
    ctx: NamedDependency[Context], conversations: NamedDependency[ConversationService], conversation_id: Id
) -> None:
    """Removes a conversation with all that was said in it."""
    await conversations.remove(ctx, conversation_of(conversation_id))


@post("/api/v1/conversations/{conversation_id:str}/branch", opt=access(Role.VIEWER))
async def branch_conversation(
    ctx: NamedDependency[Context],
    conversations: NamedDependency[ConversationService],
    conversation_id: Id,
    data: JSONBody[BranchIn],
) -> Conversation:
    """A new conversation with copies of what was said down to a message. Copies cost nothing."""
    return await conversations.branch(ctx, conversation_of(conversation_id), data.message_id)


def conversation_of(text: str) -> UUID:
    """The id in a path. Raises CONVERSATION_NOT_FOUND for what is none."""
    return read_id(text, AppError(Code.CONVERSATION_NOT_FOUND, "There is no such conversation."))
