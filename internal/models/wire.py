"""The JSON of the model process: OpenAI's form where OpenAI has one. Reading checks, writing doesn't block others."""

import base64
from itertools import zip_longest
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from internal.models import weights
from internal.models.embedding import DIMENSION, Kind, Vectors
from pkg.apperr import AppError, Code

MAX_INPUTS = 2048
MAX_COUNTED = 20_000

STATUS: dict[Code, int] = {
    Code.REQUEST_MALFORMED: 400,
    Code.REQUEST_INVALID: 400,
    Code.REQUEST_NOT_FOUND: 404,
    Code.REQUEST_METHOD_NOT_ALLOWED: 405,
    Code.REQUEST_TOO_LARGE: 413,
    Code.FILE_EMPTY: 422,
    Code.FILE_UNREADABLE: 422,
    Code.FILE_TOO_COMPLEX: 422,
    Code.QUEUE_FULL: 503,
    Code.MODEL_UNAVAILABLE: 503,
}


class EmbeddingsIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/embeddings`. `input_type` and `for_search` are ours; `user` is accepted and not used."""

    model: str
    input: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_INPUTS)]
    input_type: Kind = Kind.PASSAGE
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    for_search: bool = False

    @property
    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class TokenizeIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/tokenize`."""

    input: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_COUNTED)]


class TokenizeOut(msgspec.Struct, frozen=True):
    """Tokens of each text, without prefix and special tokens."""

    counts: list[int]


class Usage(msgspec.Struct, frozen=True):
    """Tokens that were embedded, and the indices of inputs of which only the first 512 tokens were."""

    prompt_tokens: int
    total_tokens: int
    truncated: list[int]


class EmbeddingsOut(msgspec.Struct, frozen=True):
    """OpenAI's list of embeddings; each is written in advance."""

    data: list[msgspec.Raw]
    usage: Usage
    model: str = weights.NAME
    object: str = "list"


class EmbeddingOut(msgspec.Struct, frozen=True):
    """One embedding: numbers, or base64 of little-endian float32. `token_codes` is base64 of what `TokenCoder` made."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"
    token_codes: str | msgspec.UnsetType = msgspec.UNSET


class ModelOut(msgspec.Struct, frozen=True):
    """One model. `version` changes when its answers do."""

    id: str
    version: str
    dimension: int | None = None
    created: int = 0
    object: str = "model"
    owned_by: str = "dreamhub"


class ModelsOut(msgspec.Struct, frozen=True):
    """`GET /v1/models`."""

    data: list[ModelOut]
    object: str = "list"


class HealthOut(msgspec.Struct, frozen=True):
    """`GET /healthz`."""

    status: str
    loaded: dict[str, bool]
    rss_bytes: int
    queues: dict[str, int]


class ReadyOut(msgspec.Struct, frozen=True):
    """`GET /readyz`: `ok` or `loading`."""

    status: str


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorOut(msgspec.Struct, frozen=True):
    """OpenAI's frame around an error."""

    error: ErrorBody


In = TypeVar("In")


def read(body: bytes, kind: type[In]) -> In:
    """Decodes a request. Raises `request.malformed` for broken JSON, `request.invalid` for wrong values."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise AppError(Code.REQUEST_INVALID, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AppError(Code.REQUEST_MALFORMED, f"the body is not valid JSON: {error}") from error


def check_embeddings(request: EmbeddingsIn) -> list[str]:
    """The texts of a request that can be answered. Raises `request.not_found` or `request.invalid`."""
    if request.model != weights.NAME:
        raise AppError(Code.REQUEST_NOT_FOUND, f"there is no model {request.model!r} here; use {weights.NAME!r}")
    if request.dimensions not in (None, DIMENSION):
        raise AppError(Code.REQUEST_INVALID, f"dimensions must be {DIMENSION} or left out")
    check_texts(request.texts)
    return request.texts


def check_texts(texts: list[str]) -> None:
    """Raises `request.invalid` for a text that is empty or holds NUL."""
    check_countable(texts)
    for index, text in enumerate(texts):
        if not text:
            raise AppError(Code.REQUEST_INVALID, f"input[{index}] is empty")


def check_countable(texts: list[str]) -> None:
    """Raises `request.invalid` for a text with NUL; an empty one has no tokens. Decoding refused lone surrogates."""
    for index, text in enumerate(texts):
        if "\x00" in text:
            raise AppError(Code.REQUEST_INVALID, f"input[{index}] contains the character NUL")


def write_embeddings(vectors: Vectors, codes: list[bytes], encoding: str) -> list[msgspec.Raw]:
    """One piece of JSON for each vector: many small steps, so that another thread may run in between.

    `codes` has one for each vector, or is empty.
    """
    return [
        msgspec.Raw(_write_embedding(index, row, coded, encoding))
        for index, (row, coded) in enumerate(zip_longest(vectors, codes))
    ]


def _write_embedding(index: int, row: Any, codes: bytes | None, encoding: str) -> bytes:
    value = base64.b64encode(row.astype("<f4").tobytes()).decode() if encoding == "base64" else row.tolist()
    coded = msgspec.UNSET if codes is None else base64.b64encode(codes).decode()
    return msgspec.json.encode(EmbeddingOut(index, value, token_codes=coded))


def write_error(error: AppError) -> tuple[int, bytes]:
    """Status and body for an error, in OpenAI's form."""
    status = STATUS.get(error.code, 500)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return status, msgspec.json.encode(ErrorOut(ErrorBody(error.detail, kind, error.code.value)))
