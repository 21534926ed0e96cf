"""Versions of the processing: which one reads, which one did, and what one that is tried makes of the same files."""

from datetime import datetime, timedelta
from uuid import UUID

import msgspec

KEPT = timedelta(hours=24)
"""How long what the previous version read is kept, untouched, so that one can go back to it."""


class Processing(msgspec.Struct, frozen=True, kw_only=True):
    """One version: what it does otherwise than others. Sizes are in tokens of the embedding model."""

    version: str
    target_tokens: int
    overlap_tokens: int


class ProcessingState(msgspec.Struct, frozen=True, kw_only=True):
    """`current` reads. `candidate` reads a `share` (0 to 1) of the same files once more, and nobody finds that."""

    current: str
    previous: str | None = None
    promoted_at: datetime | None = None
    candidate: str | None = None
    share: float = 0.0

    @property
    def kept_until(self) -> datetime | None:
        """Until when one can go back to `previous`; None where there is none."""
        if self.previous is None or self.promoted_at is None:
            return None
        return self.promoted_at + KEPT


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One content, read by two versions; see the columns of `shadow_comparisons`. Shares and cosines are 0 to 1."""

    seconds: float
    error_code: str | None = None
    chunks_before: int | None = None
    chunks_after: int | None = None
    tokens_before: int | None = None
    tokens_after: int | None = None
    text_kept: float | None = None
    text_added: float | None = None
    chunks_same: float | None = None
    vectors_mean: float | None = None
    vectors_least: float | None = None


class StoredComparison(Comparison, frozen=True, kw_only=True):
    """The same with what it is about."""

    tenant_id: UUID
    content_id: UUID
    media_type: str


class Switch(msgspec.Struct, frozen=True):
    """A content that goes from one whole generation to another; `chunks` are those of both."""

    content_id: UUID
    old: UUID
    new: UUID
    chunks: int
