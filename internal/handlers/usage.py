"""/api/v1/usage"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from internal.entities.usage import Grouping, UsageSum
from internal.handlers.auth import access
from internal.handlers.money import Usd, usd
from internal.handlers.requests import Moment, utc
from internal.services.usage import UsageService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

DAY = len("2026-01-31")
LONGEST = 40


class UsageTotalOut(msgspec.Struct, frozen=True, kw_only=True):
    """`requests` are model calls; a document's batches of passages are one each. `estimated`: not all tokens were told
    by the endpoint."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: Usd
    estimated: bool


class UsageItemOut(UsageTotalOut, frozen=True, kw_only=True):
    """`key` is a day (of UTC), a user's id, a model's name or a purpose."""

    key: str


class StorageOut(msgspec.Struct, frozen=True):
    """What is kept now: a file counts once however many documents hold it."""

    files: int
    bytes: int


class UsageOut(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """The ledger's sums from `from` to, and without, `to`."""

    from_: datetime
    to: datetime
    group_by: Grouping
    items: list[UsageItemOut]
    total: UsageTotalOut
    storage: StorageOut


@get("/api/v1/usage", opt=access(Role.ADMIN))
async def get_usage(
    ctx: NamedDependency[Context],
    usage: NamedDependency[UsageService],
    since: Annotated[
        str | None,
        QueryParameter(
            name="from",
            max_length=LONGEST,
            description="A day or a time with its zone; 30 days before `to` if left out.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        QueryParameter(name="to", max_length=LONGEST, description="A day, which is included, or a time; else now."),
    ] = None,
    group_by: Annotated[Grouping, QueryParameter()] = Grouping.DAY,
) -> UsageOut:
    """Tokens, cost and calls of all the tenant's users, and what is stored. For admins and owners."""
    report = await usage.report(
        ctx, group_by, since=_moment("from", since, time.min), until=_moment("to", until, time.max)
    )
    items = [UsageItemOut(key=item.key, **_numbers([item])) for item in report.sums]
    return UsageOut(
        from_=report.since,
        to=report.until,
        group_by=report.grouping,
        items=items,
        total=UsageTotalOut(**_numbers(report.sums)),
        storage=StorageOut(report.storage.files, report.storage.bytes),
    )


def _moment(field: str, text: str | None, of_day: time) -> datetime | None:
    """A time, or a day's beginning or end. Raises REQUEST_INVALID."""
    if text is None:
        return None
    try:
        if len(text) == DAY:
            return datetime.combine(date.fromisoformat(text), of_day, UTC)
        return utc(msgspec.convert(text, Moment), field)
    except (ValueError, msgspec.ValidationError):
        message = "must be a day, such as 2026-01-31, or a time with its zone, such as 2026-01-31T08:00:00Z"
        raise AppError(
            Code.REQUEST_INVALID, f"{field} {message}.", errors=[{"field": field, "message": message}]
        ) from None


def _numbers(sums: Sequence[UsageSum]) -> dict[str, Any]:
    """One line of numbers for several sums."""
    prompt, completion = sum(item.prompt_tokens for item in sums), sum(item.completion_tokens for item in sums)
    return {
        "requests": sum(item.requests for item in sums),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "cost_usd": usd(sum((item.cost_usd for item in sums), Decimal(0))),
        "estimated": any(item.estimated for item in sums),
    }
