"""Pictures that a question is asked with: documents, read as every document is, of which the model is told first."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import msgspec

from internal.entities.conversations import Attachment, Message, Passage, Usage, View
from internal.entities.documents import Chunk, Document, DocumentStatus
from internal.providers.llm_wire import estimate_tokens
from internal.repositories.store import Store, Tx
from internal.services.passages import joined
from internal.services.prompts import leans, names_pictures
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

MOST_PICTURES = 4
PICTURE_TOKENS = 2000
"""Of what is written on all of them; the rest of the room is for what the search finds."""
CHUNKS = 20
READ_SECONDS = 30.0
"""A picture is read within a second or two; a worker that starts, or a queue, may take this long."""
LOOK_SECONDS = 0.2
RECENT = 3
"""Questions after that with the pictures, which may be about them without saying so."""
CLUE = 400
"""Characters of what pictures tell that are searched for beside the question."""


class Sees(Protocol):
    """A model that sees."""

    @property
    def name(self) -> str:
        """What its cost is booked under."""
        ...

    async def see(self, ctx: Context, question: str, pictures: Sequence[Document]) -> tuple[str, Usage | None]:
        """What the pictures show, in words, and what it took; no words where nobody could look."""
        ...


class Pictures:
    """What the pictures of a conversation tell. Without `sight` that is what is written on them."""

    def __init__(self, store: Store, sight: Sees | None = None) -> None:
        self._store = store
        self._sight = sight

    async def admit(self, ctx: Context, ids: Sequence[UUID]) -> tuple[UUID, ...]:
        """The same, each once, when all are read. Waits for those that are being read.

        Raises REQUEST_INVALID for too many, DOCUMENT_NOT_FOUND, ATTACHMENT_NOT_A_PICTURE, ATTACHMENT_UNREADABLE for one
        that couldn't be read, ATTACHMENT_NOT_READY for one that isn't read in time.
        """
        wanted = tuple(dict.fromkeys(ids))
        if len(wanted) > MOST_PICTURES:
            raise _refused(Code.REQUEST_INVALID, f"A question takes at most {MOST_PICTURES} pictures.")
        until = time.monotonic() + min(READ_SECONDS, ctx.remaining(READ_SECONDS))
        while wanted:
            async with self._store.tenant(ctx) as tx:
                found = await tx.documents.these(wanted)
            if len(found) < len(wanted):
                raise AppError(Code.DOCUMENT_NOT_FOUND, "There is no such document.")
            waiting = [picture for picture in found if not _is_read(picture)]
            if not waiting:
                break
            if time.monotonic() > until:
                raise AppError(
                    Code.ATTACHMENT_NOT_READY, "A picture isn't read yet; ask again in a moment.", retry_after=5
                )
            await asyncio.sleep(LOOK_SECONDS)
        return wanted

    async def look(self, ctx: Context, question: Message, history: Sequence[Message], *, joins: bool) -> View:
        """What the question's pictures tell, or those of the last question that had some.

        Of pictures that the user doesn't see any more nothing is told. `joins` is for a model that reads on: each is
        one passage.
        """
        turns = [question, *(turn for turn in reversed(history) if turn.role == "user")]
        back, meant = next(((back, turn) for back, turn in enumerate(turns) if turn.attachments), (0, None))
        if meant is None:
            return View()
        async with self._store.tenant(ctx) as tx:
            pictures = await tx.documents.these([item.document_id for item in meant.attachments])
            written = [(picture, await _written(tx, picture)) for picture in pictures]
        shown = back == 0 or leans(question.content) or names_pictures(question.content)
        attached = shown or back <= RECENT
        seen, usage = "", None
        # What was seen without being asked for is of use to a model that reads, and not to one that quotes.
        if self._sight and pictures and (shown or (attached and joins)):
            seen, usage = await self._sight.see(ctx, question.content, pictures)
        return View(
            passages=_passages(written, joins=joins, attached=attached),
            seen=seen,
            attached=attached and bool(pictures),
            shown=shown and bool(pictures),
            usage=usage,
            model=self._sight.name if self._sight else "",
        )


def clue(view: View) -> str:
    """What is worth searching for of the pictures that a question is about, in one line; often nothing."""
    if not view.shown:
        return ""
    told = (view.seen, *(passage.text for passage in view.passages))
    return " ".join(" ".join(told).split())[:CLUE].strip()


def beside(view: View, found: Sequence[Passage]) -> list[Passage]:
    """All passages, numbered from 1: those of the question's own pictures come before what was found, those of earlier
    ones after it. What was found on the same pictures is among their own."""
    read = {passage.chunk_id for passage in view.passages}
    others = [passage for passage in found if passage.chunk_id not in read]
    both = [*view.passages, *others] if view.attached else [*others, *view.passages]
    return [msgspec.structs.replace(passage, number=number) for number, passage in enumerate(both, 1)]


async def named(tx: Tx, messages: Sequence[Message]) -> list[Message]:
    """The same with the names of pictures that the user sees still."""
    ids = list(dict.fromkeys(item.document_id for message in messages for item in message.attachments))
    if not ids:
        return list(messages)
    known = {
        picture.id: Attachment(
            document_id=picture.id, filename=picture.filename, media_type=picture.media_type, available=True
        )
        for picture in await tx.documents.these(ids)
    }

    def of(message: Message) -> Message:
        attachments = [known.get(item.document_id, item) for item in message.attachments]
        return msgspec.structs.replace(message, attachments=attachments)

    return [of(message) for message in messages]


def _is_read(picture: Document) -> bool:
    """Raises ATTACHMENT_NOT_A_PICTURE, or ATTACHMENT_UNREADABLE where it never will be."""
    if not picture.media_type.startswith("image/"):
        raise _refused(
            Code.ATTACHMENT_NOT_A_PICTURE,
            f"{picture.filename} is no picture; name other documents in document_ids to ask about them.",
        )
    if picture.status in (DocumentStatus.FAILED, DocumentStatus.CANCELLED):
        raise _refused(
            Code.ATTACHMENT_UNREADABLE, f"{picture.filename} could not be read; its task tells why. Attach another one."
        )
    return picture.status is DocumentStatus.READY


async def _written(tx: Tx, picture: Document) -> list[Chunk]:
    """What is written on a picture, in the order of reading."""
    if picture.generation_id is None:
        return []
    return await tx.chunks.list(picture.generation_id, limit=CHUNKS, after=-1)


def _passages(
    written: Sequence[tuple[Document, Sequence[Chunk]]], *, joins: bool, attached: bool
) -> tuple[Passage, ...]:
    """The first chunks that fit, at least one, as passages numbered from 1; with `joins` one for each picture."""
    left = PICTURE_TOKENS
    kept: list[Passage] = []
    for picture, chunks in written:
        fitting: list[Chunk] = []
        for chunk in chunks:
            left -= estimate_tokens(chunk.text)
            if left < 0 and (kept or fitting):
                break
            fitting.append(chunk)
        whole = [_passage(picture, chunk, attached=attached) for chunk in fitting]
        if joins and len(whole) > 1:
            text, pieces = joined(fitting)
            whole = [msgspec.structs.replace(whole[0], text=text, parts=(), pieces=pieces)]
        kept += whole
    return tuple(msgspec.structs.replace(passage, number=number) for number, passage in enumerate(kept, 1))


def _passage(picture: Document, chunk: Chunk, *, attached: bool) -> Passage:
    return Passage(
        number=1,
        chunk_id=chunk.id,
        document_id=picture.id,
        filename=picture.filename,
        text=chunk.text,
        score=1.0,
        location=chunk.location,
        parts=chunk.parts,
        attached=attached,
    )


def _refused(code: Code, detail: str) -> AppError:
    return AppError(code, detail, errors=[{"field": "attachment_ids", "message": detail}])
