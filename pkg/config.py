"""Typed settings from the environment and from mounted secret files.

`load()` is the only way in. A wrong or unknown setting raises `SettingsError`, whose message names it and says what
to set. Names are nested with two underscores: `DB__DSN`, `AI__API_KEY`.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pkg import failpoints
from pkg.addresses import BlobsAddress, ModelsAddress, RedisAddress, ScannerAddress, WebAddress
from pkg.apperr import SettingsError

MIN_SECRET = 32
SCRATCH = "tmp"
"""Folder of the home for temporary files."""
LOCAL_EMBEDDING_DIM = 384
DEFAULT_SECRETS = frozenset({"change-me", "changeme", "secret", "password", "dreamhub"})


class Section(BaseModel):
    """A frozen group of settings that refuses names it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _json_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('want a JSON list, such as ["https://app.example.com"]') from None


class Server(Section):
    """Where the API listens."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_json_list)] = ()


class Auth(Section):
    """Secrets and lifetimes of credentials. Both secrets are random strings of at least 32 characters."""

    platform_token: SecretStr = SecretStr("")
    jwt_secret: SecretStr = SecretStr("")
    access_minutes: int = Field(default=15, ge=1, le=1440)
    refresh_days: int = Field(default=30, ge=1, le=365)


class Db(Section):
    """PostgreSQL with pgvector. `dsn` logs in as the role of the process that reads it; the others serve `up`,
    `migrate` and the worker and relay where one environment holds them all."""

    dsn: SecretStr = SecretStr("")
    worker_dsn: SecretStr = SecretStr("")
    relay_dsn: SecretStr = SecretStr("")
    owner_dsn: SecretStr = SecretStr("")
    bootstrap_dsn: SecretStr = SecretStr("")
    pool_min: int = Field(default=1, ge=0, le=100)
    pool_max: int = Field(default=10, ge=1, le=200)
    timeout_seconds: float = Field(default=10.0, gt=0)


class Redis(Section):
    """Redis 7 or Valkey: wakes, caches and broadcasts; may be wiped at any moment."""

    url: RedisAddress = SecretStr("")


class Blobs(Section):
    """Where uploaded bytes are kept: `file:///dir` or `s3://bucket?endpoint=…&region=…`."""

    url: BlobsAddress = ""
    access_key: SecretStr = SecretStr("")
    secret_key: SecretStr = SecretStr("")
    orphan_hours: int = Field(
        default=24, ge=0, le=8760, description="an object that no row holds is removed after so long; 0: never"
    )


def _several(keys: SecretStr) -> tuple[str, ...]:
    return tuple(key.strip() for key in keys.get_secret_value().split(",") if key.strip())


class Ai(Section):
    """An OpenAI-compatible endpoint. Each model that isn't named is the built-in local one."""

    base_url: WebAddress = ""
    api_key: SecretStr = SecretStr("")
    chat_model: str = ""
    embedding_model: str = ""
    embedding_dim: int = Field(default=LOCAL_EMBEDDING_DIM, ge=8, le=16000)
    vision_model: str = ""
    transcription_model: str = ""
    timeout_seconds: float = Field(default=60.0, gt=0)
    rerank_url: WebAddress = Field(default="", description="the address that passages are posted to for their order")
    rerank_model: str = ""
    rerank_api_key: SecretStr = Field(default=SecretStr(""), description="where it isn't `api_key`")

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The keys, several of them separated by commas."""
        return _several(self.api_key)

    @property
    def rerank_keys(self) -> tuple[str, ...]:
        """Those of the reranking endpoint."""
        return _several(self.rerank_api_key) or self.api_keys


class Models(Section):
    """The local model process. `url` is `http://host:port` or `unix:/path`; empty means the embedded one."""

    url: ModelsAddress = ""
    threads: int = Field(default=0, ge=0, le=64, description="0: one for each core")
    preload: bool = Field(default=True, description="load the embedding model at the start")
    idle_seconds: float = Field(default=3600.0, gt=0)
    cache_dir: str = ""


class Scan(Section):
    """clamd: `unix:/path`, `tcp://host:port`, or `off` (refused in production).

    Where `clamd` isn't set, `up` starts one of its own, with the signatures of that folder.
    """

    clamd: ScannerAddress = "off"
    signatures: str = "/var/lib/clamav"
    timeout_seconds: float = Field(default=30.0, gt=0)


class Limits(Section):
    """Bounds. Megabytes are of 1,048,576 bytes."""

    max_file_mb: int = Field(default=100, ge=1, le=4096)
    versions: int = Field(default=10, ge=1, le=1000, description="of a document that are kept")
    uploads: int = Field(default=100, ge=1, description="unfinished resumable uploads of a tenant")
    uploads_mb: int = Field(default=20_480, ge=1, description="what these announce together")
    batch_files: int = Field(default=200, ge=1, le=10_000, description="files of one request")
    batch_mb: int = Field(default=1024, ge=1, description="these together, and what an archive unpacks to")
    archive_entries: int = Field(default=10_000, ge=1, le=20_000, description="entries of an archive")
    batches: int = Field(default=100, ge=1, description="unfinished batches of a tenant")
    queue_depth: int = Field(default=10_000, ge=1)
    rate_per_minute: int = Field(default=600, ge=1)
    streams_per_key: int = Field(default=50, ge=1)
    streams_per_tenant: int = Field(default=500, ge=1)
    parse_seconds: float = Field(default=30.0, gt=0)
    parse_memory_mb: int = Field(default=512, ge=128)
    parse_output_mb: int = Field(default=64, ge=1)
    image_megapixels: int = Field(default=60, ge=1)


class Cache(Section):
    """What servers remember."""

    searches: bool = Field(default=True, description="answers of searches, in memory and sealed in Redis")
    memory_mb: int = Field(default=32, ge=1, description="of a server's memory")


class Tasks(Section):
    """The task ledger. Seconds."""

    lease_seconds: float = Field(default=15.0, gt=0)
    max_retries: int = Field(default=5, ge=0, le=100)
    backoff_seconds: float = Field(default=2.0, gt=0)
    dead_days: int = Field(default=90, ge=1, le=3650, description="after so long a dead letter is given up")
    inflight_per_tenant: int = Field(default=4, ge=1)
    window: int = Field(default=64, ge=1, description="tasks that may lie in Redis at a time, a queue")
    concurrency: int = Field(
        default=2,
        ge=1,
        description="tasks that one worker runs at a time, besides one of a tenant that has nothing running",
    )


class Log(Section):
    """`console` for people, `json` for machines."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


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
