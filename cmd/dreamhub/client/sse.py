"""Server-sent events, read line by line."""

from collections.abc import AsyncGenerator, AsyncIterator

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One event; `data` is the text of its data lines."""

    kind: str
    data: str


async def events(lines: AsyncIterator[str]) -> AsyncGenerator[Event]:
    """Yields each event that ended with an empty line; one that broke off is dropped."""
    kind, data = "message", list[str]()
    async for line in lines:
        if not line:
            if data:
                yield Event(kind, "\n".join(data))
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            kind = value
        elif field == "data":
            data.append(value)
