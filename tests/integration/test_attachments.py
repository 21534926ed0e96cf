"""Pictures of questions against a real database: waited for, bounded, and told to nobody who doesn't see them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest

from internal.entities.conversations import Attachment, Message, Usage
from internal.entities.documents import Document
from internal.entities.ids import new_id
from internal.providers.llm_wire import estimate_tokens
from internal.services import pictures
from internal.services.pictures import PICTURE_TOKENS, RECENT, Pictures, beside, clue
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context
from tests.library import Entry, Library
from tests.servers import Database


@pytest.fixture
async def library(module_database: Database) -> AsyncGenerator[Library]:
    found = await Library.open(module_database)
    yield found
    await found.close()


class Eyes:
    """A model that sees, and what it was asked."""

    name = "eyes"

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[UUID]]] = []

    async def see(self, ctx: Context, question: str, shown: Sequence[Document]) -> tuple[str, Usage | None]:
        self.asked.append((question, [item.id for item in shown]))
        return "A red door.", Usage(prompt_tokens=7)


async def picture(library: Library, ctx: Context, *texts: str, published: bool = True) -> Entry:
    entry = await library.add(
        ctx, texts, name="door.png", visibility="private", source_type="photo", published=published
    )
    await library.owner.execute("update contents set media_type = 'image/png' where id = $1", entry.content)
    return entry


def question(text: str, *ids: UUID) -> Message:
    attachments = [Attachment(document_id=known) for known in ids]
    return Message(id=new_id(), role="user", content=text, created_at=datetime.now(UTC), attachments=attachments)


async def test_a_picture_is_waited_for_until_it_is_read(library: Library) -> None:
    ctx = await library.tenant()
    entry = await picture(library, ctx, "Room 12", published=False)
    waiting = asyncio.create_task(Pictures(library.app).admit(ctx, [entry.document, entry.document]))
    await asyncio.sleep(3 * pictures.LOOK_SECONDS)
    assert not waiting.done()
    await library.owner.execute(
        "update documents set generation_id = $2 where id = $1", entry.document, entry.generation
    )
    assert await waiting == (entry.document,)


async def test_a_picture_that_nobody_reads_is_not_waited_for_for_ever(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "READ_SECONDS", 0.1)
    ctx = await library.tenant()
    entry = await picture(library, ctx, "Room 12", published=False)
    with pytest.raises(AppError) as refused:
        await Pictures(library.app).admit(ctx, [entry.document])
    assert refused.value.code is Code.ATTACHMENT_NOT_READY
    assert refused.value.retry_after


async def test_pictures_of_others_tell_nothing(library: Library) -> None:
    ctx = await library.tenant()
    entry = await picture(library, ctx, "Room 12")
    eyes = Eyes()
    asked = question("Which room is this?", entry.document)
    told = await Pictures(library.app, eyes).look(ctx, asked, [], joins=False)
    assert ([item.text for item in told.passages], told.seen, told.attached) == (["Room 12"], "A red door.", True)
    assert clue(told) == "A red door. Room 12"
    for other in (await library.member(ctx.tenant_id), await library.tenant()):
        told = await Pictures(library.app, eyes).look(other, asked, [], joins=False)
        assert (told.passages, told.seen, told.attached) == ((), "", False)
    assert eyes.asked == [("Which room is this?", [entry.document])]


async def test_a_question_that_leans_is_about_the_picture_before_it(library: Library) -> None:
    ctx = await library.tenant()
    entry = await picture(library, ctx, "Room 12")
    eyes = Eyes()
    looks = Pictures(library.app, eyes)
    history = [question("Which room is this?", entry.document)]
    for joins, seen in ((True, "A red door."), (False, "")):
        told = await looks.look(ctx, question("Who works in the room?"), history, joins=joins)
        assert (told.attached, told.shown, told.seen, clue(told)) == (True, False, seen, "")
    told = await looks.look(ctx, question("What else does the picture show?"), history, joins=False)
    assert (told.attached, told.shown, told.seen) == (True, True, "A red door.")
    eyes.asked.clear()
    history += [question(f"Who counts the ships of pier {number}?") for number in range(RECENT)]
    told = await looks.look(ctx, question("And what colour is it?"), history, joins=False)
    assert (told.attached, told.shown, told.seen) == (True, True, "A red door.")
    told = await looks.look(ctx, question("When does the canteen open on Fridays?"), history, joins=False)
    assert (told.attached, told.shown, told.seen, clue(told)) == (False, False, "", "")
    assert [item.text for item in told.passages] == ["Room 12"]
    assert len(eyes.asked) == 1

    found = (await looks.look(ctx, history[0], [], joins=False)).passages
    other = await picture(library, ctx, "Another text")
    others = (await looks.look(ctx, question("What?", other.document), [], joins=False)).passages
    assert [(item.number, item.text) for item in beside(told, [*others, *found])] == [
        (1, "Another text"),
        (2, "Room 12"),
    ]


@pytest.mark.parametrize("joins", [False, True])
async def test_long_pictures_leave_room_for_the_documents(library: Library, *, joins: bool) -> None:
    ctx = await library.tenant()
    lines = [f"Line {number}: " + "the tenant keeps the stairs clean. " * 20 for number in range(18)]
    first, second = [await picture(library, ctx, *lines[part : part + 9]) for part in (0, 9)]
    asked = question("What does it say?", first.document, second.document)
    told = await Pictures(library.app).look(ctx, asked, [], joins=joins)
    tokens = sum(estimate_tokens(item.text) for item in told.passages)
    assert PICTURE_TOKENS / 2 < tokens <= PICTURE_TOKENS + 100  # the joints of chunks
    assert [item.number for item in told.passages] == list(range(1, len(told.passages) + 1))
    if joins:
        (whole, *_) = told.passages
        assert [piece.chunk_id for piece in whole.pieces] == first.chunks[: len(whole.pieces)]
        assert len(whole.pieces) > 1
