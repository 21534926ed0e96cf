"""uvicorn as the product runs it: streams end first when it stops, and nobody who doesn't read holds it up."""

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import uvicorn
from litestar.types import ASGIApp

from internal.handlers.protocol import BoundedHttp, Connections
from internal.services.chat import ChatService
from internal.services.events import EventService
from pkg import logger
from pkg.apperr import SettingsError

DRAIN_SECONDS = 20
ANSWER_SECONDS = 15
"""An answer that is being written when the server stops may take so long, then it ends with an error."""
STUCK_SECONDS = 5
KEEP_ALIVE_SECONDS = 75  # longer than a load balancer's 60 s: the balancer must be the one to close an idle connection
WORDS_BYTES = 1024  # of a WebSocket message: clients have nothing to say


class Server(uvicorn.Server):
    """Serves `app` until `should_exit`; whoever runs it catches the signals."""

    def __init__(
        self,
        app: ASGIApp,
        events: EventService,
        chat: ChatService,
        *,
        keep_alive_seconds: int = KEEP_ALIVE_SECONDS,
        **listening: Any,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHttp,
                ws="websockets-sansio",
                ws_max_size=WORDS_BYTES,
                ws_per_message_deflate=False,  # it costs 64 kB a connection, and notices are short
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=keep_alive_seconds,
                timeout_graceful_shutdown=DRAIN_SECONDS,
                callback_notify=self._drop_stuck,
                timeout_notify=STUCK_SECONDS,
                **listening,
            )
        )
        self.server_state = self._connections = Connections()
        self._events = events
        self._chat = chat
        self._closing: set[Any] = set()
        self._log = logger.get("server")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        listeners = [item for server in self.servers for item in server.sockets]
        self._log.info("server listens", addresses=[_address(item) for item in listeners])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends streams with a marker, lets requests finish, then closes."""
        self._log.info("server drains", connections=len(self.server_state.connections), streams=self._events.readers)
        self._connections.ending = True
        self._events.stop()
        dropping = asyncio.create_task(self._drop_while_stopping())
        hurrying = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._chat.stop)
        await super().shutdown(sockets)
        hurrying.cancel()
        dropping.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """uvicorn raises a caught signal again after it has stopped, which would skip closing what was opened."""
        yield

    async def _drop_while_stopping(self) -> None:
        while True:
            await asyncio.sleep(STUCK_SECONDS)
            await self._drop_stuck()

    async def _drop_stuck(self) -> None:
        """Cuts connections that have been closing for so long: their peer doesn't read, and may never do so."""
        closing = {item for item in self.server_state.connections if _transport(item).is_closing()}
        for connection in closing & self._closing:
            _transport(connection).abort()
        self._closing = closing


def inherited(descriptor: int) -> socket.socket:
    """A listening socket of the process that started this one, kept from those that this one starts.

    Raises SettingsError where it is none.
    """
    advice = f"--fd {descriptor} is no listening socket; open one, or set SERVER__HOST and SERVER__PORT"
    try:
        found = socket.socket(fileno=descriptor)
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SettingsError(advice) from error
    if not listens:
        raise SettingsError(advice)
    found.set_inheritable(False)
    return found


def _address(listener: Any) -> str:
    name = listener.getsockname()
    return ":".join(map(str, name[:2])) if isinstance(name, tuple) else str(name)


def _transport(connection: Any) -> asyncio.WriteTransport:
    return connection.transport
