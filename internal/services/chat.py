"""Answers drawn from the documents with citations."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar
from uuid import UUID

from internal.entities.conversations import (
    NOT_IN_DOCUMENTS,
    AnswerEvent,
    Citations,
    Conversation,
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
from internal.entities.usage import NewUsage, Purpose
from internal.providers.llm import ChatModel
from internal.repositories.store import Store, Tx
from internal.services.conversations import check_documents, check_text
from internal.services.drafts import Draft, Turn, until_set
from internal.services.memory import ask_for_digestion
from internal.services.passages import as_found, readable
from internal.services.pictures import Pictures, beside, clue
from internal.services.prompts import PASSAGE_TOKENS, build
from internal.services.quotes import Quoter
from internal.services.rewriting import Rewriter, RuleRewriter, fused
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

PASSAGES = 8
HISTORY = 12
LONGEST_QUESTION = 10_000
GIVEN_TITLE = 80
CUT_SECONDS = 10.0

T = TypeVar("T")


class Searches(Protocol):
    """What chat needs of the search."""

    async def search(self, ctx: Context, request: SearchRequest) -> SearchResult:
        """Passages for a query, best first."""
        ...


class Recalls(Protocol):
    """What chat needs of the memory."""

    async def recall(
        self, ctx: Context, conversation_id: UUID, question: str, told: Sequence[Message], at: UUID | None
    ) -> Recalled:
        """What is worth telling a model besides the turns that it is `told`, of the branch that ends with `at`."""
        ...


class ChatService:
    """Questions and their answers. Without `memory` nothing is remembered but the last turns."""

    def __init__(
        self,
        store: Store,
        search: Searches,
        model: ChatModel,
        quoter: Quoter,
        memory: Recalls | None = None,
        rewriter: Rewriter | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        self._store = store
        self._search = search
        self._model = model
        self._quoter = quoter
        self._memory = memory
        self._rewriter = rewriter or RuleRewriter()
        self._pictures = pictures or Pictures(store)
        self._writing: set[asyncio.Task[Any]] = set()
        self._stopped = asyncio.Event()
        self._log = logger.get("chat")

    async def begin(
        self,
        ctx: Context,
        conversation_id: UUID,
        content: str,
        document_ids: list[UUID] | None = None,
        *,
        parent_id: UUID | None = None,
        attachment_ids: Sequence[UUID] = (),
    ) -> Turn:
        """Stores the question and finds passages for it. What can be refused is refused here, before anything is sent.

        It follows `parent_id`, or what is shown last. `document_ids` narrows this question instead of the
        conversation's own documents; `attachment_ids` are the pictures that it is asked about. Raises REQUEST_INVALID,
        CONVERSATION_NOT_FOUND, MESSAGE_NOT_FOUND, DOCUMENT_NOT_FOUND, and what `Pictures.admit` and the search raise.
        """
        text = _question(content)
        pictures = await self._pictures.admit(ctx, attachment_ids)
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.lock(conversation_id)
            await check_documents(tx, document_ids or [])
            if parent_id is not None:
                await tx.messages.get(conversation_id, parent_id)
            question = await self._ask(tx, known, text, parent_id or known.current_message_id, pictures)
        return await self._turn(ctx, known, question, document_ids)

    async def begin_edited(
        self,
        ctx: Context,
        conversation_id: UUID,
        message_id: UUID,
        content: str,
        document_ids: list[UUID] | None = None,
        *,
        attachment_ids: Sequence[UUID] | None = None,
    ) -> Turn:
        """The same for another wording of a question: it stands beside the old one, which stays, and is asked about the
        same pictures where none are named.

        Raises what `begin` raises, and MESSAGE_NOT_A_QUESTION.
        """
        text = _question(content)
        pictures = None if attachment_ids is None else await self._pictures.admit(ctx, attachment_ids)
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.lock(conversation_id)
            await check_documents(tx, document_ids or [])
            old = await tx.messages.get(conversation_id, message_id)
            if old.role != "user":
                raise AppError(Code.MESSAGE_NOT_A_QUESTION, "Only a question can be edited.")
            if pictures is None:
                pictures = tuple(item.document_id for item in old.attachments)
            question = await self._ask(tx, known, text, old.parent_id, pictures)
        return await self._turn(ctx, known, question, document_ids)

    async def begin_again(
        self, ctx: Context, conversation_id: UUID, message_id: UUID, document_ids: list[UUID] | None = None
    ) -> Turn:
        """The same for another answer to a question, named by itself or by one of its answers.

        Raises CONVERSATION_NOT_FOUND, MESSAGE_NOT_FOUND, MESSAGE_NOT_A_QUESTION, DOCUMENT_NOT_FOUND, and what the
        search raises.
        """
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.get(conversation_id)
            await check_documents(tx, document_ids or [])
            question = await tx.messages.get(conversation_id, message_id)
            if question.role != "user" and question.parent_id is not None:
                question = await tx.messages.get(conversation_id, question.parent_id)
            if question.role != "user":
                raise AppError(Code.MESSAGE_NOT_A_QUESTION, "This answer follows no question.")
        return await self._turn(ctx, known, question, document_ids, again=True)

    async def stream(self, ctx: Context, turn: Turn) -> AsyncGenerator[AnswerEvent]:
        """Deltas, citations, done. Raises MODEL_UNAVAILABLE, MODEL_REFUSED or SERVER_STOPPING, also in the middle.

        However it ends, what was sent is stored: whole, `failed`, or `cut` when the reader goes away, which also ends
        the model's call.
        """
        draft = Draft(turn, self._model)
        try:
            async with aclosing(until_set(self._stopped, self._pieces(ctx, turn))) as pieces:
                async for piece in pieces:
                    if text := draft.feed(piece):
                        yield Delta(text)
            if text := draft.finish():
                yield Delta(text)
            if text := draft.settle(await self._quoter.check(ctx, draft.text)):
                yield Delta(text)
            yield Citations(list(draft.citations))
            # From here on the answer is complete, even if the reader leaves before the last event.
            message = await self._write(ctx, draft, MessageStatus.COMPLETE)
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

    async def _ask(
        self, tx: Tx, known: Conversation, text: str, parent_id: UUID | None, pictures: tuple[UUID, ...]
    ) -> Message:
        """Stores a question and shows it last."""
        new = NewMessage(role="user", content=text, parent_id=parent_id, attachment_ids=pictures)
        question = await tx.messages.add(known.id, new)
        await tx.conversations.show(known.id, question.id)
        await tx.conversations.touch(known.id, title=" ".join(text.split())[:GIVEN_TITLE])
        return question

    async def _turn(
        self,
        ctx: Context,
        known: Conversation,
        question: Message,
        document_ids: list[UUID] | None,
        *,
        again: bool = False,
    ) -> Turn:
        """What the model is told: of what was said before, the question's own branch alone."""
        async with self._store.tenant(ctx) as tx:
            above = await tx.messages.path(known.id, question.parent_id, limit=HISTORY)
            history = await tx.messages.these(known.id, above)
        rewritten = await self._rewriter.rewrite(ctx, question.content, history)
        searched = rewritten.question
        if rewritten.usage is not None:
            await self._book(ctx, known.id, Purpose.CHAT, rewritten.model, rewritten.usage)
        view = await self._pictures.look(ctx, question, history, joins=self._model.reads_on)
        if view.usage is not None:
            await self._book(ctx, known.id, Purpose.VISION, view.model, view.usage)
        told = clue(view)
        queries = (searched, *rewritten.queries, *([f"{searched} {told}"] if told else []))
        narrow = Filters(document_ids=document_ids or known.document_ids)
        found = [
            await self._search.search(ctx, SearchRequest(query=query, k=PASSAGES, filters=narrow)) for query in queries
        ]
        hits = fused([result.items for result in found])[:PASSAGES]
        passages, extent = await self._passages(ctx, hits, narrow)
        recalled = Recalled()
        if self._memory:
            recalled = await self._memory.recall(ctx, known.id, searched, history, question.id)
        return Turn(
            conversation_id=known.id,
            question=question.content,
            question_id=question.id,
            shown=known.current_message_id if again else question.id,
            again=again,
            prompt=build(
                question.content,
                searched,
                beside(view, passages),
                history,
                recalled,
                extent,
                found[0].coverage,
                view,
                told,
            ),
        )

    async def _book(self, ctx: Context, conversation_id: UUID, purpose: Purpose, model: str, usage: Usage) -> None:
        """Writes down what was spent, whatever becomes of the answer."""
        async with self._store.tenant(ctx) as tx:
            await tx.usage.add(NewUsage(purpose=purpose, model=model, source_id=conversation_id, usage=usage))

    async def _passages(self, ctx: Context, hits: list[SearchHit], narrow: Filters) -> tuple[list[Passage], int]:
        """Hits as the model may cite them, with the places of their parts, or with what stands around them if it reads
        on; for one that only quotes how many were searched, too: the more, the less does the best one tell."""
        ids = [hit.chunk_id for hit in hits]
        async with self._store.tenant(ctx) as tx:
            if self._model.reads_on:
                return readable(hits, await tx.chunks.around(ids, steps=1), tokens=PASSAGE_TOKENS), 0
            return as_found(hits, await tx.chunks.parts(ids)), await tx.documents.extent(narrow.document_ids)

    async def _pieces(self, ctx: Context, turn: Turn) -> AsyncGenerator[str | Usage]:
        """The model's answer; where nothing was found or remembered no model is asked."""
        if not turn.prompt.grounded:
            yield NOT_IN_DOCUMENTS
            yield Usage()
            return
        async with aclosing(self._model.stream(ctx, turn.prompt)) as pieces:
            async for piece in pieces:
                yield piece

    async def _write(self, ctx: Context, draft: Draft, status: MessageStatus) -> Message:
        """Stores the answer; a reader who leaves meanwhile doesn't undo it."""
        draft.written = True
        return await asyncio.shield(self._spawn(self._store_answer(ctx, draft, status)))

    async def _write_unfinished(self, ctx: Context, draft: Draft, status: MessageStatus) -> None:
        """Stores what was sent, in a task of its own: the one that was cancelled may be cancelled again."""
        if draft.written:
            return
        draft.written = True
        await asyncio.shield(self._spawn(self._store_unfinished(ctx, draft, status)))

    async def _store_unfinished(self, ctx: Context, draft: Draft, status: MessageStatus) -> None:
        try:
            async with asyncio.timeout(CUT_SECONDS):
                draft.settle(await self._quoter.check(ctx, draft.text))
                await self._store_answer(ctx, draft, status)
        except (AppError, TimeoutError) as error:
            # Nobody is there to be told: the reader left, or is being told of the failure that came first.
            self._log.warning("unfinished answer not stored", status=status.value, error=str(error))

    async def _store_answer(self, ctx: Context, draft: Draft, status: MessageStatus) -> Message:
        new = NewMessage(
            role="assistant",
            content=draft.content,
            parent_id=draft.turn.question_id,
            citations=draft.citations,
            usage=draft.usage(status),
            model=self._model.name,
            status=status,
            answered=not draft.absent,
        )
        charged = draft.charged(status)
        try:
            async with self._store.tenant(ctx) as tx:
                known = await tx.conversations.lock(draft.turn.conversation_id)
                message = await tx.messages.add(known.id, new)
                if not draft.turn.again:
                    await tx.messages.put_between(known.id, draft.turn.question_id, message.id)
                if await self._takes_over(tx, known, draft.turn, status):
                    await tx.conversations.show(known.id, message.id)
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

    async def _takes_over(self, tx: Tx, known: Conversation, turn: Turn, status: MessageStatus) -> bool:
        """Whether an answer is shown: in place of its question; in place of another answer only if it is whole, and
        not when the user went to another branch meanwhile."""
        shown = known.current_message_id
        if shown is None or shown == turn.question_id:
            return True
        if status is not MessageStatus.COMPLETE:
            return False
        return shown == turn.shown or (await tx.messages.get(known.id, shown)).parent_id == turn.question_id

    def _spawn(self, work: "Coroutine[Any, Any, T]") -> "asyncio.Task[T]":
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task


def _question(content: str) -> str:
    """The question without blanks around it. Raises REQUEST_INVALID."""
    text = content.strip()
    check_text("content", text, longest=LONGEST_QUESTION, shortest=1)
    return text
