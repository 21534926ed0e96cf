"""What the API answers, as far as this client reads it; unknown fields are left alone, so that a newer API serves."""

from typing import Any, Literal

import msgspec

FINISHED = frozenset({"succeeded", "failed", "dead", "cancelled"})


class Named(msgspec.Struct, frozen=True):
    """A tenant."""

    id: str
    name: str


class Me(msgspec.Struct, frozen=True):
    """Whose key this is."""

    tenant: Named


class Owner(msgspec.Struct, frozen=True):
    """A new tenant's owner; `password` is there when the API made it up."""

    email: str = ""
    password: str | None = None


class NewTenant(msgspec.Struct, frozen=True):
    """A tenant that was just made, with a key that is never shown again."""

    id: str
    name: str
    api_key: str
    owner: Owner = Owner()


class Uploaded(msgspec.Struct, frozen=True):
    """A document that was received; `duplicate` when it was there before."""

    document_id: str
    task_id: str
    status: str
    duplicate: bool = False


class Problem(msgspec.Struct, frozen=True):
    """An error as the API tells it."""

    code: str = ""
    title: str = ""
    detail: str = ""
    message: str = ""
    status: int = 0

    @property
    def words(self) -> str:
        """The sentence for a person; empty when none was given."""
        return self.detail or self.message or self.title or self.code


class Task(msgspec.Struct, frozen=True):
    """How far the reading of a file has come; `progress` runs from 0 to 1."""

    id: str
    status: str
    stage: str | None = None
    progress: float = 0.0
    error: Problem | None = None


class TaskPage(msgspec.Struct, frozen=True):
    """Some tasks, newest first."""

    items: list[Task]


class Identified(msgspec.Struct, frozen=True):
    """Anything with an id."""

    id: str
    status: str = ""


class DocumentPage(msgspec.Struct, frozen=True):
    """Some documents, newest first."""

    items: list[Identified]
    next_cursor: str | None = None


class Place(msgspec.Struct, frozen=True):
    """Where in its file a passage stands. Milliseconds."""

    page: int | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    heading: str | None = None

    def __str__(self) -> str:
        """For example `page 3 · Safety`; empty when nothing is known."""
        parts = [
            f"page {self.page}" if self.page is not None else "",
            _clock(self.start_ms) + (f"–{_clock(self.end_ms)}" if self.end_ms is not None else "")
            if self.start_ms is not None
            else "",
            self.heading or "",
        ]
        return " · ".join(part for part in parts if part)


class Hit(msgspec.Struct, frozen=True):
    """A passage that was found."""

    document_id: str
    filename: str
    text: str
    score: float
    location: Place = Place()


class Hits(msgspec.Struct, frozen=True):
    """Passages, best first."""

    items: list[Hit]
    took_ms: float = 0.0


class Citation(msgspec.Struct, frozen=True):
    """A passage that an answer leans on; `index` is its number in the text."""

    index: int
    filename: str
    quote: str = ""
    location: Place = Place()


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str
    citations: list[Citation] = []
    model: str | None = None


class MessagePage(msgspec.Struct, frozen=True):
    """Some turns of a conversation."""

    items: list[Message]
    next_cursor: str | None = None


class Delta(msgspec.Struct, frozen=True):
    """The next few characters of an answer."""

    text: str


def citations_of(data: Any) -> list[Citation]:
    """The list itself, or one wrapped as `{"citations": […]}`."""
    return msgspec.convert(data.get("citations", []) if isinstance(data, dict) else data, list[Citation])


def _clock(milliseconds: int) -> str:
    minutes, seconds = divmod(milliseconds // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
