"""What a tenant uses and keeps."""

from datetime import UTC, datetime, timedelta

from internal.entities.usage import Grouping, UsageReport
from internal.repositories.store import Store
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

USUAL = timedelta(days=30)
LONGEST = timedelta(days=366)
BEGINNING = datetime.min.replace(tzinfo=UTC)


class UsageService:
    """Sums of the ledger, for those who manage the tenant."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def report(
        self, ctx: Context, grouping: Grouping, *, since: datetime | None, until: datetime | None
    ) -> UsageReport:
        """The last 30 days where nothing else is said. Raises REQUEST_INVALID for no time at all, or over a year."""
        until = until or datetime.now(UTC)
        since = since or until - min(USUAL, until - BEGINNING)
        if since >= until:
            raise _invalid("from", "must be before to")
        if until - since > LONGEST:
            raise _invalid("from", f"must be at most {LONGEST.days} days before to")
        async with self._store.tenant(ctx) as tx:
            sums = await tx.usage.sums(grouping, since=since, until=until)
            return UsageReport(since=since, until=until, grouping=grouping, sums=sums, storage=await tx.usage.storage())


def _invalid(field: str, message: str) -> AppError:
    return AppError(Code.REQUEST_INVALID, f"{field} {message}.", errors=[{"field": field, "message": message}])
