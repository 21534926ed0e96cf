"""A conversation as a file to keep: Markdown for people, JSON for programs."""

import re
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import msgspec

from internal.entities.conversations import Citation, Conversation, Message, MessageStatus
from internal.services.conversations import ConversationService
from internal.services.evidence import language
from internal.services.safetext import SafeText
from pkg.ctxutil import Context

Format = Literal["markdown", "json"]
PAGE = 100
"""Messages that are read at a time."""
MARK = re.compile(r"\[(\d{1,3})\]")
# What Markdown gives a meaning to, at least at the beginning of a line or in pairs.
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~^$])")

WORDS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "user": "Question",
        "assistant": "Answer",
        "page": "page {0}",
        "gone": "the source is no longer available",
        "picture": "Picture: {0}",
        "exported": "Exported on {0}",
        MessageStatus.CUT: "This answer was stopped before its end.",
        MessageStatus.FAILED: "This answer broke off.",
    },
    "zh": {
        "user": "问题",
        "assistant": "回答",
        "page": "第 {0} 页",
        "gone": "来源已不可用",
        "picture": "图片：{0}",
        "exported": "导出时间：{0}",
        MessageStatus.CUT: "此回答在结束前被停止。",
        MessageStatus.FAILED: "此回答中断了。",
    },
}
UNTITLED = {"en": "Conversation", "zh": "对话"}


class Export(msgspec.Struct, frozen=True):
    """A file's name and media type, and its text, piece by piece."""

    filename: str
    media_type: str
    pieces: AsyncGenerator[str]


async def export(conversations: ConversationService, ctx: Context, conversation_id: UUID, form: Format) -> Export:
    """The branch that is shown as Markdown, or all branches as JSON. Raises CONVERSATION_NOT_FOUND.

    However long a conversation is, a page of it is in memory at a time.
    """
    known, ids = await conversations.path(ctx, conversation_id)
    name = " ".join(known.title.split()) or UNTITLED["en"]
    if form == "json":
        return Export(f"{name}.json", "application/json", _json(conversations, ctx, known))
    return Export(f"{name}.md", "text/markdown", _markdown(conversations, ctx, known, ids))


async def _markdown(
    conversations: ConversationService, ctx: Context, known: Conversation, ids: list[UUID]
) -> AsyncGenerator[str]:
    tongue = language(known.title)
    title = plain(known.title) or UNTITLED[tongue]
    yield f"# {title}\n\n*{WORDS[tongue]['exported'].format(_time(datetime.now(UTC)))}*\n"
    for start in range(0, len(ids), PAGE):
        messages = await conversations.these(ctx, known.id, ids[start : start + PAGE])
        for number, message in enumerate(messages, start + 1):
            yield turn(message, number)


async def _json(conversations: ConversationService, ctx: Context, known: Conversation) -> AsyncGenerator[str]:
    head = msgspec.json.encode({"conversation": known, "exported_at": datetime.now(UTC)}).decode()
    yield head[:-1] + ',"messages":['
    after: tuple[datetime, UUID] | None = None
    while messages := await conversations.said(ctx, known.id, limit=PAGE, after=after):
        yield ("," if after else "") + ",".join(msgspec.json.encode(item).decode() for item in messages)
        after = messages[-1].created_at, messages[-1].id
    yield "]}"


def turn(message: Message, number: int) -> str:
    """One message under a heading of its own, its citations as footnotes. `number` makes their names unique."""
    words = WORDS[language(message.content)]
    known = {citation.index for citation in message.citations}

    def mark(found: re.Match[str]) -> str:
        return f"[^{number}-{found[1]}]" if int(found[1]) in known else found[0]

    text = MARK.sub(mark, harmless(message.content)).strip()
    parts = [f"\n## {words[message.role]} · {_time(message.created_at)}\n\n{text}\n"]
    for picture in message.attachments:
        name = f"**{plain(picture.filename)}**" if picture.available else f"*{words['gone']}*"
        parts.append(f"\n{words['picture'].format(name)}\n")
    if message.status is not MessageStatus.COMPLETE:
        parts.append(f"\n*{words[message.status]}*\n")
    if message.citations:
        parts.append(
            "\n" + "".join(f"[^{number}-{item.index}]: {_source(item, words)}\n" for item in message.citations)
        )
    return "".join(parts)


def _source(citation: Citation, words: Mapping[str, str]) -> str:
    location = citation.location
    named = [f"**{plain(citation.filename)}**"]
    if location.page is not None:
        named.append(words["page"].format(location.page))
    if location.start_ms is not None:
        seconds = location.start_ms // 1000
        named.append(f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}")
    if location.heading:
        named.append(plain(location.heading))
    said = f"“{plain(citation.quote)}”" if citation.available else f"*{words['gone']}*"
    return f"{', '.join(named)}: {said}"


def harmless(text: str) -> str:
    """Text that links and loads nothing, whatever it says."""
    safe = SafeText()
    return safe.feed(text) + safe.finish()


def plain(text: str) -> str:
    """One line of text that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\1", harmless(" ".join(text.split())))


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
