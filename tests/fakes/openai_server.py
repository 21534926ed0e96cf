"""A real HTTP server on a loopback port that speaks OpenAI's wire format and misbehaves on demand.

    async with running_fake() as fake:
        fake.replies.append(Reply(text="Refunds take 30 days [1]."))
        client = AsyncOpenAI(base_url=fake.base_url, api_key="test")

Each chat request takes the next of `replies`; when there is none left it gets `fake.default`. `threaded_fake()` is the
same in a thread of its own, for tests that run the product in other processes. What was asked is in `fake.requests`.
"""

import asyncio
import hashlib
import json
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.fakes.limits import RateLimit


@dataclass(frozen=True)
class Reply:
    """One answer of the fake, and what is wrong with it."""

    text: str = "Hello."
    status: int = 200
    retry_after: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    error: dict[str, Any] = field(default_factory=lambda: {"message": "scripted failure", "type": "fake"})
    pieces: Sequence[str] | None = None
    """The deltas; by default the text in pieces of four characters."""
    seconds_before: float = 0.0
    seconds_between: float = 0.0
    break_after: int | None = None
    """Closes the connection after so many deltas, without an end."""
    end_after: int | None = None
    """Ends the body properly after so many deltas, but without finish_reason and [DONE]."""
    hang_after: int | None = None
    """Sends nothing more after so many deltas (0: not even headers), and keeps the connection open."""
    garbage_after: int | None = None
    """Sends something that isn't JSON after so many deltas."""
    usage: bool = True
    empty_choices_first: bool = False
    role_first: bool = True
    reasoning: Sequence[str] = ()
    finish: str | None = "stop"
    """None: [DONE] alone says that the answer is whole."""
    refuse_stream_options: bool = False


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def prompt(self) -> str:
        """Every message's text, one after the other."""
        return "\n".join(str(message["content"]) for message in self.body.get("messages", []))


class HungUpError(Exception):
    """The script says to drop the connection."""


class FakeOpenAI:
    """State and behaviour of the server. Counters may be read at any time."""

    def __init__(self, *, dimension: int = 384) -> None:
        self.dimension = dimension
        self.replies: deque[Reply] = deque()
        self.embedding_replies: deque[Reply] = deque()
        self.rerank_replies: deque[Reply] = deque()
        self.rerank: Callable[[str, list[str]], Any] = lambda query, documents: {
            "results": [{"index": index, "relevance_score": 1 / (index + 1)} for index in range(len(documents))]
        }
        """Question and passages → the body of an answer; by default in the order in which they came."""
        self.default = Reply()
        self.limit: RateLimit | None = None
        """Of requests for embeddings."""
        self.too_big: Callable[[list[str]], tuple[int, dict[str, Any]] | None] = lambda _texts: None
        """Texts to embed → status and body of a refusal, or None."""
        self.requests: list[Request] = []
        self.deltas_sent = 0
        self.disconnects = 0
        self.embedded_texts: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[Request]:
        return [request for request in self.requests if request.path.endswith("/chat/completions")]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while request := await _read(reader):
                self.requests.append(request)
                if not await self._respond_or_notice(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _respond_or_notice(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answers, unless the client goes away first. True when the connection may be used again."""
        answering = asyncio.create_task(self._respond(request, writer))
        # A client that waits for its answer sends nothing, so that the only thing to read is its farewell.
        leaving = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.disconnects += 1
                return False
            error = answering.exception()
            if isinstance(error, ConnectionError):
                self.disconnects += 1
            elif error is not None and not isinstance(error, HungUpError):
                raise error
            return error is None and not leaving.done()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path.endswith("/chat/completions"):
            reply = self.replies.popleft() if self.replies else self.default
            await self._chat(request, reply, writer)
        elif request.path.endswith("/embeddings"):
            reply = self.embedding_replies.popleft() if self.embedding_replies else Reply()
            await self._embed(request, reply, writer)
        elif request.path.endswith("/rerank"):
            reply = self.rerank_replies.popleft() if self.rerank_replies else Reply()
            await asyncio.sleep(reply.seconds_before)
            body = self.rerank(request.body["query"], request.body["documents"])
            await _send(writer, reply.status, body if reply.status == 200 else {"error": reply.error})
        elif request.path.endswith("/models"):
            await _send(writer, 200, {"object": "list", "data": [{"id": "fake-chat", "object": "model"}]})
        else:
            await _send(writer, 404, {"error": {"message": "no such path", "type": "fake"}})

    async def _chat(self, request: Request, reply: Reply, writer: asyncio.StreamWriter) -> None:
        if reply.hang_after == 0:
            await asyncio.Event().wait()
        await asyncio.sleep(reply.seconds_before)
        if reply.refuse_stream_options and "stream_options" in request.body:
            await _send(writer, 400, {"error": {"message": "Unrecognized request argument: stream_options"}})
        elif reply.status != 200:
            await _send(writer, reply.status, {"error": reply.error}, _headers_of(reply))
        elif request.body.get("stream"):
            await self._stream(request, reply, writer)
        else:
            await _send(writer, 200, _completion(request, reply))

    async def _stream(self, request: Request, reply: Reply, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        model = request.body.get("model", "fake")
        if reply.empty_choices_first:
            await _event(writer, {**_envelope(model), "choices": []})
        if reply.role_first:
            await _event(writer, _delta(model, {"role": "assistant", "content": ""}))
        for thought in reply.reasoning:
            await _event(writer, _delta(model, {"content": None, "reasoning_content": thought}))
        for number, piece in enumerate(_pieces(reply)):
            await self._misbehave(reply, number, writer)
            if number == reply.end_after:
                writer.write(b"0\r\n\r\n")
                await writer.drain()
                return
            await _event(writer, _delta(model, {"content": piece}))
            self.deltas_sent += 1
            await asyncio.sleep(reply.seconds_between)
        if reply.finish is not None:
            await _event(writer, _delta(model, {}, finish=reply.finish))
        asked = (request.body.get("stream_options") or {}).get("include_usage")
        if reply.usage and asked:
            await _event(writer, {**_envelope(model), "choices": [], "usage": _usage(request, reply)})
        await _raw(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _misbehave(self, reply: Reply, number: int, writer: asyncio.StreamWriter) -> None:
        if number == reply.garbage_after:
            await _raw(writer, b"data: {this is not json\n\n")
        if number == reply.break_after:
            raise HungUpError
        if number == reply.hang_after:
            await asyncio.Event().wait()

    async def _embed(self, request: Request, reply: Reply, writer: asyncio.StreamWriter) -> None:
        if reply.hang_after == 0:
            await asyncio.Event().wait()
        if reply.break_after == 0:
            raise HungUpError
        await asyncio.sleep(reply.seconds_before)
        if reply.garbage_after == 0:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{not json")
            await writer.drain()
            return
        if reply.status != 200:
            await _send(writer, reply.status, {"error": reply.error}, _headers_of(reply))
            return
        served, told = self.limit.take(request.key) if self.limit else (True, {})
        if not served:
            await _send(writer, 429, {"error": {"message": "Rate limit reached", "type": "requests"}}, told)
            return
        given = request.body["input"]
        texts = [given] if isinstance(given, str) else list(given)
        if refusal := self.too_big(texts):
            await _send(writer, *refusal, told)
            return
        self.embedded_texts += texts
        dimension = request.body.get("dimensions") or self.dimension
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector_of(text, dimension), request)}
            for index, text in enumerate(texts)
        ]
        tokens = sum(map(len, texts)) // 4 + 1
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        body = {"object": "list", "model": request.body.get("model"), "data": data, "usage": usage}
        await _send(writer, 200, body, told)


def vector_of(text: str, dimension: int) -> np.ndarray:
    """A unit vector that depends on the text's words only, so that texts that share words are near one another."""
    vector = np.zeros(dimension, dtype=np.float32)
    for word in text.lower().split() or [""]:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        vector += np.random.default_rng(seed).standard_normal(dimension, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def _encoded(vector: np.ndarray, request: Request) -> Any:
    if request.body.get("encoding_format") == "base64":
        import base64

        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]


def _pieces(reply: Reply) -> list[str]:
    if reply.pieces is not None:
        return list(reply.pieces)
    return [reply.text[place : place + 4] for place in range(0, len(reply.text), 4)]


def _usage(request: Request, reply: Reply) -> dict[str, int]:
    prompt, completion = len(request.prompt.split()), len(_pieces(reply))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _envelope(model: str) -> dict[str, Any]:
    return {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": model}


def _delta(model: str, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {**_envelope(model), "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _completion(request: Request, reply: Reply) -> dict[str, Any]:
    return {
        **_envelope(request.body.get("model", "fake")),
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(_pieces(reply))},
                "finish_reason": reply.finish,
            }
        ],
        "usage": _usage(request, reply),
    }


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """One HTTP/1.1 request with a JSON body, or None when the client closed the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(first.split(" ")[1].partition("?")[0], headers, json.loads(raw) if raw else {})


def _headers_of(reply: Reply) -> dict[str, str]:
    return {**reply.headers, **({"Retry-After": reply.retry_after} if reply.retry_after else {})}


async def _send(
    writer: asyncio.StreamWriter, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> None:
    data = json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} Status", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    head += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*head, "", ""]).encode() + data)
    await writer.drain()


async def _event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    await _raw(writer, b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")


async def _raw(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


@asynccontextmanager
async def running_fake(*, dimension: int = 384) -> AsyncGenerator[FakeOpenAI]:
    """A fake on this event loop."""
    fake = FakeOpenAI(dimension=dimension)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


@contextmanager
def threaded_fake(*, dimension: int = 384) -> Generator[FakeOpenAI]:
    """A fake on a thread of its own, which answers while the test blocks."""
    fake = FakeOpenAI(dimension=dimension)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-openai", daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(fake.start(), loop).result(10)
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
