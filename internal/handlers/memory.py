"""/api/v1/conversations/{id}/memory and /api/v1/memory/settings: what is remembered, corrected and forgotten."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import delete, get, patch, put
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter

from internal.entities.memory import MEMORY_LIMIT, Memory, MemoryChanges, MemoryKind
from internal.handlers.auth import access
from internal.handlers.paging import Id, read_id
from internal.services.memory import MemoryService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

Question = Annotated[str | None, QueryParameter(min_length=1, max_length=MEMORY_LIMIT)]


class MemoryOut(msgspec.Struct, frozen=True):
    """One memory. `importance` from 0 to 1; `source` is the message in which it was said, at `created_at`."""

    id: UUID
    kind: MemoryKind
    text: str
    importance: float
    source: UUID | None
    created_at: datetime


class RememberedOut(msgspec.Struct, frozen=True):
    """The summary so far, and the memories that hold now, the newest first."""

    summary: str
    items: list[MemoryOut]


class MemoryChangesIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; what isn't named stays."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=MEMORY_LIMIT)] | msgspec.UnsetType = msgspec.UNSET
    importance: Annotated[float, msgspec.Meta(ge=0, le=1)] | msgspec.UnsetType = msgspec.UNSET


class MemorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether facts and preferences of your other conversations are recalled."""

    across_conversations: bool


@get("/api/v1/conversations/{conversation_id:str}/memory", opt=access(Role.VIEWER))
async def get_memory(
    ctx: NamedDependency[Context],
    memories: NamedDependency[MemoryService],
    conversation_id: Id,
    question: Question = None,
) -> RememberedOut:
    """What is remembered of a conversation. It follows an answer after some seconds.

    With `question`, what would be recalled for it, the most fitting first: what was said (`turn`) among it, and
    what is remembered of other conversations where that is wanted.
    """
    conversation = _conversation(conversation_id)
    if question is not None:
        recalled = await memories.recall_shown(ctx, conversation, question)
        return RememberedOut(recalled.summary, [_out(item) for item in recalled.items])
    found = await memories.show(ctx, conversation)
    return RememberedOut(found.summary, [_out(item) for item in found.items])


@patch("/api/v1/conversations/{conversation_id:str}/memory/{memory_id:str}", opt=access(Role.VIEWER))
async def update_memory(
    ctx: NamedDependency[Context],
    memories: NamedDependency[MemoryService],
    conversation_id: Id,
    memory_id: Id,
    data: JSONBody[MemoryChangesIn],
) -> MemoryOut:
    """Corrects a memory. Its old words are recalled no more."""
    changes = MemoryChanges(text=data.text, importance=data.importance)
    return _out(await memories.correct(ctx, _conversation(conversation_id), _memory(memory_id), changes))


@delete("/api/v1/conversations/{conversation_id:str}/memory/{memory_id:str}", opt=access(Role.VIEWER))
async def remove_memory(
    ctx: NamedDependency[Context], memories: NamedDependency[MemoryService], conversation_id: Id, memory_id: Id
) -> None:
    """Forgets a memory: it is neither shown nor recalled again. The message in which it was said stays."""
    await memories.forget(ctx, _conversation(conversation_id), _memory(memory_id))


@get("/api/v1/memory/settings", opt=access(Role.VIEWER))
async def get_memory_settings(
    ctx: NamedDependency[Context], memories: NamedDependency[MemoryService]
) -> MemorySettings:
    """Your own choice."""
    return MemorySettings(await memories.across(ctx))


@put("/api/v1/memory/settings", opt=access(Role.VIEWER))
async def set_memory_settings(
    ctx: NamedDependency[Context], memories: NamedDependency[MemoryService], data: JSONBody[MemorySettings]
) -> MemorySettings:
    """Turns recall across your conversations on or off."""
    return MemorySettings(await memories.set_across(ctx, wanted=data.across_conversations))


def _out(memory: Memory) -> MemoryOut:
    return MemoryOut(memory.id, memory.kind, memory.text, memory.importance, memory.source_id, memory.created_at)


def _conversation(text: str) -> UUID:
    return read_id(text, AppError(Code.CONVERSATION_NOT_FOUND, "There is no such conversation."))


def _memory(text: str) -> UUID:
    return read_id(text, AppError(Code.MEMORY_NOT_FOUND, "There is no such memory."))
