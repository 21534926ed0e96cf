"""/api/v1/events: what happens in the tenant, over a WebSocket or as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import WebSocket, get, websocket
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.types import Scope

from internal.handlers.auth import access, bearer
from internal.handlers.problems import body_of, broken_off
from internal.handlers.sockets import accepted_subprotocol, refusal
from internal.handlers.streams import STALLED_SECONDS, ClosingStream, event, event_stream
from internal.services.event_feeds import Reader
from internal.services.event_pages import Message
from internal.services.events import EventService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

LAST_POSITION = 2**63 - 1
FAILED = "a stream of events failed"
AGAIN = "The stream broke off; connect again with last_event_id."
RECONNECT_MS = 1000
"""A client that was told so comes back after this long, and finds another server or the new one."""
PART_BYTES = 16 * 1024
PASSED_OVER_SECONDS = 0.1
"""Between two messages of a client: what it says in vain is read so slowly that it costs nothing."""

LastEventId = Annotated[
    str | None,
    QueryParameter(description="The `id` of the last message that you have: the stream goes on behind it."),
]


class NoticeOut(msgspec.Struct, frozen=True):
    """One message. `id` is the event's place in the tenant's order; `task.progress` has none and isn't repeated."""

    type: str
    created_at: datetime
    data: dict[str, Any]
    id: int | None = None


@get(
    "/api/v1/events/stream",
    opt=access(Role.VIEWER),
    responses={
        200: ResponseSpec(
            NoticeOut,
            description="The messages, one a `data:` line.",
            media_type="text/event-stream",
            generate_examples=False,
        )
    },
)
async def stream_events(
    scope: Scope,
    ctx: NamedDependency[Context],
    events: NamedDependency[EventService],
    last_event_id: LastEventId = None,
    resumed: Annotated[
        str | None, HeaderParameter(name="Last-Event-ID", description="The same; it wins over the parameter.")
    ] = None,
) -> ClosingStream:
    """Follows the tenant's events, as far as you may see what they tell of, as server-sent events without an end.

    Types: `ready` or `reset` first, then `task.queued`, `task.progress`, `task.succeeded`, `task.failed`, `task.dead`,
    `task.cancelled`, `document.ready`, `document.deleted`, `alert`. `data` holds ids and states, never content.
    An `event: error` with a problem is the end; `event: bye` says that the server stops and when to come back.
    """
    after = read_position(resumed or last_event_id)
    reader = await events.admit(ctx, bearer(scope))
    return event_stream(_server_sent(events, reader, after))


@websocket("/api/v1/events", opt=access(Role.VIEWER))
async def follow_events(
    socket: WebSocket[Any, Any, Any],
    scope: Scope,
    ctx: NamedDependency[Context],
    events: NamedDependency[EventService],
    last_event_id: LastEventId = None,
) -> None:
    """Follows the tenant's events, as far as you may see what they tell of. Each text message is one notice as JSON.

    Browsers offer the subprotocols `bearer` and their token. Closed with 4401 when the credential ends, 4408 when
    messages were not read in time, 4429 when there are too many readers, 1012 when the server stops: connect again
    with `last_event_id`.
    """
    try:
        after = read_position(last_event_id)
        reader = await events.admit(ctx, bearer(scope))
    except AppError as error:
        raise refusal(error) from error
    await socket.accept(subprotocols=accepted_subprotocol(scope))
    leaving = asyncio.create_task(_until_left(socket))
    sending = asyncio.create_task(_send(socket, events, reader, after))
    try:
        await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (leaving, sending):
            task.cancel()
        await asyncio.wait({leaving, sending})
    if not sending.cancelled() and (why := sending.result()) is not None:
        raise refusal(why)


def read_position(text: str | None) -> int | None:
    """A position as messages have it. Raises REQUEST_INVALID."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= len(str(LAST_POSITION)) and int(text) <= LAST_POSITION:
        return int(text)
    raise AppError(
        Code.REQUEST_INVALID,
        "last_event_id: this isn't the id of a message; leave it out to begin with what happens now.",
        errors=[{"field": "last_event_id", "message": "not an id"}],
    )


async def _server_sent(events: EventService, reader: Reader, after: int | None) -> AsyncGenerator[bytes]:
    """Batches of messages as events. The status is sent already, so an error is an event too."""
    try:
        async with aclosing(events.messages(reader, after)) as batches:
            async for batch in batches:
                for part in _parts(batch):
                    yield part
    except AppError as error:
        if error.code is Code.SERVER_STOPPING:
            yield b"retry: %d\n" % RECONNECT_MS + event("bye", {"retry_ms": RECONNECT_MS})
        else:
            yield event("error", body_of(error))
    except Exception as error:  # noqa: BLE001 - see broken_off
        yield event("error", body_of(broken_off(FAILED, error, AGAIN)))


def _parts(batch: list[Message]) -> Generator[bytes]:
    """Few writes, yet none so large that a reader who has stopped reading costs much: this is a copy for it alone."""
    part = bytearray()
    for message in batch:
        part += _unnamed(message)
        if len(part) >= PART_BYTES:
            yield bytes(part)
            part.clear()
    if part:
        yield bytes(part)


def _unnamed(message: Message) -> bytes:
    """Without a name of its own each of them reaches `onmessage`, new types too."""
    place = b"" if message.position is None else b"id: %d\n" % message.position
    return place + b"data: " + message.body + b"\n\n"


async def _send(
    socket: WebSocket[Any, Any, Any], events: EventService, reader: Reader, after: int | None
) -> AppError | None:
    """Sends until the reader is ended and answers why; None for a peer that is gone or takes nothing."""
    try:
        async with aclosing(events.messages(reader, after)) as batches:
            async for batch in batches:
                for message in batch:
                    async with asyncio.timeout(STALLED_SECONDS):
                        await socket.send_data(message.body, "text", "utf-8")
    except AppError as error:
        return error
    except (OSError, TimeoutError):
        return None
    except Exception as error:  # noqa: BLE001 - see broken_off
        return broken_off(FAILED, error, AGAIN)
    return AppError(Code.INTERNAL, AGAIN)


async def _until_left(socket: WebSocket[Any, Any, Any]) -> None:
    """Returns when the client has gone. What it says is passed over."""
    heard = await socket.receive()
    while heard["type"] != "websocket.disconnect":
        await asyncio.sleep(PASSED_OVER_SECONDS)
        heard = await socket.receive()
