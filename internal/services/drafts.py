"""One question on its way to an answer: what was asked, what was sent of the answer so far, and what it cost."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID

import msgspec

from internal.entities.conversations import NOT_IN_DOCUMENTS, Citation, MessageStatus, Prompt, Usage
from internal.entities.usage import NewUsage, Purpose
from internal.providers.llm import ChatModel
from internal.services.citations import AnswerText
from internal.services.evidence import language
from internal.services.prompts import BLIND, NOT_FOUND, UNCITED
from internal.services.quotes import Checked
from pkg.apperr import AppError, Code


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A question that is stored and searched for, ready to be answered once.

    `again` says that it may have answers already; `shown` is what was shown last when it began.
    """

    conversation_id: UUID
    question: str
    question_id: UUID
    shown: UUID | None
    again: bool
    prompt: Prompt


class Draft:
    """An answer in the making: what was sent so far, and what it cost."""

    def __init__(self, turn: Turn, model: ChatModel) -> None:
        self.turn = turn
        self.text = AnswerText(turn.prompt.passages)
        self.absent = False
        self.written = False
        self.checked: Checked | None = None
        self._model = model
        self._usage: Usage | None = None
        self._opening: str | None = ""
        self._begun = False

    @property
    def content(self) -> str:
        """The answer as it is stored."""
        return self.checked.content if self.checked else self.text.text

    @property
    def _told_of_pictures(self) -> bool:
        """Whether an answer may rest on what a model saw, which nothing can be cited for."""
        return self.turn.prompt.shown and bool(self.turn.prompt.seen)

    @property
    def citations(self) -> tuple[Citation, ...]:
        """Those that hold; none before they were checked."""
        return tuple(self.checked.citations) if self.checked else ()

    def settle(self, checked: Checked) -> str:
        """Takes over what was checked; what is to be sent still, where none of the citations held."""
        bare = checked.dropped and not checked.citations and not self._told_of_pictures
        remark = UNCITED[language(self.turn.question)] if bare else ""
        self.checked = msgspec.structs.replace(checked, content=checked.content + remark)
        return remark

    def usage(self, status: MessageStatus) -> Usage:
        """As the model told, or its own estimate where it was cut short; nothing where it failed before it began."""
        if status is MessageStatus.FAILED and not self._begun:
            return Usage()
        return self._usage or self._model.estimate(self.turn.prompt, self.text.text)

    def charged(self, status: MessageStatus) -> NewUsage | None:
        """For the ledger; None where no model was asked, or none answered."""
        if not self.turn.prompt.grounded or (status is MessageStatus.FAILED and not self._begun):
            return None
        return NewUsage(
            purpose=Purpose.CHAT,
            model=self._model.name,
            source_id=self.turn.conversation_id,
            usage=self.usage(status),
        )

    def feed(self, piece: str | Usage) -> str:
        """What may be sent of it. The opening is held back until it is clear that it isn't NOT_IN_DOCUMENTS."""
        self._begun = True
        if isinstance(piece, Usage):
            self._usage = piece
            return ""
        if self.absent:
            return ""
        if self._opening is None:
            return self.text.feed(piece)
        self._opening += piece
        bare = self._opening.lstrip(" \n\t\"'`*[(")
        if bare.startswith(NOT_IN_DOCUMENTS):
            self.absent = True
            said = BLIND if self.turn.prompt.blind else NOT_FOUND
            return self.text.feed(said[language(self.turn.question)])
        if NOT_IN_DOCUMENTS.startswith(bare):
            return ""
        opening, self._opening = self._opening, None
        return self.text.feed(opening)

    def finish(self) -> str:
        """What was held back, at the end, and a remark where nothing backs the answer."""
        held, self._opening = ("" if self.absent else self._opening or ""), None
        rest = self.text.feed(held) + self.text.finish()
        if self.absent or self.text.cited() or not self.text.text.strip() or self._told_of_pictures:
            return rest
        return rest + self.text.add(UNCITED[language(self.turn.question)])


async def until_set(stopped: asyncio.Event, pieces: AsyncGenerator[str | Usage]) -> AsyncGenerator[str | Usage]:
    """The same pieces. Raises SERVER_STOPPING as soon as `stopped` is set, whatever is being waited for."""
    stopping = asyncio.create_task(stopped.wait())
    waiting: asyncio.Task[str | Usage] | None = None
    try:
        while True:
            waiting = asyncio.create_task(_next(pieces))
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
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
        stopping.cancel()
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        await pieces.aclose()


async def _next(pieces: AsyncGenerator[str | Usage]) -> str | Usage:
    return await anext(pieces)
