"""Reading what endpoints for embeddings really send."""

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from internal.entities.conversations import Usage
from internal.providers.embedding_batches import tokens_of
from pkg.apperr import AppError, Code

Vectors = npt.NDArray[np.float32]

MISFIT_SECONDS = 60.0
"""How soon to look again whether a model of the wrong dimension has been set right."""


class Embedded(msgspec.Struct, frozen=True):
    """Unit vectors of shape (texts, dim), and the tokens that they took.

    `codes` are those of each text's tokens (see internal/models/token_codes.py); empty where the model has none, or
    none were wanted.
    """

    vectors: Vectors
    usage: Usage
    codes: list[bytes] = []


def joined(parts: Sequence[Embedded], dim: int) -> Embedded:
    """What several requests brought, as if it had been one."""
    vectors = [part.vectors for part in parts] or [np.empty((0, dim), np.float32)]
    usage = sum((part.usage for part in parts), Usage())
    return Embedded(np.concatenate(vectors), usage, [code for part in parts for code in part.codes])


def usage_of(answer: Any, texts: Sequence[str]) -> Usage:
    """What the endpoint says that it counted; some say nothing, or nonsense."""
    tokens = getattr(getattr(answer, "usage", None), "prompt_tokens", None)
    if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
        return Usage(prompt_tokens=tokens)
    return Usage(prompt_tokens=tokens_of(texts), estimated=True)


def codes_of(answer: Any) -> list[bytes]:
    """In the order of the texts. `decode` has looked at the rest of the answer."""
    items = sorted(answer.data, key=lambda item: item.index)
    try:
        return [base64.b64decode(item.token_codes) for item in items]
    except (AttributeError, TypeError, ValueError) as error:
        raise AppError(Code.MODEL_BAD_ANSWER, "The embedding model sent no token codes; is it an older one?") from error


def decode(answer: Any, count: int, dim: int) -> Vectors:
    """Vectors in the order of the texts; some endpoints ignore `base64` and send numbers."""
    try:
        items = sorted(answer.data, key=lambda item: item.index)
        rows = [
            np.frombuffer(base64.b64decode(item.embedding), "<f4")
            if isinstance(item.embedding, str)
            else np.asarray(item.embedding, np.float32)
            for item in items
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise AppError(Code.MODEL_BAD_ANSWER, "The embedding model sent something else than embeddings.") from error
    if len(rows) != count:
        raise AppError(Code.MODEL_BAD_ANSWER, f"The embedding model sent {len(rows)} embeddings for {count} texts.")
    widths = {row.shape[0] for row in rows}
    if widths != {dim}:
        # A setting is at fault, not the text: tasks are held until it is mended instead of using up their tries.
        raise AppError(
            Code.MODEL_UNAVAILABLE,
            f"The embedding model sends {', '.join(map(str, sorted(widths)))} dimensions where AI__EMBEDDING_DIM says"
            f" {dim}; the operator should set AI__EMBEDDING_DIM to the model's dimension.",
            retry_after=MISFIT_SECONDS,
        )
    vectors = np.stack(rows).astype(np.float32, copy=False)
    if not np.isfinite(vectors).all():
        raise AppError(Code.MODEL_BAD_ANSWER, "The embedding model sent values that are not numbers.")
    return vectors
