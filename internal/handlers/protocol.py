"""HTTP below the application: bounds what a stranger may send before there is a request, and refuses it in our form."""

from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from internal.entities.ids import new_id
from internal.handlers.observation import ALWAYS, UNLESS_SET
from pkg.apperr import Code

HEAD_BYTES = 64 * 1024
"""What request line and headers may take; a head that has arrived whole may be longer by one read of the socket."""
HEAD_SECONDS = 30.0
BODY_BYTES = 16 * 1024
BODY_SECONDS = 30.0
"""In each such time a body brings BODY_BYTES or its end, or the client is taken for gone."""
LAST_SECONDS = 1.0
"""A stopping server waits so long for a request that may be on its way before it closes a silent connection."""


class Connections(ServerState):
    """What a server's connections know of it. Once it is `ending`, each of them is answered one more request."""

    ending = False


class BoundedHttp(HttpToolsProtocol):
    """uvicorn keeps a head of any size in memory, and waits for a body for ever; nobody has to be known to send one.

    And when it stops it closes connections under requests that it hasn't read yet, without an answer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._body_bytes = 0
        self._overdue: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client that says nothing isn't waited for."""
        super().connection_made(transport)
        self._overdue = self.loop.call_later(HEAD_SECONDS, self._give_up)
        if self._ending:
            self._await_last()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever the reason."""
        self._on_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts until the head has arrived, and begins to wait for what is still missing."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._in_head:
            self._await_body()
        elif self._head_bytes > HEAD_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                Code.REQUEST_TOO_LARGE,
                f"The request line and headers are larger than {HEAD_BYTES // 1024} kB.",
            )
        elif self._head_bytes and self._overdue is None:
            self._overdue = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def on_headers_complete(self) -> None:
        """From here on the application bounds how much comes."""
        self._in_head, self._head_bytes = False, 0
        self._on_time()
        super().on_headers_complete()
        if self._ending and not self._idle:  # which it is where a WebSocket begins
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Counts what is on time."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request's head may begin."""
        super().on_message_complete()
        self._in_head, self._body_bytes = True, 0
        self._on_time()

    def on_response_complete(self) -> None:
        """An answer that had begun before the server was stopped has promised to take another request."""
        super().on_response_complete()
        if self._ending:
            self._await_last()

    def shutdown(self) -> None:
        """The answer that is due says that it is the last one; without one, the next request's will."""
        if self._idle:
            self._await_last()
        elif not self.cycle.response_started:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """What isn't HTTP, or a method that HTTP doesn't know."""
        self._refuse(HTTPStatus.BAD_REQUEST, Code.REQUEST_MALFORMED, msg)

    def _await_body(self) -> None:
        if self._body_bytes >= BODY_BYTES:
            self._body_bytes = 0
            self._on_time()
        if self._overdue is None:
            self._overdue = self.loop.call_later(BODY_SECONDS, self._give_up_body)

    def _refuse(self, status: HTTPStatus, code: Code, detail: str) -> None:
        """Without a word where it would be taken for a part of another request's answer."""
        if not self._answering_another():
            self._answer(status, code, detail)
        self.transport.close()

    def _answering_another(self) -> bool:
        if self._in_head:
            return not self._idle
        cycle = self._latest
        return cycle is not None and (cycle.response_started or bool(self.pipeline))

    def _answer(self, status: HTTPStatus, code: Code, detail: str) -> None:
        request_id = str(new_id())
        problem = {
            "type": f"/docs#{code.value}",
            "title": status.phrase,
            "status": status.value,
            "detail": detail,
            "code": code.value,
            "request_id": request_id,
        }
        body = msgspec.json.encode(problem)
        headers = (
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            *ALWAYS,
            *UNLESS_SET,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        )
        lines = (b"%s: %s\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, status.phrase.encode(), b"".join(lines)) + body)

    @property
    def _ending(self) -> bool:
        return isinstance(self.server_state, Connections) and self.server_state.ending

    @property
    def _latest(self) -> RequestResponseCycle | None:
        return self.cycle  # None before the first request, whatever its hint says

    @property
    def _idle(self) -> bool:
        cycle = self._latest
        return cycle is None or cycle.response_complete

    def _await_last(self) -> None:
        self.loop.call_later(LAST_SECONDS, self._close_silent)

    def _close_silent(self) -> None:
        if self._idle and not self._head_bytes:
            self.transport.close()

    def _give_up(self) -> None:
        """Unless an answer is still on its way, to which stray bytes after its request are no harm."""
        self._overdue = None
        if self._idle:
            self.transport.close()

    def _give_up_body(self) -> None:
        """Unless it is the application that doesn't read on."""
        self._overdue = None
        if self.flow.read_paused:
            self._await_body()
            return
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            Code.REQUEST_TOO_SLOW,
            f"Of the body less than {BODY_BYTES // 1024} kB came within {BODY_SECONDS:.0f} s.",
        )

    def _on_time(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
