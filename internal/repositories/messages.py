"""SQL of messages and their feedback, as far as the conversation is the user's."""

from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.conversations import Citation, Message, MessageStatus, NewMessage, Usage
from internal.entities.ids import new_id
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

# $1 is the tenant, $2 the user and $3 the conversation in each statement that uses these.
MESSAGE = (
    "select m.id, m.role, m.content, m.citations, m.model, m.prompt_tokens, m.completion_tokens, m.cost_usd,"
    " m.usage_estimated, m.status, m.answered, m.created_at from messages m"
    " join conversations c on c.tenant_id = m.tenant_id and c.id = m.conversation_id"
    " where m.tenant_id = $1 and c.user_id = $2 and m.conversation_id = $3"
)


class MessageRepository:
    """Turns of one user's conversations."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context, user_id: UUID) -> None:
        self._conn = conn
        self._ctx = ctx
        self._user_id = user_id

    async def add(self, conversation_id: UUID, new: NewMessage) -> Message:
        """Raises CONVERSATION_NOT_FOUND when it is gone meanwhile, or another user's."""
        row = await self._conn.fetchrow(
            "insert into messages (tenant_id, conversation_id, id, role, content, citations, model, prompt_tokens,"
            " completion_tokens, cost_usd, usage_estimated, status, answered)"
            " select $1, c.id, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $11, $12, $13, $14 from conversations c"
            " where c.tenant_id = $1 and c.user_id = $2 and c.id = $3 for key share"
            " returning id, role, content, citations, model, prompt_tokens, completion_tokens, cost_usd,"
            " usage_estimated, status, answered, created_at",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            new_id(),
            new.role,
            new.content,
            msgspec.json.encode(new.citations).decode(),
            new.model,
            new.usage.prompt_tokens,
            new.usage.completion_tokens,
            new.usage.cost_usd,
            new.usage.estimated,
            new.status.value,
            new.answered,
        )
        if row is None:
            raise AppError(Code.CONVERSATION_NOT_FOUND, "There is no such conversation.")
        return _message(row)

    async def latest(self, conversation_id: UUID, *, limit: int) -> list[Message]:
        """The last `limit` messages, oldest of them first."""
        rows = await self._conn.fetch(
            MESSAGE + " order by m.created_at desc, m.id desc limit $4",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            limit,
        )
        return [_message(row) for row in reversed(rows)]

    async def rate(self, conversation_id: UUID, message_id: UUID, *, rating: int, comment: str | None) -> None:
        """Stores or replaces the user's opinion of an answer. Raises MESSAGE_NOT_FOUND, for a question too."""
        done = await self._conn.fetchval(
            "insert into message_feedback (tenant_id, message_id, user_id, rating, comment)"
            " select $1, m.id, $2, $5, $6 from messages m"
            " join conversations c on c.tenant_id = m.tenant_id and c.id = m.conversation_id"
            " where m.tenant_id = $1 and c.user_id = $2 and m.conversation_id = $3 and m.id = $4"
            " and m.role = 'assistant'"
            " on conflict (tenant_id, message_id, user_id)"
            " do update set rating = excluded.rating, comment = excluded.comment, created_at = now()"
            " returning message_id",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            message_id,
            rating,
            comment,
        )
        if done is None:
            raise AppError(Code.MESSAGE_NOT_FOUND, "There is no such answer in this conversation.")

    async def list(self, conversation_id: UUID, *, limit: int, after: tuple[datetime, UUID] | None) -> list[Message]:
        """Up to `limit` messages, oldest first, those after the (created_at, id) of `after`."""
        rows = await self._conn.fetch(
            MESSAGE + " and ($4::timestamptz is null or (m.created_at, m.id) > ($4, $5::uuid))"
            " order by m.created_at, m.id limit $6",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            after[0] if after else None,
            after[1] if after else None,
            limit,
        )
        return [_message(row) for row in rows]


def _message(row: asyncpg.Record) -> Message:
    return Message(
        id=row["id"],
        role=row["role"],
        content=row["content"],
        created_at=row["created_at"],
        citations=msgspec.json.decode(row["citations"], type=list[Citation]),
        usage=Usage(
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            cost_usd=row["cost_usd"],
            estimated=row["usage_estimated"],
        ),
        model=row["model"],
        status=MessageStatus(row["status"]),
        answered=row["answered"],
    )
