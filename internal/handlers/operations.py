"""/healthz, /readyz, /metrics, /openapi.json and /docs"""

from collections.abc import Callable
from typing import Any

import msgspec
from litestar import HttpMethod, MediaType, Response, route
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from internal.handlers.auth import Open, access
from internal.handlers.docs import PAGE_POLICY, page
from internal.handlers.problems import DEFAULT_RETRY_SECONDS
from internal.services.health import HealthService, Readiness
from internal.services.installation import InstallationService

PROBED = (HttpMethod.GET, HttpMethod.HEAD)
"""Monitors, load balancers and browsers ask by HEAD too."""


class Liveness(msgspec.Struct, frozen=True):
    """That anything is answered at all."""

    status: str = "alive"


class Description:
    """The OpenAPI document and its page, made when first asked for: making them takes a moment."""

    def __init__(self, describe: Callable[[], dict[str, Any]]) -> None:
        self._describe = describe
        self._document: dict[str, Any] | None = None

    @property
    def document(self) -> dict[str, Any]:
        """The document."""
        if self._document is None:
            self._document = self._describe()
        return self._document


@route("/healthz", http_method=PROBED, opt=access(Open.ANYONE))
async def healthz() -> Liveness:
    """200 as long as this process answers."""
    return Liveness()


@route("/readyz", http_method=PROBED, opt=access(Open.ANYONE))
async def readyz(health: NamedDependency[HealthService]) -> Response[Readiness]:
    """200 as long as this server can serve: `ready`, or `degraded` where a part of it can't. Else 503, `unready`.

    `checks` names each dependency: `up`, `down`, or `off` where none is set.
    """
    found = await health.ready()
    if found.status == "unready":
        return Response(found, status_code=503, headers={"Retry-After": f"{DEFAULT_RETRY_SECONDS:.0f}"})
    return Response(found)


@route("/metrics", http_method=PROBED, opt=access(Open.ANYONE), media_type=CONTENT_TYPE_LATEST)
async def metrics(
    registry: NamedDependency[CollectorRegistry], installation: NamedDependency[InstallationService]
) -> Response[bytes]:
    """Prometheus text of this process, and of the installation as relays last saw it; nothing of any tenant."""
    await installation.refresh()
    # As a header: to a `media_type` of text Litestar adds a second charset, which Prometheus refuses.
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


@route("/openapi.json", http_method=PROBED, opt=access(Open.ANYONE), include_in_schema=False)
async def openapi(description: NamedDependency[Description]) -> Response[dict[str, Any]]:
    """This API, described for machines."""
    return Response(description.document, media_type=MediaType.JSON)


@route("/docs", http_method=PROBED, opt=access(Open.ANYONE), include_in_schema=False, media_type=MediaType.HTML)
async def docs(description: NamedDependency[Description]) -> Response[str]:
    """This API, described for people."""
    return Response(
        page(description.document), media_type=MediaType.HTML, headers={"Content-Security-Policy": PAGE_POLICY}
    )
