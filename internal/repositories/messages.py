"""SQL of messages and their feedback, as far as the conversation is the user's."""

from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.conversations import Attachment, Citation, Message, MessageStatus, NewMessage, Usage
from internal.entities.ids import new_id
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

LONGEST_PATH = 20_000
"""Messages of one path; of a longer one the last are shown."""

# $1 is the tenant, $2 the user and $3 the conversation in each statement that uses these.
MESSAGE = (
    "select m.id, m.role, m.content, m.citations, m.model, m.prompt_tokens, m.completion_tokens, m.cost_usd,"
    " m.usage_estimated, m.status, m.answered, m.created_at, m.parent_id, m.attachment_ids,"
    " array(select s.id from messages s where s.tenant_id = m.tenant_id and s.conversation_id = m.conversation_id"
    " and s.parent_id is not distinct from m.parent_id order by s.created_at, s.id) as siblings from messages m"
    " join conversations c on c.tenant_id = m.tenant_id and c.id = m.conversation_id"
    " where m.tenant_id = $1 and c.user_id = $2 and m.conversation_id = $3"
)
# From the message $4 up to the first, at most $5 of them.
PATH = (
    "with recursive path (id, parent_id, height) as (select m.id, m.parent_id, 1 from messages m"
    " join conversations c on c.tenant_id = m.tenant_id and c.id = m.conversation_id"
    " where m.tenant_id = $1 and c.user_id = $2 and m.conversation_id = $3 and m.id = $4"
    " union all select m.id, m.parent_id, p.height + 1 from path p join messages m on m.tenant_id = $1"
    " and m.conversation_id = $3 and m.id = p.parent_id where p.height < $5)"
    " select id from path order by height desc"
)


class MessageRepository:
    """Turns of one user's conversations."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context, user_id: UUID) -> None:
        self._conn = conn
        self._ctx = ctx
        self._user_id = user_id

    async def add(self, conversation_id: UUID, new: NewMessage) -> Message:
        """For a transaction that has locked the conversation: so times and commits are in one order.

        Raises CONVERSATION_NOT_FOUND when it is gone meanwhile, or another user's.
        """
        row = await self._conn.fetchrow(
            "insert into messages (tenant_id, conversation_id, id, role, content, citations, model, prompt_tokens,"
            " completion_tokens, cost_usd, usage_estimated, status, answered, parent_id, attachment_ids, created_at)"
            " select $1, c.id, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $11, $12, $13, $14, $15, $16,"
            " clock_timestamp() from conversations c"
            " where c.tenant_id = $1 and c.user_id = $2 and c.id = $3 for key share"
            " returning id",
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
            new.parent_id,
            list(new.attachment_ids),
        )
        if row is None:
            raise AppError(Code.CONVERSATION_NOT_FOUND, "There is no such conversation.")
        return await self.get(conversation_id, row["id"])

    async def get(self, conversation_id: UUID, message_id: UUID) -> Message:
        """Raises MESSAGE_NOT_FOUND, for a message of another conversation too."""
        row = await self._conn.fetchrow(
            MESSAGE + " and m.id = $4",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            message_id,
        )
        if row is None:
            raise AppError(Code.MESSAGE_NOT_FOUND, "There is no such message in this conversation.")
        return _message(row)

    async def path(self, conversation_id: UUID, message_id: UUID | None, *, limit: int = LONGEST_PATH) -> list[UUID]:
        """The ids from the first message down to this one: the last `limit` of them; none for None."""
        if message_id is None:
            return []
        rows = await self._conn.fetch(
            PATH,
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            message_id,
            limit,
        )
        return [row["id"] for row in rows]

    async def these(self, conversation_id: UUID, ids: list[UUID]) -> list[Message]:
        """Messages of the conversation, in the order of `ids`; what isn't there is left out."""
        rows = await self._conn.fetch(
            MESSAGE + " and m.id = any($4) order by array_position($4, m.id)",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            ids,
        )
        return [_message(row) for row in rows]

    async def newest_leaf(self, conversation_id: UUID, message_id: UUID) -> UUID:
        """The newest message at or below this one that nothing follows; one that failed only where all did."""
        return sure(
            await self._conn.fetchval(
                "with recursive below (id, status, created_at) as (select m.id, m.status, m.created_at from messages m"
                " join conversations c on c.tenant_id = m.tenant_id and c.id = m.conversation_id"
                " where m.tenant_id = $1 and c.user_id = $2 and m.conversation_id = $3 and m.id = $4"
                " union all select m.id, m.status, m.created_at from below b join messages m on m.tenant_id = $1"
                " and m.conversation_id = $3 and m.parent_id = b.id)"
                " select b.id from below b where not exists (select 1 from messages f where f.tenant_id = $1"
                " and f.conversation_id = $3 and f.parent_id = b.id)"
                " order by (b.status = 'failed'), b.created_at desc, b.id desc limit 1",
                self._ctx.tenant_id,
                self._user_id,
                conversation_id,
                message_id,
            )
        )

    async def put_between(self, conversation_id: UUID, question_id: UUID, answer_id: UUID) -> None:
        """Puts questions that followed a question while its answer was awaited below the answer."""
        await self._conn.execute(
            "update messages m set parent_id = $5 from conversations c"
            " where m.tenant_id = $1 and m.conversation_id = $3"
            " and c.tenant_id = $1 and c.user_id = $2 and c.id = $3 and m.parent_id = $4 and m.role = 'user'",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            question_id,
            answer_id,
        )

    async def copy(self, conversation_id: UUID, target_id: UUID, ids: list[UUID], copies: list[UUID]) -> None:
        """Copies a path, each message below the copy of the one before; they cost nothing."""
        await self._conn.execute(
            "insert into messages (tenant_id, conversation_id, id, role, content, citations, model, status, answered,"
            " attachment_ids, parent_id, created_at)"
            " select $1, t.id, k.copy, m.role, m.content, m.citations, m.model, m.status, m.answered,"
            " m.attachment_ids, k.parent, m.created_at"
            " from unnest($5::uuid[], $6::uuid[], $7::uuid[]) as k (id, copy, parent)"
            " join messages m on m.tenant_id = $1 and m.conversation_id = $3 and m.id = k.id"
            " join conversations c on c.tenant_id = $1 and c.user_id = $2 and c.id = $3"
            " join conversations t on t.tenant_id = $1 and t.user_id = $2 and t.id = $4",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            target_id,
            ids,
            copies,
            [None, *copies[:-1]],
        )

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

    async def since(self, conversation_id: UUID, *, limit: int, after: tuple[datetime, UUID] | None) -> list[Message]:
        """Up to `limit` messages of all branches, oldest first, those after the (created_at, id) of `after`."""
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
        parent_id=row["parent_id"],
        siblings=list(row["siblings"]),
        attachments=[Attachment(document_id=document_id) for document_id in row["attachment_ids"]],
    )
