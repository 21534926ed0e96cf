"""Conversations as Markdown: readable, with sources, and harmless."""

from datetime import UTC, datetime
from typing import Literal

import msgspec
import pytest

from internal.entities.conversations import Attachment, Citation, Message, MessageStatus
from internal.entities.ids import new_id
from internal.entities.parsed import Location
from internal.services.exports import plain, turn

AT = datetime(2026, 11, 27, 8, 5, 59, tzinfo=UTC)


def citation(index: int, quote: str, filename: str = "policy.pdf", **location: object) -> Citation:
    return Citation(
        index=index,
        chunk_id=new_id(),
        document_id=new_id(),
        filename=filename,
        quote=quote,
        location=Location(**location),  # pyright: ignore[reportArgumentType]
        available=bool(quote),
    )


def message(
    content: str, *citations: Citation, role: Literal["user", "assistant"] = "assistant", status: str = "complete"
) -> Message:
    return Message(
        id=new_id(),
        role=role,
        content=content,
        created_at=AT,
        citations=list(citations),
        status=MessageStatus(status),
    )


def test_an_answer_has_its_sources_below_it() -> None:
    first = citation(1, "Refunds take\n30 days.", page=2, heading="Refunds > Time")
    second = citation(2, "They said so.", "talk.mp3", start_ms=3_723_000)
    assert turn(message("In 30 days [1][2], see [7].", first, second), 4) == (
        "\n## Answer · 2026-11-27 08:05 UTC\n\nIn 30 days [^4-1][^4-2], see [7].\n"
        "\n[^4-1]: **policy.pdf**, page 2, Refunds \\> Time: “Refunds take 30 days.”\n"
        "[^4-2]: **talk.mp3**, 1:02:03: “They said so.”\n"
    )


def test_a_question_names_its_pictures() -> None:
    known = Attachment(document_id=new_id(), filename="a_b.png", media_type="image/png", available=True)
    asked = msgspec.structs.replace(
        message("What is it?", role="user"), attachments=[known, Attachment(document_id=new_id())]
    )
    assert turn(asked, 1) == (
        "\n## Question · 2026-11-27 08:05 UTC\n\nWhat is it?\n\nPicture: **a\\_b.png**\n"
        "\nPicture: *the source is no longer available*\n"
    )


def test_headings_are_in_the_language_of_what_was_said() -> None:
    assert turn(message("退款要多久？", role="user"), 1).startswith("\n## 问题 · ")
    gone = turn(message("三十天 [1]。", citation(1, "", page=3), status="cut"), 2)
    assert gone.startswith("\n## 回答 · ")
    assert "*此回答在结束前被停止。*" in gone
    assert gone.endswith("[^2-1]: **policy.pdf**, 第 3 页: *来源已不可用*\n")


@pytest.mark.parametrize(
    "hostile",
    [
        "![x](https://evil.example/?q=1)",
        "[click](javascript:alert(1))",
        "<img src=//evil.example>",
        "[x]: https://evil.example",
        "https://evil.example",
        "a\n\n# Heading\n\n- [ ] task",
        "`code` **bold** ~~gone~~ | table |",
    ],
)
def test_a_quote_cannot_speak_as_the_file(hostile: str) -> None:
    shown = turn(message("Yes [1].", citation(1, hostile, hostile, heading=hostile)), 1)
    note = shown.partition("[^1-1]:")[2]
    assert "\n" not in note.strip()
    assert "](" not in note
    assert "://" not in note
    assert not any(sign in note.replace(f"\\{sign}", "") for sign in "`<|#~")


def test_a_line_of_text_is_shown_as_it_is() -> None:
    assert plain("a_b *c* [d]\n#1") == r"a\_b \*c\* \[d\] \#1"
