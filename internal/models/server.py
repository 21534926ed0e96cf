"""The local model process over HTTP: OpenAI's `/v1/embeddings` and `/v1/models`, our `/v1/tokenize` and `/v1/ocr`."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import msgspec
import uvicorn
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from internal.models import wire
from internal.models.batching import Lane
from internal.models.embedding import DIMENSION, Kind
from internal.models.listener import address, listening
from internal.models.metrics import Metrics, rss_bytes
from internal.models.runtime import OCR_IDLE_SECONDS, Runtime
from internal.models.weights import FORMAT, NAME, SOURCE_SHA256
from pkg import logger, watchdog
from pkg.apperr import AppError, Code
from pkg.config import Settings

OCR_NAME = "pp-ocrv6-small"
MEGABYTE = 1_048_576
MAX_JSON_BYTES = 32 * MEGABYTE
MAX_PICTURE_BYTES = 100 * MEGABYTE
KEEP_ALIVE_SECONDS = 120
"""Longer than clients keep a connection, so that they close it first and never send into a closed one."""
DRAIN_SECONDS = 30
IDLE_CHECKS = 4
"""How often the idle time is looked at within its length."""
PRELOAD_AGAIN_SECONDS = 10.0
INLINE_VECTORS = 16
CLIENT_GONE = 499

T = TypeVar("T")
Call = Request[Any, Any, State]


class ClientGoneError(Exception):
    """The caller closed the connection before its answer was ready."""


def app(settings: Settings) -> Litestar:
    """The application. With `models.preload` the embedding model loads as soon as it listens, not at its first use."""
    metrics = Metrics()
    runtime = Runtime(settings, metrics)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncGenerator[None]:
        async with asyncio.TaskGroup() as background:
            watch = background.create_task(_release_when_idle(runtime, settings.models.idle_seconds))
            loading = background.create_task(_preload(runtime)) if settings.models.preload else None
            with watchdog.watching():
                yield
            watch.cancel()
            if loading:
                loading.cancel()
        await runtime.close()

    return Litestar(
        route_handlers=[embeddings, tokenize, read_picture, models, healthz, readyz, render_metrics],
        lifespan=[lifespan],
        state=State({"runtime": runtime, "metrics": metrics}),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=MAX_JSON_BYTES,
        exception_handlers={
            AppError: _answer_error,
            HTTPException: _answer_http_error,
            ClientGoneError: _answer_gone,
            Exception: _answer_fault,
        },
    )


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, finishes what is in flight, and returns. Raises SettingsError."""
    logger.configure(log_format=settings.log.format, level=settings.log.level, process="models")
    url = address(settings)
    with listening(url) as bound, _quiet_signals():
        config = uvicorn.Config(
            app(settings),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        logger.get("models").info("models listening", url=url)
        uvicorn.Server(config).run(sockets=[bound])


@post("/v1/embeddings", status_code=200)
async def embeddings(request: Call, state: State) -> Response[bytes]:
    """Vectors of 384 values; `for_search` neutral ones (internal/models/neutral.py), with token codes.

    The lane is the header X-Lane, else interactive for queries and ingest for passages.
    """
    call = wire.read(await request.body(), wire.EmbeddingsIn)
    texts = wire.check_embeddings(call)
    work = state.runtime.embed(_lane(request, call.input_type), call.input_type, texts, searched=call.for_search)
    embedded = await _while_connected(request, work)
    if len(texts) <= INLINE_VECTORS:
        data = wire.write_embeddings(embedded.vectors, embedded.codes, call.encoding_format)
    else:
        data = await asyncio.to_thread(wire.write_embeddings, embedded.vectors, embedded.codes, call.encoding_format)
    return _json(wire.EmbeddingsOut(data, wire.Usage(embedded.tokens, embedded.tokens, embedded.truncated)))


@post("/v1/tokenize", status_code=200)
async def tokenize(request: Call, state: State) -> Response[bytes]:
    """Token counts of the embedding model."""
    call = wire.read(await request.body(), wire.TokenizeIn)
    wire.check_countable(call.input)
    return _json(wire.TokenizeOut(await _while_connected(request, state.runtime.count(call.input))))


@post("/v1/ocr", status_code=200, request_max_body_size=MAX_PICTURE_BYTES)
async def read_picture(request: Call, state: State) -> Response[bytes]:
    """The lines of text of the picture in the body."""
    runtime: Runtime = state.runtime
    with runtime.place_for_picture():
        data = await request.body()
        if not data:
            raise AppError(Code.FILE_EMPTY, "the picture is empty; send its bytes as the body")
        return _json(await _while_connected(request, runtime.read(data)))


@get("/v1/models")
async def models() -> Response[bytes]:
    """What is served here."""
    version = f"{SOURCE_SHA256[:12]}-{FORMAT}"
    return _json(wire.ModelsOut([wire.ModelOut(NAME, version, dimension=DIMENSION), wire.ModelOut(OCR_NAME, "3.10.0")]))


@get("/healthz")
async def healthz(state: State) -> Response[bytes]:
    """Always 200 while the process answers; says what is loaded and how much waits."""
    runtime: Runtime = state.runtime
    return _json(wire.HealthOut("ok", runtime.loaded, rss_bytes(), runtime.depths))


@get("/readyz")
async def readyz(state: State) -> Response[bytes]:
    """503 while the embedding model loads for the first time; whoever asks for vectors then is answered after it."""
    runtime: Runtime = state.runtime
    body = wire.ReadyOut("ok" if runtime.ready else "loading")
    return Response(msgspec.json.encode(body), status_code=200 if runtime.ready else 503, media_type=MediaType.JSON)


@get("/metrics")
async def render_metrics(state: State) -> Response[bytes]:
    """Prometheus's text format."""
    return Response(state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _lane(request: Call, kind: Kind) -> Lane:
    name = request.headers.get("x-lane")
    if name is None:
        return Lane.INTERACTIVE if kind is Kind.QUERY else Lane.INGEST
    try:
        return Lane(name)
    except ValueError:
        raise AppError(Code.REQUEST_INVALID, "X-Lane must be interactive or ingest") from None


async def _while_connected(request: Call, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the caller closes the connection."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Call) -> None:
    """Returns when the caller closes the connection. The body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _release_when_idle(runtime: Runtime, idle_seconds: float) -> None:
    while True:
        await asyncio.sleep(min(idle_seconds, OCR_IDLE_SECONDS) / IDLE_CHECKS)
        await runtime.release_idle()


async def _preload(runtime: Runtime) -> None:
    """Tries until it succeeds: a full disk may be cleared, and nobody asks a process that isn't ready."""
    while not runtime.ready:
        try:
            await runtime.preload()
        except Exception as error:  # noqa: BLE001 - whatever it was, the other models go on
            detail = error.detail if isinstance(error, AppError) else repr(error)
            logger.get("models").error("embedding model not loaded", detail=detail, again_in=PRELOAD_AGAIN_SECONDS)
            await asyncio.sleep(PRELOAD_AGAIN_SECONDS)


@contextmanager
def _quiet_signals() -> Generator[None]:
    """Swallows the signal that uvicorn raises again after a clean stop, so that the process ends with status 0."""
    stops = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(stop, lambda _number, _frame: None) for stop in stops]
    try:
        yield
    finally:
        for stop, handler in zip(stops, before, strict=True):
            signal.signal(stop, handler)


def _json(answer: msgspec.Struct) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type=MediaType.JSON)


def _answer_error(_request: Call, error: AppError) -> Response[bytes]:
    status, body = wire.write_error(error)
    headers = {"Retry-After": f"{error.retry_after:.0f}"} if error.retry_after else {}
    return Response(body, status_code=status, headers=headers, media_type=MediaType.JSON)


def _answer_http_error(request: Call, error: HTTPException) -> Response[bytes]:
    codes = {404: Code.REQUEST_NOT_FOUND, 405: Code.REQUEST_METHOD_NOT_ALLOWED, 413: Code.REQUEST_TOO_LARGE}
    return _answer_error(request, AppError(codes.get(error.status_code, Code.REQUEST_MALFORMED), error.detail))


def _answer_gone(_request: Call, _error: ClientGoneError) -> Response[bytes]:
    return Response(b"", status_code=CLIENT_GONE)


def _answer_fault(request: Call, error: Exception) -> Response[bytes]:
    logger.get("models").error("request failed", path=request.url.path, exc_info=error)
    return _answer_error(request, AppError(Code.INTERNAL, "the model process failed; its log tells why"))
