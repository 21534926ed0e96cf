"""What processes ask of their dependencies, for readiness and for alerts."""

from contextlib import AsyncExitStack

from internal.providers.antivirus import open_antivirus
from internal.providers.local_models import model_client
from internal.services.health import Check, HealthService
from pkg.apperr import AppError, Code
from pkg.config import Settings

PROBE_SECONDS = 10.0


def health_of_server(
    stack: AsyncExitStack, settings: Settings, *, postgres: Check, migrations: Check, redis: Check, objects: Check
) -> HealthService:
    """All that an API server leans on; without its database it can't serve at all."""
    checks = {"postgres": postgres, "migrations": migrations, "redis": redis, "objects": objects}
    checks |= _models(stack, settings) | _scanner(settings)
    return HealthService(
        checks, needed=("postgres", "migrations"), off=() if settings.scan.clamd != "off" else ("clamd",)
    )


def health_of_relay(stack: AsyncExitStack, settings: Settings, *, redis: Check) -> HealthService:
    """What workers and servers lean on, as far as a relay is told where it is."""
    checks = {"redis": redis} | _scanner(settings)
    if settings.models.url:
        checks |= _models(stack, settings)
    return HealthService(checks, needed=())


def _models(stack: AsyncExitStack, settings: Settings) -> dict[str, Check]:
    """The local models, where they embed."""
    if settings.ai.embedding_model:
        return {}
    client = model_client(settings.models.url, timeout=PROBE_SECONDS)
    stack.push_async_callback(client.aclose)

    async def check() -> None:
        if (await client.get("/readyz")).is_error:
            raise AppError(Code.MODEL_UNAVAILABLE, "The embedding model is being loaded.")

    return {"models": check}


def _scanner(settings: Settings) -> dict[str, Check]:
    return {} if settings.scan.clamd == "off" else {"clamd": open_antivirus(settings.scan).check}
