"""Every path on one page, and the application that serves them."""

from typing import Any

import msgspec
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsPlugin
from litestar.types import ASGIApp, ControllerRouterHandler
from prometheus_client import CollectorRegistry, Gauge

from internal.handlers import (
    batches,
    cache,
    collections,
    conversations,
    dead_letters,
    documents,
    events,
    exports,
    identity,
    memory,
    messages,
    operations,
    search,
    tasks,
    tus,
    usage,
    versions,
)
from internal.handlers.allowed import Allowed, methods_of
from internal.handlers.auth import Admission, provide_context
from internal.handlers.installation import InstallationMetrics
from internal.handlers.lingering import LingeringClose
from internal.handlers.model_metrics import ModelMetrics
from internal.handlers.observation import Observation, RequestLines, RequestMetrics
from internal.handlers.operations import Description
from internal.handlers.parameters import refuse_unknown_parameters
from internal.handlers.problems import to_problem
from internal.handlers.replays import Replays
from internal.handlers.requests import JSON_LIMIT, StrictRequest
from internal.handlers.schema import describe
from internal.handlers.sockets import refusing
from internal.providers.model_calls import ModelCalls
from internal.services.api_keys import ApiKeyService
from internal.services.authentication import Authenticator
from internal.services.batches import BatchService
from internal.services.caching import TwoLevelCache
from internal.services.chat import ChatService
from internal.services.collections import CollectionService
from internal.services.conversations import ConversationService
from internal.services.documents import DocumentService
from internal.services.events import EventService
from internal.services.forecasts import ForecastService
from internal.services.health import HealthService
from internal.services.idempotency import IdempotencyService
from internal.services.installation import InstallationService
from internal.services.members import MemberService
from internal.services.memory import MemoryService
from internal.services.rate_limits import RateLimiter
from internal.services.search import SearchService
from internal.services.sessions import SessionService
from internal.services.tasks import TaskService
from internal.services.tenants import TenantService
from internal.services.uploads import UploadService
from internal.services.usage import UsageService
from internal.services.versions import VersionService

ROUTES: tuple[ControllerRouterHandler, ...] = (
    # /healthz /readyz /metrics /openapi.json /docs
    operations.healthz,
    operations.readyz,
    operations.metrics,
    operations.openapi,
    operations.docs,
    # /api/v1/tenants /auth/… /me
    identity.add_tenant,
    identity.update_tenant,
    identity.sign_in,
    identity.refresh,
    identity.sign_out,
    identity.get_me,
    # /api/v1/api-keys /members
    identity.list_api_keys,
    identity.add_api_key,
    identity.revoke_api_key,
    identity.list_members,
    identity.add_member,
    identity.update_member,
    identity.remove_member,
    # /api/v1/documents
    documents.upload_document,
    documents.list_documents,
    documents.get_document,
    documents.get_document_content,
    documents.list_document_chunks,
    documents.update_document,
    documents.delete_document,
    versions.replace_document_content,
    versions.list_document_versions,
    versions.get_document_version_content,
    versions.restore_document_version,
    # /api/v1/uploads
    tus.describe_uploads,
    tus.begin_upload,
    tus.get_upload,
    tus.append_to_upload,
    tus.remove_upload,
    # /api/v1/batches
    batches.add_batch,
    batches.list_batches,
    batches.get_batch,
    batches.list_batch_items,
    batches.cancel_batch,
    batches.retry_batch,
    # /api/v1/collections
    collections.list_collections,
    collections.add_collection,
    collections.rename_collection,
    collections.remove_collection,
    # /api/v1/tasks
    tasks.list_tasks,
    tasks.get_task,
    tasks.retry_task,
    tasks.cancel_task,
    tasks.retry_tasks,
    tasks.cancel_tasks,
    # /api/v1/dead-letters
    dead_letters.list_dead_letters,
    dead_letters.get_dead_letter,
    dead_letters.redrive_dead_letter,
    dead_letters.redrive_dead_letters,
    dead_letters.discard_dead_letter,
    dead_letters.discard_dead_letters,
    # /api/v1/search
    search.search,
    # /api/v1/conversations
    conversations.add_conversation,
    conversations.list_conversations,
    conversations.get_conversation,
    conversations.update_conversation,
    conversations.remove_conversation,
    conversations.branch_conversation,
    exports.export_conversation,
    messages.list_messages,
    messages.add_message,
    messages.edit_message,
    messages.regenerate_message,
    messages.add_feedback,
    memory.get_memory,
    memory.update_memory,
    memory.remove_memory,
    # /api/v1/memory
    memory.get_memory_settings,
    memory.set_memory_settings,
    # /api/v1/usage
    usage.get_usage,
    # /api/v1/cache
    cache.get_cache_stats,
    # /api/v1/events
    events.follow_events,
    events.stream_events,
)


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """What the handlers call. `max_file_bytes` bounds an upload; `log_json` chooses the form of request lines."""

    authenticator: Authenticator
    limiter: RateLimiter
    idempotency: IdempotencyService
    health: HealthService
    tenants: TenantService
    sessions: SessionService
    api_keys: ApiKeyService
    members: MemberService
    documents: DocumentService
    versions: VersionService
    uploads: UploadService
    batches: BatchService
    collections: CollectionService
    tasks: TaskService
    forecasts: ForecastService
    searches: SearchService
    conversations: ConversationService
    chat: ChatService
    memories: MemoryService
    usage: UsageService
    caching: TwoLevelCache
    events: EventService
    installation: InstallationService
    model_calls: ModelCalls
    registry: CollectorRegistry
    max_file_bytes: int
    log_json: bool
    version: str
    cors_origins: tuple[str, ...] = ()


PROVIDED = (
    "health",
    "tenants",
    "sessions",
    "api_keys",
    "members",
    "documents",
    "versions",
    "uploads",
    "batches",
    "collections",
    "tasks",
    "forecasts",
    "searches",
    "conversations",
    "chat",
    "memories",
    "usage",
    "caching",
    "events",
    "installation",
    "registry",
    "max_file_bytes",
)


def create_api(api: Api) -> ASGIApp:
    """The ASGI application: observed on the outside, admitted by one guard, with every error a problem."""
    replays = Replays(api.idempotency)
    app = Litestar(
        ROUTES,
        guards=[refusing(Admission(api.authenticator, api.limiter)), refusing(refuse_unknown_parameters)],
        before_request=replays.before,
        dependencies=_dependencies(api, Description(lambda: openapi_document(api.version))),
        plugins=[ProblemDetailsPlugin(ProblemDetailsConfig(exception_to_problem_detail_map={Exception: to_problem}))],
        cors_config=CORSConfig(allow_origins=list(api.cors_origins), expose_headers=list(tus.EXPOSED))
        if api.cors_origins
        else None,
        openapi_config=None,
        logging_config=None,
        request_class=StrictRequest,
        request_max_body_size=JSON_LIMIT,
        debug=False,
    )
    Gauge("event_readers", "Connections that follow events", registry=api.registry).set_function(
        lambda: api.events.readers
    )
    api.registry.register(cache.CacheMetrics(api.caching))
    api.registry.register(ModelMetrics(api.model_calls))
    api.registry.register(InstallationMetrics(lambda: api.installation.latest))
    return Observation(
        tus.TusHeaders(LingeringClose(replays.around(Allowed(app, methods_of(app))))),
        metrics=RequestMetrics(api.registry),
        lines=RequestLines(as_json=api.log_json),
    )


def openapi_document(version: str) -> dict[str, Any]:
    """The OpenAPI document of these routes; no service is called for it."""
    names = (*PROVIDED, "description", "ctx")
    return describe(ROUTES, version=version, dependencies={name: _constant(None) for name in names})


def _dependencies(api: Api, description: Description) -> dict[str, Provide]:
    given = {name: _constant(getattr(api, name)) for name in PROVIDED}
    return {**given, "description": _constant(description), "ctx": Provide(provide_context, sync_to_thread=False)}


def _constant(value: object) -> Provide:
    def provide() -> Any:
        return value

    return Provide(provide, sync_to_thread=False)
