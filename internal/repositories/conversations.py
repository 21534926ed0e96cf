"""SQL of conversations. Each belongs to one user; every statement adds tenant and user, the policies lie beneath."""

from datetime import datetime
from uuid import UUID

import asyncpg

from internal.entities.conversations import Conversation
from internal.entities.ids import new_id
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context


class ConversationRepository:
    """Conversations of the context's user."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def add(self, title: str, document_ids: list[UUID]) -> Conversation:
        """Adds an empty conversation."""
        row = await self._conn.fetchrow(
            "insert into conversations (tenant_id, user_id, id, title, document_ids) values ($1, $2, $3, $4, $5)"
            " returning id, title, document_ids, current_message_id, created_at, updated_at",
            self._ctx.tenant_id,
            self._ctx.user_id,
            new_id(),
            title,
            document_ids,
        )
        if row is None:
            raise AppError(Code.INTERNAL, "The conversation could not be stored.")
        return _conversation(row)

    async def get(self, conversation_id: UUID) -> Conversation:
        """Raises CONVERSATION_NOT_FOUND, for another user's too."""
        row = await self._conn.fetchrow(
            "select id, title, document_ids, current_message_id, created_at, updated_at from conversations"
            " where tenant_id = $1 and user_id = $2 and id = $3",
            self._ctx.tenant_id,
            self._ctx.user_id,
            conversation_id,
        )
        if row is None:
            raise _missing()
        return _conversation(row)

    async def lock(self, conversation_id: UUID) -> Conversation:
        """The same, and nobody else adds to it or moves in it until the transaction ends."""
        row = await self._conn.fetchrow(
            "select id, title, document_ids, current_message_id, created_at, updated_at from conversations"
            " where tenant_id = $1 and user_id = $2 and id = $3 for no key update",
            self._ctx.tenant_id,
            self._ctx.user_id,
            conversation_id,
        )
        if row is None:
            raise _missing()
        return _conversation(row)

    async def show(self, conversation_id: UUID, message_id: UUID) -> None:
        """Makes a message the last of the path that is shown."""
        await self._conn.execute(
            "update conversations set current_message_id = $4 where tenant_id = $1 and user_id = $2 and id = $3",
            self._ctx.tenant_id,
            self._ctx.user_id,
            conversation_id,
            message_id,
        )

    async def update(self, conversation_id: UUID, *, title: str, document_ids: list[UUID]) -> Conversation:
        """Writes both fields. Raises CONVERSATION_NOT_FOUND."""
        row = await self._conn.fetchrow(
            "update conversations set title = $4, document_ids = $5, updated_at = now()"
            " where tenant_id = $1 and user_id = $2 and id = $3"
            " returning id, title, document_ids, current_message_id, created_at, updated_at",
            self._ctx.tenant_id,
            self._ctx.user_id,
            conversation_id,
            title,
            document_ids,
        )
        if row is None:
            raise _missing()
        return _conversation(row)

    async def touch(self, conversation_id: UUID, *, title: str) -> None:
        """Notes that it was used, and names it `title` when it has no name. Raises CONVERSATION_NOT_FOUND."""
        done = await self._conn.fetchval(
            "update conversations set updated_at = now(), title = case when title = '' then $4 else title end"
            " where tenant_id = $1 and user_id = $2 and id = $3 returning id",
            self._ctx.tenant_id,
            self._ctx.user_id,
            conversation_id,
            title,
        )
        if done is None:
            raise _missing()

    async def remove(self, conversation_id: UUID) -> None:
        """Removes it with its messages and their feedback. Raises CONVERSATION_NOT_FOUND."""
        done = await self._conn.fetchval(
            "delete from conversations where tenant_id = $1 and user_id = $2 and id = $3 returning id",
            self._ctx.tenant_id,
            self._ctx.user_id,
            conversation_id,
        )
        if done is None:
            raise _missing()

    async def list(self, *, limit: int, before: tuple[datetime, UUID] | None) -> list[Conversation]:
        """Up to `limit` conversations, last used first, those before the (updated_at, id) of `before`."""
        rows = await self._conn.fetch(
            "select id, title, document_ids, current_message_id, created_at, updated_at from conversations"
            " where tenant_id = $1 and user_id = $2"
            " and ($3::timestamptz is null or (updated_at, id) < ($3, $4::uuid))"
            " order by updated_at desc, id desc limit $5",
            self._ctx.tenant_id,
            self._ctx.user_id,
            before[0] if before else None,
            before[1] if before else None,
            limit,
        )
        return [_conversation(row) for row in rows]


def _missing() -> AppError:
    return AppError(Code.CONVERSATION_NOT_FOUND, "There is no such conversation.")


def _conversation(row: asyncpg.Record) -> Conversation:
    return Conversation(
        id=row["id"],
        title=row["title"],
        document_ids=list(row["document_ids"]),
        current_message_id=row["current_message_id"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
