"""SQL of memories and summaries. They belong to one user; every statement adds tenant and user."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import numpy as np

from internal.entities.ids import new_id
from internal.entities.memory import Candidate, Finding, Memory, MemoryKind, MemoryState, NewMemory, SummaryLine
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

RECALLABLE = (
    "select m.id, m.conversation_id, m.kind, m.text, m.importance, m.source_id, m.created_at, m.terms,"
    " case when m.space = $4 then m.vector end as vector from memories m where m.tenant_id = $1 and m.user_id = $2"
    " and m.superseded_at is null and (m.conversation_id = $3 or (m.kind <> 'turn' and exists (select 1"
    " from memory_settings s where s.tenant_id = $1 and s.user_id = $2 and s.across_conversations)))"
    " and (m.document_ids = '{}' or cardinality(m.document_ids) = (select count(*) from documents d"
    " where d.tenant_id = $1 and (d.visibility = 'tenant' or d.owner_id = $2) and d.id = any(m.document_ids)))"
    " and (m.kind <> 'turn' or m.answer_id is null or m.answer_id = any($6))"
    " order by (m.kind = 'turn'), m.created_at desc limit $5"
)
SHOWN = (
    "select m.id, m.conversation_id, m.kind, m.text, m.importance, m.source_id, m.created_at from memories m"
    " where m.tenant_id = $1 and m.user_id = $2 and m.conversation_id = $3 and m.superseded_at is null"
    " and m.kind <> 'turn'"
)
STATE = (
    "select lines, digested_at, digested_id from conversation_memories"
    " where tenant_id = $1 and user_id = $2 and conversation_id = $3"
)


class MemoryRepository:
    """What is remembered of one user's conversations."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context, user_id: UUID) -> None:
        self._conn = conn
        self._ctx = ctx
        self._user_id = user_id

    async def request(self, conversation_id: UUID) -> bool:
        """Notes that there is something to digest; False when that was noted already.

        A digestion that hasn't begun after an hour is asked for again.
        """
        return (
            await self._conn.fetchval(
                "insert into conversation_memories as s (tenant_id, user_id, conversation_id, requested_at)"
                " values ($1, $2, $3, now())"
                " on conflict (tenant_id, conversation_id) do update set requested_at = now()"
                " where s.requested_at is null or s.requested_at < now() - interval '1 hour'"
                " returning true",
                self._ctx.tenant_id,
                self._user_id,
                conversation_id,
            )
            or False
        )

    async def open(self, conversation_id: UUID, state: MemoryState) -> None:
        """Begins a conversation with a summary and a place; nothing of it is to be digested."""
        await self._conn.execute(
            "insert into conversation_memories (tenant_id, user_id, conversation_id, lines, digested_at, digested_id)"
            " values ($1, $2, $3, $4::text::jsonb, $5, $6)",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            msgspec.json.encode(state.lines).decode(),
            *(state.place or (None, None)),
        )

    async def begin(self, conversation_id: UUID) -> MemoryState | None:
        """How far it is digested; what is said from now on asks for another digestion. None when it is gone."""
        row = await self._conn.fetchrow(
            "update conversation_memories set requested_at = null"
            " where tenant_id = $1 and user_id = $2 and conversation_id = $3 returning lines, digested_at, digested_id",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
        )
        return None if row is None else _state(row)

    async def find(self, conversation_id: UUID) -> MemoryState | None:
        """How far it is digested. None when nothing was asked for yet, or it is gone."""
        row = await self._conn.fetchrow(STATE, self._ctx.tenant_id, self._user_id, conversation_id)
        return None if row is None else _state(row)

    async def lock(self, conversation_id: UUID) -> MemoryState | None:
        """The same, and nobody changes it until the end of the transaction."""
        row = await self._conn.fetchrow(
            STATE + " for update",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
        )
        return None if row is None else _state(row)

    async def finish(self, conversation_id: UUID, state: MemoryState) -> None:
        """Writes the summary, and up to where it tells."""
        await self._conn.execute(
            "update conversation_memories set lines = $4::text::jsonb, digested_at = $5, digested_id = $6"
            " where tenant_id = $1 and user_id = $2 and conversation_id = $3",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            msgspec.json.encode(state.lines).decode(),
            *(state.place or (None, None)),
        )

    async def add(self, conversation_id: UUID, space: str, new: NewMemory) -> UUID:
        """Adds a memory; answers its id."""
        finding, memory_id = new.finding, new_id()
        await self._conn.execute(
            "insert into memories (tenant_id, user_id, conversation_id, id, kind, subject, text, importance,"
            " source_id, terms, vector, space, created_at, document_ids, answer_id)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            memory_id,
            finding.kind.value,
            finding.subject,
            finding.text,
            finding.importance,
            finding.source_id,
            new.terms,
            new.vector.astype("<f2").tobytes(),
            space,
            finding.created_at,
            list(finding.document_ids),
            finding.answer_id,
        )
        return memory_id

    async def supersede(self, conversation_id: UUID, finding: Finding, memory_id: UUID) -> None:
        """Lets go of what a new memory takes the place of: what is on its subject, or says the same."""
        await self._conn.execute(
            "update memories set superseded_at = now() where tenant_id = $1 and user_id = $2 and conversation_id = $3"
            " and superseded_at is null and kind <> 'turn' and id <> $6 and (subject = $4 or text = $5)",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            finding.subject,
            finding.text,
            memory_id,
        )

    async def candidates(
        self, conversation_id: UUID, space: str, path: Sequence[UUID], *, limit: int
    ) -> Sequence[Candidate]:
        """The newest `limit` of what may be recalled: of the conversation, exchanges only of the messages of `path`,
        and, where the user wants it, facts and preferences of the user's others."""
        rows = await self._conn.fetch(
            RECALLABLE,
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            space,
            limit,
            path,
        )
        return [
            Candidate(
                memory=_memory(row),
                terms=frozenset(row["terms"]),
                vector=None if row["vector"] is None else np.frombuffer(row["vector"], "<f2").astype(np.float32),
            )
            for row in rows
        ]

    async def get(self, conversation_id: UUID, memory_id: UUID) -> Memory:
        """Raises MEMORY_NOT_FOUND, for a turn and for what was superseded too."""
        row = await self._conn.fetchrow(
            SHOWN + " and m.id = $4 for update",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
            memory_id,
        )
        if row is None:
            raise AppError(Code.MEMORY_NOT_FOUND, "There is no such memory.")
        return _memory(row)

    async def correct(self, memory: Memory, terms: Sequence[int], vector: bytes, space: str) -> None:
        """Writes a memory's words and importance."""
        await self._conn.execute(
            "update memories set text = $4, importance = $5, terms = $6, vector = $7, space = $8"
            " where tenant_id = $1 and user_id = $2 and id = $3",
            self._ctx.tenant_id,
            self._user_id,
            memory.id,
            memory.text,
            memory.importance,
            terms,
            vector,
            space,
        )

    async def weigh(self, memory_id: UUID, importance: float) -> None:
        """Writes a memory's importance."""
        await self._conn.execute(
            "update memories set importance = $4 where tenant_id = $1 and user_id = $2 and id = $3",
            self._ctx.tenant_id,
            self._user_id,
            memory_id,
            importance,
        )

    async def remove(self, memory_id: UUID) -> None:
        """Removes one memory."""
        await self._conn.execute(
            "delete from memories where tenant_id = $1 and user_id = $2 and id = $3",
            self._ctx.tenant_id,
            self._user_id,
            memory_id,
        )

    async def forget_turn(self, source_id: UUID) -> None:
        """Removes what holds the words of a message besides a correction: its turn, and what was superseded."""
        await self._conn.execute(
            "delete from memories where tenant_id = $1 and user_id = $2 and source_id = $3"
            " and (kind = 'turn' or superseded_at is not null)",
            self._ctx.tenant_id,
            self._user_id,
            source_id,
        )

    async def across(self) -> bool:
        """Whether the user's other conversations are recalled."""
        return (
            await self._conn.fetchval(
                "select across_conversations from memory_settings where tenant_id = $1 and user_id = $2",
                self._ctx.tenant_id,
                self._user_id,
            )
            or False
        )

    async def set_across(self, wanted: bool) -> None:
        """Turns that on or off."""
        await self._conn.execute(
            "insert into memory_settings (tenant_id, user_id, across_conversations) values ($1, $2, $3)"
            " on conflict (tenant_id, user_id) do update set across_conversations = excluded.across_conversations",
            self._ctx.tenant_id,
            self._user_id,
            wanted,
        )

    async def list(self, conversation_id: UUID) -> list[Memory]:
        """What holds now, the newest first, without turns."""
        rows = await self._conn.fetch(
            SHOWN + " order by m.created_at desc, m.id desc",
            self._ctx.tenant_id,
            self._user_id,
            conversation_id,
        )
        return [_memory(row) for row in rows]


def _state(row: asyncpg.Record) -> MemoryState:
    place: tuple[datetime, UUID] | None = (row["digested_at"], row["digested_id"]) if row["digested_id"] else None
    return MemoryState(lines=msgspec.json.decode(row["lines"], type=tuple[SummaryLine, ...]), place=place)


def _memory(row: Any) -> Memory:
    return Memory(
        id=row["id"],
        conversation_id=row["conversation_id"],
        kind=MemoryKind(row["kind"]),
        text=row["text"],
        importance=round(row["importance"], 4),
        source_id=row["source_id"],
        created_at=row["created_at"],
    )
