"""OPTIONS: the answer names every method of a path."""

from collections.abc import Mapping

from litestar import Litestar
from litestar.datastructures import MutableScopeHeaders
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, Message, Receive, Scope, Send


class Allowed:
    """ASGI: mends `Allow`. Litestar's own handler for OPTIONS knows only the first method that a path was given."""

    def __init__(self, app: ASGIApp, methods: Mapping[str, str]) -> None:
        self._app = app
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Other methods pass."""
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            await self._app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 204:
                methods = self._methods.get(scope.get("path_template", ""))
                if methods is not None:
                    MutableScopeHeaders.from_message(message)["Allow"] = methods
            await send(message)

        await self._app(scope, receive, sent)


def methods_of(app: Litestar) -> dict[str, str]:
    """Each path's methods, as they stand in `Allow`."""
    return {route.path_format: ", ".join(sorted(route.methods)) for route in app.routes if isinstance(route, HTTPRoute)}
