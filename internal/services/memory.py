"""What is remembered of conversations: digested by a worker, recalled for a question, mended by its user."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import numpy as np

from internal.entities.conversations import Message, MessageStatus, Usage
from internal.entities.memory import (
    MEMORY_LIMIT,
    Candidate,
    Digest,
    Exchange,
    Finding,
    Memory,
    MemoryChanges,
    MemoryKind,
    MemoryState,
    NewMemory,
    Recalled,
    Remembered,
    SummaryLine,
)
from internal.entities.tasks import Lease, NewTask, Queue, TaskKind
from internal.entities.usage import NewUsage, Purpose
from internal.providers.llm_wire import estimate_tokens
from internal.repositories.store import Store, Tx
from internal.services.embedder import Embedder
from internal.services.summaries import Summarizer
from internal.services.terms import TermAnalyser
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

PAGE = 50
"""Messages that are digested in one transaction."""
MOST_CANDIDATES = 3000
RECALL_TOKENS = 500
MOST_RECALLED = 12
HALF_LIFE = timedelta(days=90)
LEAST_RECENCY = 0.25
"""What is old stays reachable: of two that fit alike the newer comes first."""
LEAST_RELEVANCE = 0.3
WORDS_SHARE = 0.5
"""Of relevance; the rest is the vectors' similarity, as deviations within the candidates."""
TURN_IMPORTANCE = 0.5
LENT = (0.4, 0.2)
"""Of its relevance, by an exchange to the next and the next but one, before and after: what answers a question often
doesn't name what was being talked about. On locomo_public the turns sought are among the first five by .67 so, by .60
without, by .56 with BM25."""
SITTING = timedelta(hours=6)
"""Exchanges that lie further apart have nothing to do with each other."""


async def ask_for_digestion(tx: Tx, ctx: Context, conversation_id: UUID) -> None:
    """Queues the digestion of a conversation unless one is on its way. Nobody waits for it, and no cap refuses it."""
    if await tx.memories.request(conversation_id):
        payload = {"conversation_id": str(conversation_id), "user_id": str(ctx.user_id)}
        await tx.tasks.add_hidden(
            NewTask(kind=TaskKind.DIGEST_CONVERSATION, version=1, queue=Queue.LEARNING, payload=payload, bounded=False)
        )


class MemoryService:
    """Memories of the context's user alone."""

    def __init__(self, store: Store, embedder: Embedder, analyser: TermAnalyser, summarizer: Summarizer) -> None:
        self._store = store
        self._embedder = embedder
        self._analyser = analyser
        self._summarizer = summarizer
        self._log = logger.get("memory")

    async def show(self, ctx: Context, conversation_id: UUID) -> Remembered:
        """Raises CONVERSATION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.get(conversation_id)
            path = await tx.messages.path(conversation_id, known.current_message_id)
            lines = await self._lines(tx, conversation_id, path)
            items = await tx.memories.list(conversation_id)
        return Remembered(summary=_joined(lines), items=items)

    async def correct(self, ctx: Context, conversation_id: UUID, memory_id: UUID, changes: MemoryChanges) -> Memory:
        """Writes a memory anew. Its old words go: from the summary and from what is recalled of that exchange.

        Raises CONVERSATION_NOT_FOUND, MEMORY_NOT_FOUND, REQUEST_INVALID, and what embedding raises.
        """
        text = None if changes.text is msgspec.UNSET else _checked(changes.text)
        vector = None if text is None else (await self._embedder.embed_batch(ctx, [text])).vectors
        async with self._store.tenant(ctx) as tx:
            await tx.conversations.get(conversation_id)
            state = await tx.memories.lock(conversation_id)
            known = await tx.memories.get(conversation_id, memory_id)
            importance = known.importance if changes.importance is msgspec.UNSET else changes.importance
            if text is None or vector is None:
                await tx.memories.weigh(known.id, importance)
                return msgspec.structs.replace(known, importance=importance)
            changed = msgspec.structs.replace(known, text=text, importance=importance)
            terms = self._analyser.passage(ctx.tenant_id, known.id, text).terms
            await tx.memories.correct(changed, terms, vector[0].astype("<f2").tobytes(), self._space)
            await self._forget_words(tx, conversation_id, state, known, text)
            return changed

    async def forget(self, ctx: Context, conversation_id: UUID, memory_id: UUID) -> None:
        """Removes a memory, and its words from the summary and from what is recalled of that exchange.

        The message stays: it is part of the conversation. Raises CONVERSATION_NOT_FOUND or MEMORY_NOT_FOUND.
        """
        async with self._store.tenant(ctx) as tx:
            await tx.conversations.get(conversation_id)
            state = await tx.memories.lock(conversation_id)
            known = await tx.memories.get(conversation_id, memory_id)
            await tx.memories.remove(known.id)
            await self._forget_words(tx, conversation_id, state, known, None)

    async def across(self, ctx: Context) -> bool:
        """Whether facts and preferences of the user's other conversations are recalled; not until the user says so."""
        async with self._store.tenant(ctx) as tx:
            return await tx.memories.across()

    async def set_across(self, ctx: Context, *, wanted: bool) -> bool:
        """Turns that on or off."""
        async with self._store.tenant(ctx) as tx:
            await tx.memories.set_across(wanted)
        return wanted

    async def recall(
        self, ctx: Context, conversation_id: UUID, question: str, told: Sequence[Message], at: UUID | None
    ) -> Recalled:
        """What is worth telling a model besides the turns that it is `told`, of the branch that ends with message `at`.

        Raises what embedding raises.
        """
        ids = {message.id for message in told}
        async with self._store.tenant(ctx) as tx:
            path = await tx.messages.path(conversation_id, at)
            lines = await self._lines(tx, conversation_id, path)
            found = await tx.memories.candidates(conversation_id, self._space, path, limit=MOST_CANDIDATES)
        found = [item for item in found if item.memory.kind is not MemoryKind.TURN or item.memory.source_id not in ids]
        items: tuple[Memory, ...] = ()
        if found:
            query = (await self._embedder.embed_search(ctx, question)).vector
            terms = self._analyser.query(ctx.tenant_id, question).terms
            items = tuple(best(found, query, terms, datetime.now(UTC)))
        older = [line for line in lines if line.source_id not in ids]
        return Recalled(summary=_joined(older), items=items)

    async def recall_shown(self, ctx: Context, conversation_id: UUID, question: str) -> Recalled:
        """The same for a question below what is shown, of which a model would be told nothing else.

        Raises CONVERSATION_NOT_FOUND too.
        """
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.get(conversation_id)
        return await self.recall(ctx, conversation_id, question, (), known.current_message_id)

    async def digest_conversation(self, ctx: Context, lease: Lease) -> dict[str, Any]:
        """The job `digest_conversation`: takes what was said since the last time, a page at a time.

        Each page is written whole and once, with the place up to which it goes: a rerun goes on from there.
        """
        conversation_id = UUID(lease.task.payload["conversation_id"])
        user_id = UUID(lease.task.payload["user_id"])
        count = 0
        async with self._store.tenant(ctx) as tx:
            await tx.tasks.fence(lease)
            state = await tx.memories_of(user_id).begin(conversation_id)
        while state is not None:
            async with self._store.tenant(ctx) as tx:
                said = tx.messages_of(user_id)
                messages = await said.since(conversation_id, limit=PAGE, after=state.place)
                parents = {message.parent_id for message in messages if message.parent_id}
                questions = [item for item in await said.these(conversation_id, list(parents)) if item.role == "user"]
            if not messages:
                break
            exchanges = paired(messages, questions)
            place = messages[-1].created_at, messages[-1].id
            digest = await self._summarizer.digest(ctx, state.lines, exchanges)
            made, usage = await self._made(ctx, digest.findings)
            state = await self._write(ctx, lease, user_id, state, digest, made, usage, place)
            count += len(exchanges)
        self._log.info("conversation digested", conversation=str(conversation_id), exchanges=count)
        return {"exchanges": count}

    async def _lines(self, tx: Tx, conversation_id: UUID, path: Sequence[UUID]) -> list[SummaryLine]:
        """The summary, without what was said on other branches than `path`, and without what was drawn from documents
        that were deleted or hidden since."""
        on_path = {None, *path}
        state = await tx.memories.find(conversation_id) or MemoryState()
        drawn = {document for line in state.lines for document in line.document_ids}
        seen = await tx.documents.visible(list(drawn)) if drawn else set[UUID]()
        return [line for line in state.lines if line.answer_id in on_path and seen.issuperset(line.document_ids)]

    @property
    def _space(self) -> str:
        space = self._embedder.space
        return f"{space.model} {space.version} {space.dim}"

    async def _made(self, ctx: Context, findings: Sequence[Finding]) -> tuple[list[NewMemory], Usage]:
        """The findings with what they are recalled by, and the tokens that their vectors took."""
        if not findings:
            return [], Usage()
        embedded = await self._embedder.embed_batch(ctx, [finding.text for finding in findings])
        made = [
            NewMemory(
                finding=finding,
                terms=self._analyser.passage(ctx.tenant_id, finding.source_id, finding.text).terms,
                vector=vector,
            )
            for finding, vector in zip(findings, embedded.vectors, strict=True)
        ]
        return made, embedded.usage

    async def _write(
        self,
        ctx: Context,
        lease: Lease,
        user_id: UUID,
        seen: MemoryState,
        digest: Digest,
        made: Sequence[NewMemory],
        usage: Usage,
        place: tuple[datetime, UUID],
    ) -> MemoryState | None:
        """The state afterwards: another's, where that was faster or a user has mended something meanwhile."""
        conversation_id = UUID(lease.task.payload["conversation_id"])
        try:
            async with self._store.tenant(ctx) as tx:
                await tx.tasks.fence(lease)
                memories = tx.memories_of(user_id)
                if await memories.find(conversation_id) is None:
                    return None
                # The first of these locks the conversation, before anything that goes with it: so does a deletion.
                for new in made:
                    memory_id = await memories.add(conversation_id, self._space, new)
                    if new.finding.kind is not MemoryKind.TURN:
                        await memories.supersede(conversation_id, new.finding, memory_id)
                state = await memories.lock(conversation_id)
                if state != seen:
                    raise _OvertakenError(state)
                for model, used in ((self._embedder.space.model, usage), (digest.model, digest.usage)):
                    if used is not None:
                        entry = NewUsage(
                            purpose=Purpose.MEMORY, model=model, source_id=conversation_id, usage=used, user_id=user_id
                        )
                        await tx.usage.add(entry)
                written = MemoryState(lines=digest.lines, place=place)
                await memories.finish(conversation_id, written)
                return written
        except _OvertakenError as overtaken:
            return overtaken.state

    async def _forget_words(
        self, tx: Tx, conversation_id: UUID, state: MemoryState | None, known: Memory, instead: str | None
    ) -> None:
        """A line of the summary that tells of several messages may tell of this one, and goes too."""
        if known.source_id is not None:
            await tx.memories.forget_turn(known.source_id)
        if state is None:
            return
        lines = [line for line in state.lines if line.source_id not in (known.source_id, None)]
        if instead is not None:
            lines.append(SummaryLine(text=instead, source_id=known.source_id, importance=known.importance))
        await tx.memories.finish(conversation_id, MemoryState(lines=tuple(lines), place=state.place))


class _OvertakenError(Exception):
    """The state is another than the one that was digested; what was written under it is undone."""

    def __init__(self, state: MemoryState | None) -> None:
        self.state = state


def paired(messages: Sequence[Message], questions: Sequence[Message]) -> list[Exchange]:
    """The exchanges that end with `messages`: each answer with its question, and each question that was left without
    one when the next was asked. `questions` are those that they follow."""
    asked = {question.id: question for question in questions}
    found: list[Exchange] = []
    for message in messages:
        question = asked.get(message.parent_id) if message.parent_id else None
        first = message.siblings[0] == message.id
        if question is not None and message.role == "assistant":
            found.append(_exchange(question, message, again=not first))
        elif question is not None and first:
            found.append(_exchange(question, None, again=False))
    return found


def _exchange(question: Message, answer: Message | None, *, again: bool) -> Exchange:
    said = answer if answer is not None and answer.status is not MessageStatus.FAILED else None
    return Exchange(
        id=question.id,
        answer_id=question.id if answer is None else answer.id,
        again=again,
        question=question.content,
        answer=said.content if said else "",
        answered=said is not None and said.answered,
        filenames=tuple(dict.fromkeys(citation.filename for citation in said.citations)) if said else (),
        document_ids=tuple(dict.fromkeys(citation.document_id for citation in said.citations)) if said else (),
        created_at=question.created_at,
    )


def best(
    candidates: Sequence[Candidate], query: np.ndarray[Any, Any], terms: Sequence[int], now: datetime
) -> Iterator[Memory]:
    """The memories that fit RECALL_TOKENS, by relevance × recency × importance (Park et al., Generative Agents, 2023,
    who add them; a product keeps what is irrelevant out however important it is)."""
    relevance = _in_context(candidates, _relevance(candidates, query, terms))
    ages = np.array([max(0.0, (now - item.memory.created_at) / HALF_LIFE) for item in candidates])
    recency = LEAST_RECENCY + (1 - LEAST_RECENCY) * 0.5**ages
    importance = np.array(
        [TURN_IMPORTANCE if item.memory.kind is MemoryKind.TURN else item.memory.importance for item in candidates]
    )
    scores = relevance * recency * (0.5 + 0.5 * importance)
    left = RECALL_TOKENS
    given = 0
    for place in np.argsort(-scores, kind="stable"):
        memory = candidates[place].memory
        # What a user asked to be remembered holds for every answer, whatever it is about.
        if relevance[place] < LEAST_RELEVANCE and memory.kind is not MemoryKind.PREFERENCE:
            continue
        cost = estimate_tokens(memory.text)
        if cost > left:
            continue
        left -= cost
        given += 1
        yield memory
        if given == MOST_RECALLED:
            return


def _relevance(
    candidates: Sequence[Candidate], query: np.ndarray[Any, Any], terms: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """From 0 to 1: the share of the query's terms, the rarer the heavier, and the cosine between the candidates' mean
    and the best there can be."""
    frequency = np.array([sum(term in item.terms for item in candidates) for term in terms], np.float64)
    rarity = np.log(1 + len(candidates) / (1 + frequency))
    held = np.array([[term in item.terms for term in terms] for item in candidates], np.float64).reshape(-1, len(terms))
    words = held @ rarity / rarity.sum() if len(terms) else np.zeros(len(candidates))
    cosines = np.array([0.0 if item.vector is None else float(item.vector @ query) for item in candidates])
    known = np.array([item.vector is not None for item in candidates])
    low = min(float(cosines[known].mean()), 0.9) if known.any() else 0.0
    near = np.where(known, np.clip((cosines - low) / max(1e-6, 1 - low), 0, 1), 0.0)
    return WORDS_SHARE * words + (1 - WORDS_SHARE) * near


def _in_context(
    candidates: Sequence[Candidate], relevance: np.ndarray[Any, np.dtype[np.float64]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """With what the exchanges before and after lend."""
    turns = [place for place, item in enumerate(candidates) if item.memory.kind is MemoryKind.TURN]
    turns.sort(key=lambda place: (candidates[place].memory.conversation_id, candidates[place].memory.created_at))
    raised = relevance.copy()
    for distance, share in enumerate(LENT, 1):
        for one, other in zip(turns, turns[distance:], strict=False):
            first, second = candidates[one].memory, candidates[other].memory
            if first.conversation_id == second.conversation_id and second.created_at - first.created_at <= SITTING:
                raised[one] += share * relevance[other]
                raised[other] += share * relevance[one]
    return raised


def _joined(lines: Sequence[SummaryLine]) -> str:
    return "\n".join(line.text for line in lines)


def _checked(text: str) -> str:
    bare = " ".join(text.split())
    if not 1 <= len(bare) <= MEMORY_LIMIT or "\0" in bare or any("\ud800" <= char <= "\udfff" for char in bare):
        message = f"must have 1 to {MEMORY_LIMIT} characters of text"
        raise AppError(Code.REQUEST_INVALID, f"text {message}.", errors=[{"field": "text", "message": message}])
    return bare
