"""The groups of settings: what each is called, means, defaults to and may be."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from pkg.addresses import BlobsAddress, ModelsAddress, RedisAddress, ScannerAddress, WebAddress

LOCAL_EMBEDDING_DIM = 384


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
    embedding_storage: Literal["vector", "halfvec"] = Field(
        default="vector", description="single or half precision; beyond 2,000 dimensions always half"
    )
    embedding_batch: int = Field(default=128, ge=1, le=2048, description="texts of one request")
    embedding_batch_tokens: int = Field(default=32_000, ge=100, le=1_000_000, description="these together")
    vision_model: str = ""
    transcription_model: str = ""
    timeout_seconds: float = Field(default=60.0, gt=0)
    rerank_url: WebAddress = Field(default="", description="the address that passages are posted to for their order")
    rerank_model: str = ""
    rerank_api_key: SecretStr = Field(default=SecretStr(""), description="where it isn't `api_key`")
    rewrite: Literal["off", "follow-ups", "always"] = Field(
        default="follow-ups", description="which questions the chat model puts in words to search for"
    )
    summarizer: Literal["rules", "model"] = Field(default="rules", description="who digests conversations")

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
