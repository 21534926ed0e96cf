"""Idempotency-Key on POST: the same request again gets the answer that it got before."""

import hashlib
from collections.abc import Mapping
from typing import Any

from litestar import Request, Response
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from internal.handlers.auth import context_of
from internal.services.idempotency import IdempotencyService, Replay, check_key
from pkg import logger
from pkg.apperr import AppError
from pkg.ctxutil import Context

HEADER = b"idempotency-key"
PENDING = "idempotency"
LATER = "idempotency_later"
KEPT_BYTES = 1024 * 1024
SECRET_ANSWER = {"secret_answer": True}
"""For `opt`: an answer that is shown once must not lie in a table for a day."""
STREAMED = {"streamed": True}
"""For `opt`: a body that is read as it comes can't be compared, and headers that matter aren't kept."""
CLAIMED = {"claimed": True}
"""For `opt`: a body that the handler reads by itself, and claims the answer to."""
NEVER_REPLAYED = (*SECRET_ANSWER, *STREAMED)


class Replays:
    """ASGI around the application, and its `before_request`: the latter knows who asks, the former what is answered."""

    def __init__(self, service: IdempotencyService) -> None:
        self._service = service

    async def before(self, request: Request[Any, Any, Any]) -> Response[bytes] | None:
        """Answers at once what was answered before. Raises REQUEST_INVALID, IDEMPOTENCY_CONFLICT,
        REQUEST_CONFLICT."""
        raw = _key(request.scope) if request.method == "POST" else None
        if raw is None or "auth" not in request.scope or _is_exempt(request.route_handler.opt):
            return None
        key = check_key(raw.decode("latin-1"))
        if request.content_type[0] == "multipart/form-data" or request.route_handler.opt.get("claimed"):
            request.scope[LATER] = (self, key)  # type: ignore[literal-required]  # ours, for `claim`
            return None
        return await self.begin(request, key, await request.body())

    async def begin(self, request: Request[Any, Any, Any], key: str, body: bytes) -> Response[bytes] | None:
        """The answer that this request got before; None when it is the first with its key."""
        ctx = context_of(request.scope)
        replay = await self._service.begin(ctx, key, _fingerprint(request, body))
        if replay is None:
            request.scope[PENDING] = (ctx, key)  # type: ignore[literal-required]  # ours, for `around`
            return None
        headers = {"Idempotency-Replayed": "true"}
        if replay.media_type:
            # As a header it is sent as it was; to a `media_type` of text Litestar would add its charset once more.
            headers["Content-Type"] = replay.media_type
        return Response(replay.body, status_code=replay.status, headers=headers)

    def around(self, app: ASGIApp) -> ASGIApp:
        """Keeps the answers of requests that brought a key."""

        async def replayable(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] != "POST" or _key(scope) is None:
                await app(scope, receive, send)
                return
            answer = _Answer(send)
            try:
                await app(scope, receive, answer.send)
            finally:
                pending: tuple[Context, str] | None = scope.get(PENDING)
                if pending is not None:
                    await self._settle(*pending, answer.replay())

        return replayable

    async def _settle(self, ctx: Context, key: str, replay: Replay | None) -> None:
        try:
            if replay is None:
                await self._service.abandon(ctx, key)
            else:
                await self._service.finish(ctx, key, replay)
        except AppError as error:
            # The answer is out already; a key that stays taken frees itself within minutes.
            logger.get("http").warning("an idempotency key was not settled", code=error.code.value)


class AnsweredBeforeError(Exception):
    """A form turned out to be one that was answered; `response` is what it was answered."""

    def __init__(self, response: Response[bytes]) -> None:
        super().__init__("answered before")
        self.response = response


async def claim(request: Request[Any, Any, Any], content: bytes) -> None:
    """For a form, whose file is compared by its digest once it is in: reading it earlier would undo the streaming.

    `content` stands for what the form says. Raises AnsweredBeforeError, IDEMPOTENCY_CONFLICT, REQUEST_CONFLICT.
    """
    waiting: tuple[Replays, str] | None = request.scope.get(LATER)
    if waiting is None:
        return
    replays, key = waiting
    if (response := await replays.begin(request, key, content)) is not None:
        raise AnsweredBeforeError(response)


class _Answer:
    """Passes an answer on and remembers it, up to a megabyte."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self._media_type = ""
        self._body = bytearray()
        self._complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            types = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._media_type = types[0].decode("latin-1") if types else ""
        elif message["type"] == "http.response.body":
            if len(self._body) <= KEPT_BYTES:
                self._body += message["body"]
            self._complete = not message["more_body"]
        await self._send(message)

    def replay(self) -> Replay | None:
        """None for an answer that failed, broke off or is too long: such a request may be done again."""
        if not self._complete or not 200 <= self._status < 300 or len(self._body) > KEPT_BYTES:
            return None
        return Replay(self._status, self._media_type, bytes(self._body))


def _is_exempt(opt: Mapping[str, Any]) -> bool:
    return any(opt.get(name) for name in NEVER_REPLAYED)


def _key(scope: Scope) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == HEADER), None)


def _fingerprint(request: Request[Any, Any, Any], body: bytes) -> bytes:
    """SHA-256 of what was asked."""
    media_type = request.content_type[0]
    asked = f"{request.method}\n{request.scope['raw_path']!r}\n{request.scope['query_string']!r}\n{media_type}\n"
    return hashlib.sha256(asked.encode() + body).digest()
