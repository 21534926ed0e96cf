"""What model calls took, for whom and what for."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

import msgspec

from internal.entities.conversations import Usage


class Purpose(StrEnum):
    """What a model was called for."""

    CHAT = "chat"
    EMBEDDING = "embedding"
    REPROCESSING = "reprocessing"
    MEMORY = "memory"
    VISION = "vision"


class Grouping(StrEnum):
    """What sums are made for. A day is one of UTC."""

    DAY = "day"
    USER = "user"
    MODEL = "model"
    PURPOSE = "purpose"


class NewUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the ledger. `source_id` is of the conversation or task that it was for; `user_id` is whose it is
    where that isn't the context's user."""

    purpose: Purpose
    model: str
    source_id: UUID
    usage: Usage
    user_id: UUID | None = None


class UsageSum(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of the entries of one day, user, model or purpose."""

    key: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal
    estimated: bool


class Storage(msgspec.Struct, frozen=True):
    """What the tenant keeps: files, each counted once however many documents hold it, and their bytes."""

    files: int
    bytes: int


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of `since` (inclusive) to `until`, and what is kept now."""

    since: datetime
    until: datetime
    grouping: Grouping
    sums: list[UsageSum]
    storage: Storage
