"""Typed settings from the environment and from mounted secret files.

`load()` is the only way in. A wrong or unknown setting raises `SettingsError`, whose message names it and says what
to set. Names are nested with two underscores: `DB__DSN`, `AI__API_KEY`.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pkg import failpoints
from pkg.apperr import SettingsError
from pkg.sections import (
    LOCAL_EMBEDDING_DIM,
    Ai,
    Auth,
    Blobs,
    Cache,
    Db,
    Limits,
    Log,
    Models,
    Redis,
    Scan,
    Server,
    Tasks,
)

MIN_SECRET = 32
SCRATCH = "tmp"
"""Folder of the home for temporary files."""
DEFAULT_SECRETS = frozenset({"change-me", "changeme", "secret", "password", "dreamhub"})


PRODUCTION_NEEDS: Mapping[str, frozenset[str]] = {
    "server": frozenset(
        {"AUTH__PLATFORM_TOKEN", "AUTH__JWT_SECRET", "SCAN__CLAMD", "DB__DSN", "REDIS__URL", "BLOBS__URL"}
    ),
    "worker": frozenset({"SCAN__CLAMD", "DB__DSN", "REDIS__URL", "BLOBS__URL"}),
    "relay": frozenset({"DB__DSN", "REDIS__URL"}),
    "models": frozenset(),
    "migrate": frozenset({"DB__OWNER_DSN"}),
}
"""What each process can't do without in production. It is given no more than that, so no more is asked of it."""

SECTIONS = ("server", "auth", "db", "redis", "blobs", "ai", "models", "scan", "limits", "cache", "tasks", "log")
OWN_NAMES = frozenset({"DREAMHUB_ENV", "DREAMHUB_SECRETS_DIR", "DREAMHUB_HOME", "DREAMHUB_FAILPOINTS"})
CLIENT_NAMES = frozenset({"DREAMHUB_URL", "DREAMHUB_API_KEY"})


class Settings(BaseSettings):
    """Everything that can be set. Built by `load()`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_nested_delimiter="__", case_sensitive=False, env_ignore_empty=True
    )

    env: Literal["development", "production"] = Field(default="development", validation_alias="DREAMHUB_ENV")
    home: str = Field(default="", validation_alias="DREAMHUB_HOME")
    otel_endpoint: str = Field(default="", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    server: Server = Server()
    auth: Auth = Auth()
    db: Db = Db()
    redis: Redis = Redis()
    blobs: Blobs = Blobs()
    ai: Ai = Ai()
    models: Models = Models()
    scan: Scan = Scan()
    limits: Limits = Limits()
    cache: Cache = Cache()
    tasks: Tasks = Tasks()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over mounted files (`<dir>/db__dsn` or `<dir>/db/dsn`)."""
        folder = os.environ.get("DREAMHUB_SECRETS_DIR")
        if not folder:
            return (init_settings, env_settings)
        secrets = NestedSecretsSettingsSource(
            file_secret_settings,
            secrets_dir=folder,
            secrets_dir_missing="error",
            secrets_nested_delimiter="__",
        )
        return (init_settings, env_settings, secrets)


def load(*, process: str = "server", **overrides: Any) -> Settings:
    """Reads and checks the settings for one of PRODUCTION_NEEDS' processes.

    `overrides` are sections or fields set by the caller (flags, tests).
    """
    _refuse_unknown(os.environ)
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    except ValueError as error:
        raise SettingsError(f"DREAMHUB_SECRETS_DIR: {error}; set a folder of files named as db__dsn is") from None
    _refuse_contradictory(settings)
    failpoints.check()
    if settings.env == "production":
        _refuse_unsafe(settings, PRODUCTION_NEEDS[process])
    return settings


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """Catches a misspelt section (`LIMIT__MAX_FILE_MB`), one alone (`DB`), and a misspelt `DREAMHUB_…` name; the models
    catch the rest."""
    for name in environ:
        upper = name.upper()
        if upper.startswith("DREAMHUB_") and upper not in OWN_NAMES | CLIENT_NAMES:
            guess = difflib.get_close_matches(upper, OWN_NAMES | CLIENT_NAMES, 1)
            raise SettingsError(
                f"{name} is not a setting of DreamHub" + (f"; did you mean {guess[0]}?" if guess else "")
            )
        section, found, _rest = upper.partition("__")
        if name.lower() in SECTIONS:
            raise SettingsError(f"{name} is not a setting of DreamHub, whose own begin with {upper}__; unset it")
        if not found or section.lower() in SECTIONS or not section:
            continue
        guess = difflib.get_close_matches(section.lower(), SECTIONS, 1, cutoff=0.75)
        if guess:
            raise SettingsError(f"{name} is not a setting of DreamHub; did you mean {guess[0].upper()}__{_rest}?")


def _explain(error: ValidationError) -> str:
    """One line a problem, naming the environment variable and never its value."""
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        parts = [str(part) for part in item["loc"]]
        name = parts[0] if parts[0].isupper() else "__".join(parts).upper()
        if item["type"] == "extra_forbidden":
            known = _fields_of(parts[:-1])
            guess = difflib.get_close_matches(parts[-1].lower(), known, 1)
            prefix = "__".join(parts[:-1]).upper()
            hint = f"; did you mean {prefix}__{guess[0].upper()}?" if guess else f"; known there: {', '.join(known)}"
            lines.append(f"{name} is not a setting of DreamHub{hint}")
        else:
            lines.append(f"{name}: {item['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _fields_of(path: list[str]) -> list[str]:
    model: Any = Settings
    for part in path:
        field = model.model_fields.get(part)
        if field is None:
            return []
        model = field.annotation
    return sorted(getattr(model, "model_fields", {}))


def weak_secret(value: str) -> bool:
    """True for a secret that is missing, short, or printed in some example."""
    return len(value) < MIN_SECRET or value.lower() in DEFAULT_SECRETS or value.lower().startswith("change")


def _refuse_contradictory(settings: "Settings") -> None:
    """A model needs an endpoint, the built-in model's vectors have one size, the largest file must find room, and a
    pool no more connections than it may have."""
    ai, limits, db = settings.ai, settings.limits, settings.db
    lines = [
        f"AI__{field.upper()} names a model, but AI__BASE_URL is not set; set it to the endpoint that serves the model"
        for field in ("chat_model", "embedding_model", "vision_model", "transcription_model")
        if getattr(ai, field) and not ai.base_url
    ]
    if not ai.embedding_model and ai.embedding_dim != LOCAL_EMBEDDING_DIM:
        lines.append(
            f"AI__EMBEDDING_DIM is {ai.embedding_dim}, but the built-in model has {LOCAL_EMBEDDING_DIM} dimensions;"
            " unset it, or set AI__EMBEDDING_MODEL too"
        )
    if ai.summarizer == "model" and not ai.chat_model:
        lines.append("AI__SUMMARIZER is model, but AI__CHAT_MODEL is not set; set it, or let the rules do it")
    if limits.uploads_mb < limits.max_file_mb:
        lines.append(
            f"LIMITS__UPLOADS_MB is {limits.uploads_mb}, but one file may have {limits.max_file_mb}"
            " (LIMITS__MAX_FILE_MB); raise the first or lower the second"
        )
    if limits.batch_mb < limits.max_file_mb:
        lines.append(
            f"LIMITS__BATCH_MB is {limits.batch_mb}, but one file may have {limits.max_file_mb}"
            " (LIMITS__MAX_FILE_MB); raise the first or lower the second"
        )
    if db.pool_min > db.pool_max:
        lines.append(
            f"DB__POOL_MIN is {db.pool_min}, but DB__POOL_MAX is {db.pool_max}; lower the first or raise the second"
        )
    if bool(ai.rerank_url) != bool(ai.rerank_model):
        lines.append("AI__RERANK_URL and AI__RERANK_MODEL: set both, or neither")
    if lines:
        raise SettingsError("\n".join(lines))


def _refuse_unsafe(settings: Settings, needed: frozenset[str]) -> None:
    """Production safety: no default secrets, a scanner, servers of one's own, and no failpoints."""
    wrong: dict[str, str] = {}
    for name, secret in (
        ("AUTH__PLATFORM_TOKEN", settings.auth.platform_token),
        ("AUTH__JWT_SECRET", settings.auth.jwt_secret),
    ):
        if weak_secret(secret.get_secret_value()):
            wrong[name] = f"set a random value of at least {MIN_SECRET} characters (openssl rand -base64 48)"
    if settings.scan.clamd == "off":
        wrong["SCAN__CLAMD"] = "set unix:/path or tcp://host:port of a clamd; off is refused in production"
    for name, value in (
        ("DB__DSN", settings.db.dsn.get_secret_value()),
        ("DB__OWNER_DSN", settings.db.owner_dsn.get_secret_value()),
        ("REDIS__URL", settings.redis.url.get_secret_value()),
        ("BLOBS__URL", settings.blobs.url),
    ):
        if not value:
            wrong[name] = "set your own server; the embedded one is refused in production"
    lines = [f"{name}: {what}" for name, what in wrong.items() if name in needed]
    if os.environ.get("DREAMHUB_FAILPOINTS"):
        lines.append("DREAMHUB_FAILPOINTS: unset it; failpoints kill processes and are for tests only")
    if lines:
        raise SettingsError("DREAMHUB_ENV=production refuses these settings:\n" + "\n".join(lines))


def home_of(settings: Settings) -> Path:
    """The folder for embedded servers, their data and generated secrets."""
    return Path(settings.home or ".dreamhub").resolve()
