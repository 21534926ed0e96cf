"""Conversations, and answers drawn from the documents with citations."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

import msgspec

from internal.entities.conversations import (
    NOT_IN_DOCUMENTS,
    AnswerEvent,
    Citation,
    Citations,
    Conversation,
    ConversationChanges,
    Delta,
    Done,
    Message,
    MessageStatus,
    NewMessage,
    Passage,
    Usage,
)
from internal.entities.memory import Recalled
from internal.entities.search import Filters, SearchHit, SearchRequest, SearchResult
from internal.providers.llm import ChatModel
from internal.repositories.store import Store, Tx
from internal.services.drafts import Draft, Turn
from internal.services.memory import ask_for_digestion
from internal.services.names import MAX_TITLE, check_name
from internal.services.prompts import build, standalone
from internal.services.quotes import Quoter
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

PASSAGES = 8
HISTORY = 12
LONGEST_QUESTION = 10_000
LONGEST_COMMENT = 4000
GIVEN_TITLE = 80
MOST_DOCUMENTS = 200
CUT_SECONDS = 10.0

T = TypeVar("T")


class Searches(Protocol):
    """What chat needs of the search."""

    async def search(self, ctx: Context, request: SearchRequest) -> SearchResult:
        """Passages for a query, best first."""
        ...


class Recalls(Protocol):
    """What chat needs of the memory."""

    async def recall(self, ctx: Context, conversation_id: UUID, question: str, told: Sequence[Message]) -> Recalled:
        """What is worth telling a model besides the turns that it is `told`."""
        ...


class ChatService:
    """The rules of conversations. A conversation exists for its own user alone. Without `memory` nothing is remembered
    but the last turns."""

    def __init__(
        self, store: Store, search: Searches, model: ChatModel, quoter: Quoter, memory: Recalls | None = None
    ) -> None:
        self._store = store
        self._search = search
        self._model = model
        self._quoter = quoter
        self._memory = memory
        self._writing: set[asyncio.Task[Any]] = set()
        self._stopped = asyncio.Event()
        self._log = logger.get("chat")

    async def add(self, ctx: Context, *, title: str = "", document_ids: list[UUID] | None = None) -> Conversation:
        """Starts a conversation, over some documents or over all. Raises DOCUMENT_NOT_FOUND."""
        called = _check_title(title)
        async with self._store.tenant(ctx) as tx:
            await _check_documents(tx, document_ids or [])
            return await tx.conversations.add(called, document_ids or [])

    async def get(self, ctx: Context, conversation_id: UUID) -> Conversation:
        """Raises CONVERSATION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            return await tx.conversations.get(conversation_id)

    async def update(self, ctx: Context, conversation_id: UUID, changes: ConversationChanges) -> Conversation:
        """Raises CONVERSATION_NOT_FOUND or DOCUMENT_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.get(conversation_id)
            title = known.title if changes.title is msgspec.UNSET else _check_title(changes.title)
            document_ids = known.document_ids if changes.document_ids is msgspec.UNSET else changes.document_ids
            if changes.document_ids is not msgspec.UNSET:
                await _check_documents(tx, document_ids)
            return await tx.conversations.update(conversation_id, title=title, document_ids=document_ids)

    async def remove(self, ctx: Context, conversation_id: UUID) -> None:
        """Removes it with all that was said in it. Raises CONVERSATION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            await tx.conversations.remove(conversation_id)

    async def messages(
        self, ctx: Context, conversation_id: UUID, *, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[Message]:
        """Up to `limit` messages, oldest first, those after the (created_at, id). Raises CONVERSATION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            await tx.conversations.get(conversation_id)
            return await tx.messages.list(conversation_id, limit=limit, after=after)

    async def rate(
        self, ctx: Context, conversation_id: UUID, message_id: UUID, *, rating: int, comment: str | None = None
    ) -> None:
        """Keeps the user's opinion of an answer: 1 or -1. Raises CONVERSATION_NOT_FOUND or MESSAGE_NOT_FOUND."""
        if rating not in (1, -1):
            raise _invalid("rating", "must be 1 or -1")
        _check_text("comment", comment or "", longest=LONGEST_COMMENT)
        async with self._store.tenant(ctx) as tx:
            await tx.conversations.get(conversation_id)
            await tx.messages.rate(conversation_id, message_id, rating=rating, comment=comment)

    async def begin(
        self, ctx: Context, conversation_id: UUID, content: str, document_ids: list[UUID] | None = None
    ) -> Turn:
        """Stores the question and finds passages for it. What can be refused is refused here, before anything is sent.

        `document_ids` narrows this question instead of the conversation's own documents. Raises REQUEST_INVALID,
        CONVERSATION_NOT_FOUND, DOCUMENT_NOT_FOUND, and what the search raises.
        """
        question = content.strip()
        _check_text("content", question, longest=LONGEST_QUESTION, shortest=1)
        async with self._store.tenant(ctx) as tx:
            conversation = await tx.conversations.get(conversation_id)
            await _check_documents(tx, document_ids or [])
            history = await tx.messages.latest(conversation_id, limit=HISTORY)
            await tx.messages.add(conversation_id, NewMessage(role="user", content=question))
            await tx.conversations.touch(conversation_id, title=" ".join(question.split())[:GIVEN_TITLE])
        searched = standalone(question, history)
        narrow = Filters(document_ids=document_ids or conversation.document_ids)
        result = await self._search.search(ctx, SearchRequest(query=searched, k=PASSAGES, filters=narrow))
        recalled = await self._memory.recall(ctx, conversation_id, searched, history) if self._memory else Recalled()
        prompt = build(question, searched, await self._passages(ctx, result.items), history, recalled)
        return Turn(conversation_id=conversation_id, question=question, prompt=prompt)

    async def stream(self, ctx: Context, turn: Turn) -> AsyncGenerator[AnswerEvent]:
        """Deltas, citations, done. Raises MODEL_UNAVAILABLE, MODEL_REFUSED or SERVER_STOPPING, also in the middle.

        However it ends, what was sent is stored: whole, `failed`, or `cut` when the reader goes away, which also ends
        the model's call.
        """
        draft = Draft(turn, self._model)
        try:
            async with aclosing(self._until_stopped(self._pieces(ctx, turn))) as pieces:
                async for piece in pieces:
                    if text := draft.feed(piece):
                        yield Delta(text)
            if text := draft.finish():
                yield Delta(text)
            citations = await self._quoter.cite(ctx, draft.text.cited())
            yield Citations(citations)
            # From here on the answer is complete, even if the reader leaves before the last event.
            message = await self._write(ctx, draft, MessageStatus.COMPLETE, citations)
        except (asyncio.CancelledError, GeneratorExit):
            await self._write_unfinished(ctx, draft, MessageStatus.CUT)
            raise
        except Exception:
            await self._write_unfinished(ctx, draft, MessageStatus.FAILED)
            raise
        yield Done(message)

    async def answer(
        self, ctx: Context, conversation_id: UUID, content: str, document_ids: list[UUID] | None = None
    ) -> AsyncGenerator[AnswerEvent]:
        """`begin` and `stream` in one."""
        turn = await self.begin(ctx, conversation_id, content, document_ids)
        async with aclosing(self.stream(ctx, turn)) as events:
            async for event in events:
                yield event

    async def reply(
        self, ctx: Context, conversation_id: UUID, content: str, document_ids: list[UUID] | None = None
    ) -> Message:
        """The whole answer at once. Raises what `begin` and `stream` raise."""
        async with aclosing(self.answer(ctx, conversation_id, content, document_ids)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event.message
        raise AppError(Code.INTERNAL, "The answer ended without a message.")

    def stop(self) -> None:
        """Ends every answer that is being written with SERVER_STOPPING."""
        self._stopped.set()

    async def close(self) -> None:
        """Waits for answers whose readers went away to be stored."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=CUT_SECONDS)

    async def list(self, ctx: Context, *, limit: int, before: tuple[datetime, UUID] | None) -> list[Conversation]:
        """Up to `limit` conversations, last used first, those before the (updated_at, id)."""
        async with self._store.tenant(ctx) as tx:
            return await tx.conversations.list(limit=limit, before=before)

    async def _passages(self, ctx: Context, hits: "list[SearchHit]") -> "list[Passage]":
        """Hits as a model may cite them, with the places of their parts."""
        async with self._store.tenant(ctx) as tx:
            parts = await tx.chunks.parts([hit.chunk_id for hit in hits])
        return [
            Passage(
                number=number,
                chunk_id=hit.chunk_id,
                document_id=hit.document_id,
                filename=hit.filename,
                text=hit.text,
                score=hit.score,
                location=hit.location,
                parts=parts.get(hit.chunk_id, ()),
            )
            for number, hit in enumerate(hits, 1)
        ]

    async def _pieces(self, ctx: Context, turn: Turn) -> AsyncGenerator[str | Usage]:
        """The model's answer; where nothing was found or remembered no model is asked."""
        if not turn.prompt.grounded:
            yield NOT_IN_DOCUMENTS
            yield Usage()
            return
        async with aclosing(self._model.stream(ctx, turn.prompt)) as pieces:
            async for piece in pieces:
                yield piece

    async def _until_stopped(self, pieces: AsyncGenerator[str | Usage]) -> AsyncGenerator[str | Usage]:
        """The same pieces. Raises SERVER_STOPPING as soon as `stop` is called, whatever is being waited for."""
        stopped = asyncio.create_task(self._stopped.wait())
        waiting: asyncio.Task[str | Usage] | None = None
        try:
            while True:
                waiting = asyncio.create_task(_next(pieces))
                await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    raise AppError(
                        Code.SERVER_STOPPING,
                        "This server stops before the answer is complete; ask again.",
                        retry_after=1,
                    )
                try:
                    yield waiting.result()
                except StopAsyncIteration:
                    return
        finally:
            stopped.cancel()
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting})
            await pieces.aclose()

    async def _write(self, ctx: Context, draft: Draft, status: MessageStatus, citations: "list[Citation]") -> Message:
        """Stores the answer; a reader who leaves meanwhile doesn't undo it."""
        draft.written = True
        return await asyncio.shield(self._spawn(self._store_answer(ctx, draft, status, citations)))

    async def _write_unfinished(self, ctx: Context, draft: Draft, status: MessageStatus) -> None:
        """Stores what was sent, in a task of its own: the one that was cancelled may be cancelled again."""
        if draft.written:
            return
        draft.written = True
        await asyncio.shield(self._spawn(self._store_unfinished(ctx, draft, status)))

    async def _store_unfinished(self, ctx: Context, draft: Draft, status: MessageStatus) -> None:
        try:
            async with asyncio.timeout(CUT_SECONDS):
                citations = await self._quoter.cite(ctx, draft.text.cited())
                await self._store_answer(ctx, draft, status, citations)
        except (AppError, TimeoutError) as error:
            # Nobody is there to be told: the reader left, or is being told of the failure that came first.
            self._log.warning("unfinished answer not stored", status=status.value, error=str(error))

    async def _store_answer(
        self, ctx: Context, draft: Draft, status: MessageStatus, citations: "list[Citation]"
    ) -> Message:
        new = NewMessage(
            role="assistant",
            content=draft.text.text,
            citations=tuple(citations),
            usage=draft.usage(status),
            model=self._model.name,
            status=status,
            answered=not draft.absent,
        )
        charged = draft.charged(status)
        try:
            async with self._store.tenant(ctx) as tx:
                message = await tx.messages.add(draft.turn.conversation_id, new)
                if charged is not None:
                    await tx.usage.add(charged)
                if self._memory:
                    await ask_for_digestion(tx, ctx, draft.turn.conversation_id)
                return message
        except AppError as error:
            if error.code is Code.CONVERSATION_NOT_FOUND and charged is not None:
                async with self._store.tenant(ctx) as tx:
                    await tx.usage.add(charged)
            raise

    def _spawn(self, work: "Coroutine[Any, Any, T]") -> "asyncio.Task[T]":
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task


async def _next(pieces: AsyncGenerator[str | Usage]) -> str | Usage:
    return await anext(pieces)


async def _check_documents(tx: Tx, document_ids: "list[UUID]") -> None:
    if len(document_ids) > MOST_DOCUMENTS:
        raise _invalid("document_ids", f"at most {MOST_DOCUMENTS} documents")
    if document_ids and set(document_ids) - await tx.documents.visible(document_ids):
        raise AppError(Code.DOCUMENT_NOT_FOUND, "There is no such document.")


def _check_title(title: str) -> str:
    return check_name(title, "title", shortest=0, longest=MAX_TITLE)


def _check_text(field: str, text: str, *, longest: int, shortest: int = 0) -> None:
    if not shortest <= len(text) <= longest:
        raise _invalid(field, f"must have {shortest} to {longest} characters")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise _invalid(field, "has a NUL or half of a surrogate pair, which is not text")


def _invalid(field: str, message: str) -> AppError:
    return AppError(Code.REQUEST_INVALID, f"{field} {message}.", errors=[{"field": field, "message": message}])
