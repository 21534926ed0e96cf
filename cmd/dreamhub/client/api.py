"""The API over HTTP: errors in the server's words, and patience where it asks for patience."""

import asyncio
import email.utils
import io
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from dreamhub.client.answers import Problem, Uploaded
from dreamhub.client.connection import Connection
from dreamhub.client.errors import ApiError, ClientError, LostError
from dreamhub.client.printable import one_line
from dreamhub.client.sse import Event, events
from pkg.version import version

T = TypeVar("T")

ALWAYS_AGAIN = frozenset({HTTPStatus.TOO_MANY_REQUESTS})
BUSY = ALWAYS_AGAIN | {HTTPStatus.SERVICE_UNAVAILABLE}
BUSY_SECONDS = 600.0
"""How long a server may go on saying that it is busy."""
LOST_SECONDS = 30.0
"""How long a server that answered before may be away, for example while it restarts."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
TIMEOUT = httpx.Timeout(120.0, connect=10.0, pool=None)


class CountedFile(io.FileIO):
    """A file that tells how many bytes of it were read."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_bytes = on_bytes

    def read(self, size: int | None = -1) -> bytes:
        """Reads on, and tells the position."""
        data = super().read(-1 if size is None else size) or b""
        self._on_bytes(self.tell())
        return data


class Api:
    """One connection pool. Everything raises ApiError for a refusal and LostError for no answer."""

    def __init__(self, connection: Connection, on_pause: Callable[[float, str], None] | None = None) -> None:
        self._url = connection.url
        self._on_pause = on_pause
        self._answered = False
        self._http = httpx.AsyncClient(
            base_url=f"{connection.url}/api/v1",
            headers={"Authorization": f"Bearer {connection.token}", "User-Agent": f"dreamhub/{version()}"},
            timeout=TIMEOUT,
            trust_env=not connection.on_this_machine,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def get(
        self, path: str, want: type[T], params: Mapping[str, str | int] | None = None, *, patient: bool = True
    ) -> T:
        """Reads `path`. `patient`: a lost connection or a 503 is tried again."""
        return self._read(await self._send(lambda: self._http.get(path, params=params), patient=patient), want)

    async def post(self, path: str, body: Mapping[str, Any], want: type[T], *, patient: bool = False) -> T:
        """Sends JSON. Only what may safely happen twice is `patient`."""
        return self._read(await self._send(lambda: self._http.post(path, json=body), patient=patient), want)

    async def upload(self, path: Path, fields: Mapping[str, str], on_bytes: Callable[[int], None]) -> Uploaded:
        """Sends a file; sending it again is safe, since the server knows its bytes.

        Raises ClientError when the file can't be read.
        """
        # names that aren't UTF-8 arrive as surrogates, which no HTTP header takes
        name = path.name.encode(errors="surrogateescape").decode(errors="replace")

        async def attempt() -> httpx.Response:
            with CountedFile(path, on_bytes) as file:
                return await self._http.post("/documents", data=dict(fields), files={"file": (name, file)})

        try:
            return self._read(await self._send(attempt, patient=True), Uploaded)
        except OSError as error:
            raise ClientError(f"can't be read: {error.strerror}") from None

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Event]:
        """The events of an answer as they come. Closing the generator closes the connection, which stops the answer."""
        headers = {"Accept": "text/event-stream"}

        async def attempt() -> httpx.Response:
            request = self._http.build_request("POST", path, json=body, headers=headers)
            return await self._http.send(request, stream=True)

        response = await self._send(attempt, patient=False)
        try:
            if response.is_error:
                await response.aread()
            self._refuse(response)
            async for event in events(response.aiter_lines()):
                yield event
        except httpx.TransportError:
            raise LostError("the connection was lost in the middle of the answer") from None
        finally:
            await response.aclose()

    async def _send(self, attempt: Callable[[], Awaitable[httpx.Response]], *, patient: bool) -> httpx.Response:
        """Tries until there is an answer other than "busy", within bounds.

        A 503 may come after half of the work was done, a 429 comes before any: only that is always tried again.
        """
        busy = BUSY if patient else ALWAYS_AGAIN
        pause = FIRST_PAUSE
        began = time.monotonic()
        while True:
            waited = time.monotonic() - began
            try:
                response = await attempt()
            except httpx.TransportError as error:
                if not (patient and self._answered) or waited > LOST_SECONDS:
                    raise LostError(f"{self._url} can't be reached: {_reason(error)}") from None
                wanted, why = pause, "the connection was lost"
            else:
                self._answered = True
                if response.status_code not in busy or waited > BUSY_SECONDS:
                    return response
                await response.aread()
                wanted, why = _retry_after(response) or pause, _problem(response).words or "the server is busy"
                await response.aclose()
            pause = min(pause * 2, LONGEST_PAUSE)
            wanted = min(wanted, LONGEST_PAUSE)
            if self._on_pause is not None:
                self._on_pause(wanted, one_line(why))
            await asyncio.sleep(wanted)

    def _read(self, response: httpx.Response, want: type[T]) -> T:
        self._refuse(response)
        try:
            return msgspec.json.decode(response.content, type=want)
        except msgspec.DecodeError:
            raise ClientError(f"{self._url} answered something else than DreamHub would; check --url") from None

    def _refuse(self, response: httpx.Response) -> None:
        if not response.is_success:
            problem = _problem(response)
            words = problem.words or f"{self._url} answered {response.status_code} {response.reason_phrase}"
            raise ApiError(response.status_code, problem.code, one_line(words))


def _problem(response: httpx.Response) -> Problem:
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except msgspec.DecodeError:
        return Problem()


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form that the header may have."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "it doesn't answer in time"
    return one_line(str(error)) or type(error).__name__
