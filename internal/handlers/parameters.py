"""Query parameters that a path doesn't have: refused, since a misspelt filter would answer everything."""

from functools import lru_cache
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter

from pkg.apperr import AppError, Code

API = "/api/"
"""Probes and pages elsewhere take anything: monitors add parameters to get around caches."""
LONGEST_NAME = 100


def refuse_unknown_parameters(connection: "ASGIConnection[Any, Any, Any, Any]", handler: BaseRouteHandler) -> None:
    """The guard behind the admission. Raises REQUEST_INVALID naming what the handler doesn't declare."""
    scope = connection.scope
    if not scope["query_string"] or scope.get("method") == "OPTIONS" or not scope["path"].startswith(API):
        return
    known = _declared(handler)
    unknown = [name[:LONGEST_NAME] for name in connection.query_params if name not in known]
    if unknown:
        there_are = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise AppError(
            Code.REQUEST_INVALID,
            f"{', '.join(unknown)}: this path has no such query parameter; {there_are}.",
            errors=[{"field": name, "message": "unknown query parameter"} for name in unknown],
        )


@lru_cache(256)
def _declared(handler: BaseRouteHandler) -> frozenset[str]:
    """What the handler reads from the query, by the names that callers use."""
    parameters = handler.parsed_fn_signature.parameters
    return frozenset(
        field.kwarg_definition.name or name
        for name, field in parameters.items()
        if isinstance(field.kwarg_definition, QueryParameter)
    )
