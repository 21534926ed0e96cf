"""The composition root: the one place that knows every class, and the entry of each process."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from socket import socket
from typing import Any

import msgspec
import uvloop

from internal.checks import health_of_relay, health_of_server
from internal.entities.search import Space
from internal.entities.tasks import Queue
from internal.handlers.routes import Api, create_api, openapi_document
from internal.handlers.server import Server, inherited
from internal.parsers.sandbox import Sandbox
from internal.providers.antivirus import open_antivirus
from internal.providers.blobs import open_blobs
from internal.providers.model_calls import ModelCalls
from internal.providers.ocr import LocalOcr
from internal.repositories import migrate as migrations
from internal.repositories.broadcasts import Megaphone
from internal.repositories.cache import open_cache
from internal.repositories.processings import processings
from internal.repositories.store import Store
from internal.repositories.wakeup import NewsLine
from internal.repositories.workers import open_workers
from internal.services.access_tokens import AccessTokens
from internal.services.api_keys import ApiKeyService
from internal.services.authentication import Authenticator
from internal.services.batches import BatchService
from internal.services.bulk import BulkService
from internal.services.caching import SharedLevel, TwoLevelCache
from internal.services.collections import CollectionService
from internal.services.conversations import ConversationService
from internal.services.documents import MEGABYTE, DocumentService
from internal.services.embedder import Embedder
from internal.services.expansion import ExpansionService
from internal.services.forecasts import ForecastService
from internal.services.idempotency import IdempotencyService
from internal.services.ingest import IngestService
from internal.services.installation import InstallationService
from internal.services.members import MemberService
from internal.services.passwords import Passwords
from internal.services.processing import ProcessingService
from internal.services.purge import PurgeService
from internal.services.rate_limits import Limit, RateLimiter
from internal.services.search import SearchService
from internal.services.sessions import FAILURES, SessionService
from internal.services.shadow import ShadowService
from internal.services.sweep import SweepService
from internal.services.tasks import TaskService
from internal.services.tenants import TenantService
from internal.services.terms import TermAnalyser
from internal.services.trials import TrialService
from internal.services.uploads import UploadService
from internal.services.usage import UsageService
from internal.services.versions import VersionService
from internal.wiring import (
    open_chat,
    open_embedder,
    open_events,
    open_memories,
    open_reranker,
    open_sight,
    open_store_of,
    reach_database,
    space_of,
)
from internal.worker.jobs import product_jobs
from internal.worker.queue import TaskQueue
from internal.worker.relay import Relay
from internal.worker.runner import Worker
from internal.worker.watch import Watch
from pkg import failpoints, logger, telemetry, watchdog
from pkg.apperr import SettingsError
from pkg.config import SCRATCH, Settings, home_of
from pkg.required import login, missing, require
from pkg.sealing import Sealer
from pkg.version import version
from pkg.workdir import workdir


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a server process is made of; `api` is what its handlers call."""

    settings: Settings
    store: Store
    embedder: Embedder
    api: Api


@asynccontextmanager
async def build(settings: Settings) -> AsyncGenerator[Services]:
    """A server's services, open; all that was opened is closed at the end, the last first.

    Raises SettingsError naming what isn't set, AppError when the database can't be reached.
    """
    require(settings, "DB__DSN", "REDIS__URL", "BLOBS__URL", "AUTH__PLATFORM_TOKEN", "AUTH__JWT_SECRET")
    async with AsyncExitStack() as stack:
        spool = stack.enter_context(workdir(_scratch(settings), "server"))
        store = await open_store_of(stack, settings, "DB__DSN", settings.db.dsn.get_secret_value())
        cache = open_cache(settings.redis.url.get_secret_value())
        stack.push_async_callback(cache.close)
        workers = open_workers(settings.redis.url.get_secret_value())
        stack.push_async_callback(workers.close)
        sealer = Sealer(settings.auth.jwt_secret.get_secret_value(), "cache")
        caching = TwoLevelCache(SharedLevel(cache, sealer), memory_bytes=settings.cache.memory_mb * MEGABYTE)
        caching.start()
        stack.push_async_callback(caching.close)
        calls = ModelCalls()
        embedder = await open_embedder(stack, settings, store, caching, calls)
        tokens = AccessTokens(settings.auth.jwt_secret.get_secret_value(), minutes=settings.auth.access_minutes)
        authenticator = Authenticator(store, tokens)
        passwords = Passwords()
        searches = SearchService(
            store,
            embedder,
            TermAnalyser(),
            caching if settings.cache.searches else None,
            open_reranker(stack, settings, calls),
        )
        blobs, antivirus = open_blobs(settings.blobs), open_antivirus(settings.scan)
        schema = [item.name for item in migrations.read_all()]
        memories = open_memories(stack, settings, store, embedder)
        sight = open_sight(stack, settings, store, blobs, calls, workdir=spool)
        documents = DocumentService(
            store, blobs, antivirus, spool=spool, max_file_mb=settings.limits.max_file_mb, cache=caching
        )
        versions = VersionService(store, documents, keep=settings.limits.versions)
        api = Api(
            authenticator=authenticator,
            limiter=RateLimiter(cache, Limit(settings.limits.rate_per_minute, 60)),
            idempotency=IdempotencyService(store),
            health=health_of_server(
                stack,
                settings,
                postgres=store.ping,
                migrations=lambda: store.check_schema(schema),
                redis=cache.ping,
                objects=blobs.check,
            ),
            tenants=TenantService(store, passwords, platform_token=settings.auth.platform_token.get_secret_value()),
            sessions=SessionService(
                store,
                passwords,
                tokens,
                RateLimiter(cache, FAILURES),
                authenticator,
                refresh_days=settings.auth.refresh_days,
            ),
            api_keys=ApiKeyService(store, authenticator),
            members=MemberService(store, passwords, authenticator),
            documents=documents,
            versions=versions,
            uploads=UploadService(store, blobs, documents, versions, spool=spool, limits=settings.limits),
            batches=BatchService(store, blobs, documents, spool=spool, limits=settings.limits),
            collections=CollectionService(store),
            tasks=TaskService(store),
            forecasts=ForecastService(store, workers),
            searches=searches,
            caching=caching,
            conversations=ConversationService(store),
            chat=open_chat(stack, settings, store, searches, embedder, memories, calls, sight),
            memories=memories,
            usage=UsageService(store),
            events=open_events(stack, settings, store, authenticator),
            installation=InstallationService(store),
            model_calls=calls,
            registry=telemetry.registry(),
            max_file_bytes=settings.limits.max_file_mb * MEGABYTE,
            log_json=settings.log.format == "json",
            version=version(),
            cors_origins=settings.server.cors_origins,
        )
        yield Services(settings=settings, store=store, embedder=embedder, api=api)


def serve(settings: Settings, *, descriptors: Sequence[int] = ()) -> None:
    """Serves the API until SIGTERM or SIGINT, then finishes what is at work, for at most 20 s.

    `descriptors` are listening sockets that were opened for this process; else `SERVER__HOST` and `SERVER__PORT` say
    where.
    """
    _configure(settings, "server")
    _run(_serve(settings, [inherited(descriptor) for descriptor in descriptors]))


def work(settings: Settings, queues: Sequence[str]) -> None:
    """Runs tasks of the named queues until SIGTERM or SIGINT."""
    try:
        chosen = tuple(Queue(name) for name in queues)
    except ValueError:
        raise SettingsError(f"--queues: known are {', '.join(Queue)}") from None
    _configure(settings, "worker")
    _run(_work(settings, chosen))


def relay(settings: Settings) -> None:
    """Dispatches tasks and publishes events until SIGTERM or SIGINT."""
    _configure(settings, "relay")
    _run(_relay(settings))


def migrate(settings: Settings) -> None:
    """Applies what the schema lacks, and makes the tables of the embedding space that the settings ask for."""
    _configure(settings, "migrate")
    if not settings.db.owner_dsn and not settings.db.dsn:
        raise missing("DB__OWNER_DSN")
    _run(_migrate(*login(settings, "DB__OWNER_DSN"), space_of(settings), settings.tasks.max_retries))


def trials(settings: Settings) -> TrialService:
    """The operator's orders about versions of the processing. Raises SettingsError without the owner's login."""
    _name, dsn = login(settings, "DB__OWNER_DSN")
    return TrialService(lambda: processings(dsn), max_retries=settings.tasks.max_retries)


def openapi() -> dict[str, Any]:
    """The API's description, for clients that are generated from it; needs no setting and no server."""
    return openapi_document(version())


async def _migrate(name: str, dsn: str, space: Space, max_retries: int) -> None:
    await reach_database(name, dsn)
    applied = await migrations.migrate(dsn, space, max_retries=max_retries)
    logger.get("migrate").info("schema is up to date", applied=len(applied), space=space.model, dim=space.dim)


async def _serve(settings: Settings, sockets: list[socket]) -> None:
    async with build(settings) as services:
        server = Server(
            create_api(services.api),
            services.api.events,
            services.api.chat,
            host=settings.server.host,
            port=settings.server.port,
        )

        def stop() -> None:
            server.should_exit = True

        _on_stop(stop)
        await server.serve(sockets or None)


async def _work(settings: Settings, queues: tuple[Queue, ...]) -> None:
    require(settings, "REDIS__URL", "BLOBS__URL", "MODELS__URL")
    async with AsyncExitStack() as stack:
        scratch = stack.enter_context(workdir(_scratch(settings), "worker"))
        store = await open_store_of(stack, settings, *login(settings, "DB__WORKER_DSN"))
        queue = TaskQueue(settings.redis.url.get_secret_value())
        stack.push_async_callback(queue.close)
        sandbox = Sandbox(settings.limits)
        stack.push_async_callback(sandbox.close)
        ocr = LocalOcr(settings.models.url)
        stack.push_async_callback(ocr.close)
        embedder = await open_embedder(stack, settings, store)
        blobs = open_blobs(settings.blobs)
        megaphone = Megaphone(settings.redis.url.get_secret_value())
        stack.push_async_callback(megaphone.close)
        sweep = SweepService(store, blobs, orphan_hours=settings.blobs.orphan_hours)
        ingest = IngestService(store, blobs, sandbox, ocr, embedder, megaphone, sweep, workdir=scratch)
        purge = PurgeService(store, blobs)
        antivirus = open_antivirus(settings.scan)
        documents = DocumentService(store, blobs, antivirus, spool=scratch, max_file_mb=settings.limits.max_file_mb)
        expansions = ExpansionService(store, blobs, sandbox, documents, workdir=scratch, limits=settings.limits)
        bulk = BulkService(store)
        memories = open_memories(stack, settings, store, embedder)
        shadow, processing = ShadowService(store, ingest, embedder), ProcessingService(store, embedder.space)
        jobs = product_jobs(
            ingest_content=ingest.ingest_content,
            purge_content=purge.purge_content,
            purge_uploads=purge.purge_uploads,
            sweep_objects=sweep.sweep_objects,
            purge_batches=purge.purge_batches,
            expand_archive=expansions.expand_archive,
            retry_tasks=bulk.retry_tasks,
            delete_documents=bulk.delete_documents,
            shadow_content=shadow.shadow_content,
            switch_processing=processing.switch_processing,
            reread_contents=processing.reread_contents,
            purge_generations=processing.purge_generations,
            digest_conversation=memories.digest_conversation,
        )
        worker = Worker(store, queue, jobs, settings, queues=queues)
        _on_stop(worker.stop)
        await worker.run()


async def _relay(settings: Settings) -> None:
    require(settings, "REDIS__URL")
    name, dsn = login(settings, "DB__RELAY_DSN")
    async with AsyncExitStack() as stack:
        store = await open_store_of(stack, settings, name, dsn)
        queue = TaskQueue(settings.redis.url.get_secret_value())
        stack.push_async_callback(queue.close)
        process = Relay(store, NewsLine(dsn), queue, settings)
        health = health_of_relay(stack, settings, redis=queue.ping)
        watch = Watch(store, queue.workers, health, cap=settings.limits.queue_depth)

        def stop() -> None:
            process.stop()
            watch.stop()

        _on_stop(stop)
        await asyncio.gather(process.run(), watch.run())


def _scratch(settings: Settings) -> Path:
    """Where processes have their temporary folders: on the home's disk, else the machine's own place."""
    return home_of(settings) / SCRATCH if settings.home else Path(tempfile.gettempdir())


def _configure(settings: Settings, process: str) -> None:
    logger.configure(log_format=settings.log.format, level=settings.log.level, process=process)
    if armed := failpoints.armed():
        logger.get("failpoints").warning("failpoints are armed: this process breaks on purpose", places=armed)
    if settings.otel_endpoint:
        logger.get("telemetry").warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT has no effect: this version carries trace ids, but exports no spans"
        )


def _on_stop(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def _run(process: Coroutine[Any, Any, None]) -> None:
    uvloop.run(_watched(process))


async def _watched(process: Coroutine[Any, Any, None]) -> None:
    with watchdog.watching():
        await process
