"""Conversations: their names, what they are about, and which branch of them is shown."""

from datetime import datetime
from uuid import UUID

import msgspec

from internal.entities.conversations import Citation, Conversation, ConversationChanges, Message
from internal.entities.ids import new_id
from internal.entities.memory import MemoryState, SummaryLine
from internal.repositories.store import Store, Tx
from internal.services.names import MAX_TITLE, check_name
from internal.services.pictures import named
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

LONGEST_COMMENT = 4000
MOST_DOCUMENTS = 200
BRANCH_MARK = " (branch)"


class ConversationService:
    """The rules of conversations. A conversation exists for its own user alone."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, ctx: Context, *, title: str = "", document_ids: list[UUID] | None = None) -> Conversation:
        """Starts a conversation, over some documents or over all. Raises DOCUMENT_NOT_FOUND."""
        called = check_title(title)
        async with self._store.tenant(ctx) as tx:
            await check_documents(tx, document_ids or [])
            return await tx.conversations.add(called, document_ids or [])

    async def get(self, ctx: Context, conversation_id: UUID) -> Conversation:
        """Raises CONVERSATION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            return await tx.conversations.get(conversation_id)

    async def update(self, ctx: Context, conversation_id: UUID, changes: ConversationChanges) -> Conversation:
        """A `current_message_id` shows the newest leaf below that message.

        Raises CONVERSATION_NOT_FOUND, DOCUMENT_NOT_FOUND or MESSAGE_NOT_FOUND.
        """
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.lock(conversation_id)
            title = known.title if changes.title is msgspec.UNSET else check_title(changes.title)
            document_ids = known.document_ids if changes.document_ids is msgspec.UNSET else changes.document_ids
            if changes.document_ids is not msgspec.UNSET:
                await check_documents(tx, document_ids)
            if changes.current_message_id is not msgspec.UNSET:
                chosen = await tx.messages.get(conversation_id, changes.current_message_id)
                await tx.conversations.show(conversation_id, await tx.messages.newest_leaf(conversation_id, chosen.id))
            return await tx.conversations.update(conversation_id, title=title, document_ids=document_ids)

    async def remove(self, ctx: Context, conversation_id: UUID) -> None:
        """Removes it with all that was said in it. Raises CONVERSATION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            await tx.conversations.remove(conversation_id)

    async def messages(
        self, ctx: Context, conversation_id: UUID, *, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[Message]:
        """Up to `limit` messages of the path that is shown, the first one first, those after the (created_at, id).

        Where another branch is shown since, those after that time. Raises CONVERSATION_NOT_FOUND.
        """
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.get(conversation_id)
            ids = await tx.messages.path(conversation_id, known.current_message_id)
            if after is None:
                return await _shown(tx, await tx.messages.these(conversation_id, ids[:limit]))
            if after[1] in ids:
                begin = ids.index(after[1]) + 1
                return await _shown(tx, await tx.messages.these(conversation_id, ids[begin : begin + limit]))
            found = await tx.messages.these(conversation_id, ids)
            return await _shown(tx, [item for item in found if (item.created_at, item.id) > after][:limit])

    async def path(self, ctx: Context, conversation_id: UUID) -> tuple[Conversation, list[UUID]]:
        """A conversation, and the messages of the path that is shown. Raises CONVERSATION_NOT_FOUND."""
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.get(conversation_id)
            return known, await tx.messages.path(conversation_id, known.current_message_id)

    async def these(self, ctx: Context, conversation_id: UUID, ids: list[UUID]) -> list[Message]:
        """Messages in the order of `ids`, as they may be shown."""
        async with self._store.tenant(ctx) as tx:
            return await _shown(tx, await tx.messages.these(conversation_id, ids))

    async def said(
        self, ctx: Context, conversation_id: UUID, *, limit: int, after: tuple[datetime, UUID] | None
    ) -> list[Message]:
        """Up to `limit` messages of all branches, in the order in which they were said, as they may be shown."""
        async with self._store.tenant(ctx) as tx:
            return await _shown(tx, await tx.messages.since(conversation_id, limit=limit, after=after))

    async def rate(
        self, ctx: Context, conversation_id: UUID, message_id: UUID, *, rating: int, comment: str | None = None
    ) -> None:
        """Keeps the user's opinion of an answer: 1 or -1. Raises CONVERSATION_NOT_FOUND or MESSAGE_NOT_FOUND."""
        if rating not in (1, -1):
            raise invalid("rating", "must be 1 or -1")
        check_text("comment", comment or "", longest=LONGEST_COMMENT)
        async with self._store.tenant(ctx) as tx:
            await tx.conversations.get(conversation_id)
            await tx.messages.rate(conversation_id, message_id, rating=rating, comment=comment)

    async def branch(self, ctx: Context, conversation_id: UUID, message_id: UUID) -> Conversation:
        """A new conversation with copies of the path down to a message, and with what the summary says of it.

        Copies were digested where they were said, and aren't again. Raises CONVERSATION_NOT_FOUND or
        MESSAGE_NOT_FOUND.
        """
        async with self._store.tenant(ctx) as tx:
            known = await tx.conversations.lock(conversation_id)
            last = await tx.messages.get(conversation_id, message_id)
            ids = await tx.messages.path(conversation_id, message_id)
            copies = {known_id: new_id() for known_id in ids}
            made = await tx.conversations.add(branch_title(known.title), known.document_ids)
            await tx.messages.copy(conversation_id, made.id, ids, list(copies.values()))
            await tx.conversations.show(made.id, copies[message_id])
            state = await tx.memories.find(conversation_id) or MemoryState()
            place = last.created_at, copies[message_id]
            await tx.memories.open(made.id, MemoryState(lines=copied(state, copies), place=place))
            return await tx.conversations.get(made.id)

    async def list(self, ctx: Context, *, limit: int, before: tuple[datetime, UUID] | None) -> list[Conversation]:
        """Up to `limit` conversations, last used first, those before the (updated_at, id)."""
        async with self._store.tenant(ctx) as tx:
            return await tx.conversations.list(limit=limit, before=before)


async def _shown(tx: Tx, messages: list[Message]) -> list[Message]:
    """The same with the names of pictures, and without the words of documents that the user doesn't see any more."""
    messages = await named(tx, messages)
    cited = {citation.document_id for message in messages for citation in message.citations}
    gone = cited - await tx.documents.visible(list(cited)) if cited else set[UUID]()
    if not gone:
        return messages
    return [
        msgspec.structs.replace(
            message,
            citations=[withheld(item) if item.document_id in gone else item for item in message.citations],
        )
        for message in messages
    ]


def withheld(citation: Citation) -> Citation:
    """The same without what stood in the document."""
    return msgspec.structs.replace(
        citation, quote="", location=msgspec.structs.replace(citation.location, heading=None), available=False
    )


def branch_title(title: str) -> str:
    """The title of a conversation that branches off; none where there is none yet."""
    bare = title.removesuffix(BRANCH_MARK)
    return bare[: MAX_TITLE - len(BRANCH_MARK)] + BRANCH_MARK if bare else ""


def copied(state: MemoryState, copies: dict[UUID, UUID]) -> tuple[SummaryLine, ...]:
    """The lines of a summary that tell of copied messages alone, as lines that tell of the copies."""
    lines: list[SummaryLine] = []
    for line in state.lines:
        source_id, answer_id = (copies.get(known) if known else None for known in (line.source_id, line.answer_id))
        if source_id and answer_id:
            lines.append(msgspec.structs.replace(line, source_id=source_id, answer_id=answer_id))
    return tuple(lines)


async def check_documents(tx: Tx, document_ids: list[UUID]) -> None:
    """Raises REQUEST_INVALID for too many, DOCUMENT_NOT_FOUND for one that the user doesn't see."""
    if len(document_ids) > MOST_DOCUMENTS:
        raise invalid("document_ids", f"at most {MOST_DOCUMENTS} documents")
    if document_ids and set(document_ids) - await tx.documents.visible(document_ids):
        raise AppError(Code.DOCUMENT_NOT_FOUND, "There is no such document.")


def check_title(title: str) -> str:
    """Raises REQUEST_INVALID."""
    return check_name(title, "title", shortest=0, longest=MAX_TITLE)


def check_text(field: str, text: str, *, longest: int, shortest: int = 0) -> None:
    """Raises REQUEST_INVALID."""
    if not shortest <= len(text) <= longest:
        raise invalid(field, f"must have {shortest} to {longest} characters")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise invalid(field, "has a NUL or half of a surrogate pair, which is not text")


def invalid(field: str, message: str) -> AppError:
    """The error that names a field of the request."""
    return AppError(Code.REQUEST_INVALID, f"{field} {message}.", errors=[{"field": field, "message": message}])
