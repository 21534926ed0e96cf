"""The parts that several processes have in common, opened as the settings say, closed by the stack they are given."""

from contextlib import AsyncExitStack
from pathlib import Path

from internal.entities.search import Space
from internal.entities.tasks import TaskPolicy
from internal.parsers.sandbox import Sandbox
from internal.providers.blobs import BlobStore
from internal.providers.embeddings import LocalEmbeddings, OpenAIEmbeddings
from internal.providers.llm import OpenAIChat
from internal.providers.model_calls import ModelCalls
from internal.providers.rerank import RerankEndpoint
from internal.providers.turns import Lane
from internal.repositories import probe
from internal.repositories.broadcasts import Listener
from internal.repositories.store import Store, open_store
from internal.services.authentication import Authenticator
from internal.services.caching import TwoLevelCache
from internal.services.chat import ChatService
from internal.services.chunking_sentences import sentences
from internal.services.embedder import Embedder
from internal.services.events import EventService, ReaderLimits
from internal.services.extractive import ExtractiveModel
from internal.services.memory import MemoryService
from internal.services.pictures import Pictures
from internal.services.quotes import Quoter
from internal.services.rewriting import ModelRewriter, RuleRewriter
from internal.services.search import SearchService
from internal.services.sight import Sight
from internal.services.summaries import RuleSummarizer
from internal.services.summaries_model import ModelSummarizer
from internal.services.terms import TermAnalyser
from pkg.apperr import AppError, SettingsError
from pkg.config import Settings
from pkg.required import require
from pkg.sections import LOCAL_EMBEDDING_DIM

LOCAL_MODEL, LOCAL_VERSION = "multilingual-e5-small", "2"
"""Raise it when the built-in model's vectors change: everything is embedded anew."""
REMOTE_VERSION = "1"
PROBE_SECONDS = 10.0


def space_of(settings: Settings) -> Space:
    """The embedding space that the settings ask for."""
    half = settings.ai.embedding_storage == "halfvec"
    if settings.ai.embedding_model:
        return Space(settings.ai.embedding_model, REMOTE_VERSION, settings.ai.embedding_dim, half=half)
    return Space(LOCAL_MODEL, LOCAL_VERSION, LOCAL_EMBEDDING_DIM, half=half)


async def open_store_of(stack: AsyncExitStack, settings: Settings, name: str, dsn: str) -> Store:
    """A store that logs in as the setting `name` says. Raises what `reach_database` raises."""
    await reach_database(name, dsn)
    store = await open_store(
        dsn,
        pool_min=settings.db.pool_min,
        pool_max=settings.db.pool_max,
        connect_seconds=settings.db.timeout_seconds,
        tasks=TaskPolicy(max_retries=settings.tasks.max_retries, queue_depth=settings.limits.queue_depth),
    )
    stack.push_async_callback(store.close)
    return store


async def reach_database(name: str, dsn: str) -> None:
    """Says in one line what is wrong, and with which setting, where a pool would time out."""
    try:
        await probe.postgres(dsn, PROBE_SECONDS)
    except AppError as error:
        raise AppError(error.code, f"{name}: {error.detail}") from None


async def open_embedder(
    stack: AsyncExitStack,
    settings: Settings,
    store: Store,
    cache: TwoLevelCache | None = None,
    calls: ModelCalls | None = None,
) -> Embedder:
    """The embedding model of the settings, counted among `calls`.

    Raises SettingsError where the database has no tables for it.
    """
    wanted = space_of(settings)
    space = await store.find_space(wanted)
    if space is None:
        raise SettingsError(
            f"the database has no tables for {wanted.model} with {wanted.dim} dimensions: run `dreamhub migrate`"
        )
    if settings.ai.embedding_model:
        provider = OpenAIEmbeddings(settings.ai, space)
    else:
        require(settings, "MODELS__URL")
        provider = LocalEmbeddings(settings.models.url, space)
    stack.push_async_callback(provider.close)
    if calls is not None:
        calls.add(provider.retries)
    return Embedder(provider, cache)


def open_reranker(stack: AsyncExitStack, settings: Settings, calls: ModelCalls) -> RerankEndpoint | None:
    """None where no endpoint is set."""
    if not settings.ai.rerank_url:
        return None
    reranker = RerankEndpoint(settings.ai)
    stack.push_async_callback(reranker.close)
    calls.add(reranker.retries)
    return reranker


def open_chat(
    stack: AsyncExitStack,
    settings: Settings,
    store: Store,
    searches: SearchService,
    embedder: Embedder,
    memories: MemoryService,
    calls: ModelCalls,
    sight: Sight | None,
) -> ChatService:
    """Chat with the model that the settings name, or with the one that only quotes; pictures are seen by `sight`."""
    named = _open_model(stack, settings, "interactive")
    if named is not None:
        calls.add(named.retries)
    model = named or ExtractiveModel(embedder, sentences, searches)
    rewriter = ModelRewriter(named, settings.ai.rewrite) if named and settings.ai.rewrite != "off" else RuleRewriter()
    chat = ChatService(
        store,
        searches,
        model,
        Quoter(embedder, sentences, calibrated=not settings.ai.embedding_model),
        memories,
        rewriter,
        Pictures(store, sight),
    )
    stack.push_async_callback(chat.close)
    return chat


def open_sight(
    stack: AsyncExitStack, settings: Settings, store: Store, blobs: BlobStore, calls: ModelCalls, *, workdir: Path
) -> Sight | None:
    """None where no vision model is named."""
    if not settings.ai.vision_model:
        return None
    model = OpenAIChat(settings.ai.model_copy(update={"chat_model": settings.ai.vision_model}), kind="vision")
    stack.push_async_callback(model.close)
    calls.add(model.retries)
    sandbox = Sandbox(settings.limits)
    stack.push_async_callback(sandbox.close)
    return Sight(store, blobs, sandbox, model, workdir=workdir)


def open_memories(stack: AsyncExitStack, settings: Settings, store: Store, embedder: Embedder) -> MemoryService:
    """The memory with the strategy that the settings name."""
    model = _open_model(stack, settings, "ingest") if settings.ai.summarizer == "model" else None
    summarizer = ModelSummarizer(model) if model else RuleSummarizer()
    return MemoryService(store, embedder, TermAnalyser(), summarizer)


def _open_model(stack: AsyncExitStack, settings: Settings, lane: Lane) -> OpenAIChat | None:
    if not (settings.ai.base_url and settings.ai.chat_model):
        return None
    model = OpenAIChat(settings.ai, lane=lane)
    stack.push_async_callback(model.close)
    return model


def open_events(stack: AsyncExitStack, settings: Settings, store: Store, authenticator: Authenticator) -> EventService:
    """The events of a server, followed already."""
    limits = ReaderLimits(per_subject=settings.limits.streams_per_key, per_tenant=settings.limits.streams_per_tenant)
    events = EventService(store, Listener(settings.redis.url.get_secret_value()), authenticator, limits)
    events.start()
    stack.push_async_callback(events.close)
    return events
