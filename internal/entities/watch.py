"""What the relays see of the whole installation every few seconds, and what of it is alarming.

Nothing here asks for the time: it is a number of seconds by the database's clock.
"""

from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Literal
from uuid import UUID

import msgspec

from internal.entities.tasks import Queue

LOOK_SECONDS = 10.0
GAP_SECONDS = 45.0
"""After so long without a look, what was seen before says nothing of now."""
CALM_SECONDS = 20.0
"""An alarm is over when nothing spoke for it for so long."""
SURE_SECONDS = 10.0
"""What one look finds may be a moment's; the next one must find it too."""

MOST_DUE = 500
"""Due tasks for each one that runs."""
CALM_SHARE = 0.8
IDLE_SECONDS = 15.0
WINDOWS = 4
LEAST_GROWTH = 50
DOWN_SECONDS = 30.0
EVENTS_SECONDS = 30.0
NEAR_CAP, CALM_CAP = 0.9, 0.75
DEAD_SECONDS = 600.0
MANY_DEAD, FEW_DEAD = 10, 3

SOFT_DEADLOCK = "queue.soft_deadlock"
NO_WORKER = "queue.no_worker"
DOWN = "dependency.down"
BACKLOG = "outbox.backlog"
CAP = "tenant.near_cap"
DEAD = "dead_letters.growing"
DEPENDENCIES = ("redis", "models", "clamd")
ALERTS = (
    SOFT_DEADLOCK,
    *(f"{NO_WORKER}.{queue}" for queue in Queue),
    *(f"{DOWN}.{name}" for name in DEPENDENCIES),
    BACKLOG,
    CAP,
    DEAD,
)
"""Every alert that a look can raise."""


class QueueLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks of one queue: due now, due later, running; seconds that the oldest due one waits; ended since last time."""

    queue: Queue
    due: int = 0
    later: int = 0
    running: int = 0
    oldest_seconds: float = 0.0
    ended: int = 0


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant with many unfinished tasks, or many dead letters of late."""

    tenant_id: UUID
    unfinished: int = 0
    dead: int = 0


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """All that one look sees; `seconds` have passed since the one before.

    `workers` and `served`, the queues that live workers name, are None where Redis, which knows them, is away.
    """

    at: float
    seconds: float
    queues: list[QueueLoad]
    events: int = 0
    oldest_event_seconds: float = 0.0
    dead: int = 0
    workers: int | None = None
    served: frozenset[Queue] | None = None
    down: frozenset[str] = frozenset()
    pressed: list[Pressure] = []
    cap: int = 10_000

    @property
    def due(self) -> int:
        """Tasks of all queues that could run now."""
        return sum(load.due for load in self.queues)

    @property
    def busy(self) -> int:
        """Tasks that run."""
        return sum(load.running for load in self.queues)


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a sight: due tasks, and how many ended in a second."""

    at: float
    due: int
    pace: float


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """Something alarming: since when, when it was last seen, and whether it was told."""

    name: str
    since: float
    seen: float
    raised: bool = False
    tenant_id: UUID | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The last sight without any tenant, for metrics; `alerts` counts what is raised by name."""

    queues: list[QueueLoad]
    events: int
    oldest_event_seconds: float
    dead: int
    workers: int | None
    alerts: dict[str, int]


class WatchState(msgspec.Struct, frozen=True, kw_only=True):
    """What one look leaves for the next, whichever relay takes it."""

    looks: list[Look] = []
    conditions: dict[str, Condition] = {}
    last: Seen | None = None


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What the last look saw, so many seconds ago, None where none was taken; and what sweeps of objects have found."""

    last: Seen | None
    seconds: float | None
    objects_removed: int
    objects_missing: int
    oldest_sweep: datetime | None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """An alert to be told or ended. Without tenants and queues it is everybody's.

    `news` is False for one that goes on: whoever it begins to concern is told of it too.
    """

    name: str
    active: bool
    severity: Literal["info", "warning", "critical"]
    detail: str
    news: bool = True
    tenants: list[UUID] | None = None
    queues: list[Queue] | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What speaks for an alert; it must do so for `after` seconds."""

    name: str
    detail: str
    severity: Literal["warning", "critical"] = "critical"
    after: float = 0.0
    tenant_id: UUID | None = None
    tenants: list[UUID] | None = None
    queues: list[Queue] | None = None

    @property
    def key(self) -> str:
        """One for each alert and tenant."""
        return f"{self.name} {self.tenant_id or ''}".rstrip()


Raised = Callable[[str], bool]
"""Whether the alert with this key is raised: what ends it is less than what begins it."""


def watch(state: WatchState, sight: Sight) -> tuple[WatchState, list[Change]]:
    """The state after a look, and what is to be told."""
    looks = state.looks if state.looks and sight.at - state.looks[-1].at <= GAP_SECONDS else []
    looks = [*looks, Look(at=sight.at, due=sight.due, pace=_pace(sight))][-WINDOWS:]

    def raised(key: str) -> bool:
        known = state.conditions.get(key)
        return known is not None and known.raised

    findings = {finding.key: finding for finding in _findings(sight, looks, raised)}
    conditions: dict[str, Condition] = {}
    changes: list[Change] = []
    for key, finding in findings.items():
        known = state.conditions.get(key)
        condition = _continued(known, finding, sight.at)
        conditions[key] = condition
        news = known is None or not known.raised
        if condition.raised and (news or finding.tenant_id is None):
            changes.append(_told(finding, news=news))
    for key, known in state.conditions.items():
        if key in findings or not known.raised:
            continue
        if sight.at - known.seen < CALM_SECONDS:
            conditions[key] = known
        else:
            changes.append(_ended(known))
    last = Seen(
        queues=sight.queues,
        events=sight.events,
        oldest_event_seconds=sight.oldest_event_seconds,
        dead=sight.dead,
        workers=sight.workers,
        alerts=_counted(conditions),
    )
    return WatchState(looks=looks, conditions=conditions, last=last), changes


def _continued(known: Condition | None, finding: Finding, at: float) -> Condition:
    since = known.since if known is not None and (known.raised or at - known.seen <= GAP_SECONDS) else at
    raised = (known is not None and known.raised) or at - since >= finding.after
    return Condition(name=finding.name, since=since, seen=at, raised=raised, tenant_id=finding.tenant_id)


def _told(finding: Finding, *, news: bool) -> Change:
    return Change(
        name=finding.name,
        active=True,
        severity=finding.severity,
        detail=finding.detail,
        news=news,
        tenants=[finding.tenant_id] if finding.tenant_id else finding.tenants,
        queues=finding.queues,
    )


def _ended(known: Condition) -> Change:
    tenants = [known.tenant_id] if known.tenant_id else None
    return Change(name=known.name, active=False, severity="info", detail="This is over.", tenants=tenants)


def _counted(conditions: dict[str, Condition]) -> dict[str, int]:
    found: dict[str, int] = {}
    for condition in conditions.values():
        if condition.raised:
            found[condition.name] = found.get(condition.name, 0) + 1
    return found


def _pace(sight: Sight) -> float:
    return sum(load.ended for load in sight.queues) / max(sight.seconds, 1.0)


def _findings(sight: Sight, looks: Sequence[Look], raised: Raised) -> Generator[Finding]:
    yield from _soft_deadlock(sight, looks, raised)
    yield from _without_worker(sight)
    for name in sorted(sight.down):
        yield Finding(name=f"{DOWN}.{name}", detail=SILENT[name], after=DOWN_SECONDS)
    if sight.oldest_event_seconds > EVENTS_SECONDS:
        yield Finding(name=BACKLOG, detail="Events wait to be handed on.", tenants=[])
    yield from _pressed(sight, raised)


def _soft_deadlock(sight: Sight, looks: Sequence[Look], raised: Raised) -> Generator[Finding]:
    """Far more is due than runs, nothing runs at all, or less and less ends of more and more."""
    due, busy = sight.due, sight.busy
    oldest = max((load.oldest_seconds for load in sight.queues if load.due), default=0.0)
    bound = MOST_DUE * (CALM_SHARE if raised(SOFT_DEADLOCK) else 1)
    detail, after = "", SURE_SECONDS
    if busy and due / busy > bound:
        detail = "Far more tasks wait than run; they are done in turn, but later than usual."
    elif due and not busy and oldest >= IDLE_SECONDS:
        detail = "Tasks wait and none runs; nothing is lost, and they begin as soon as workers can."
    elif _slowing(looks):
        detail, after = "Fewer and fewer tasks end while more and more wait.", 0.0
    if detail:
        yield Finding(name=SOFT_DEADLOCK, detail=detail, after=after, queues=list(Queue))


def _slowing(looks: Sequence[Look]) -> bool:
    if len(looks) < WINDOWS:
        return False
    due, pace = [look.due for look in looks], [look.pace for look in looks]
    rises = all(before < after for before, after in pairwise(due))
    falls = all(before >= after for before, after in pairwise(pace))
    return rises and falls and due[-1] - due[0] >= max(LEAST_GROWTH, due[0] / 10) and pace[-1] <= pace[0] / 2


def _without_worker(sight: Sight) -> Generator[Finding]:
    for load in sight.queues:
        unserved = sight.served is not None and load.queue not in sight.served
        if unserved and load.due and load.oldest_seconds >= IDLE_SECONDS:
            yield Finding(
                name=f"{NO_WORKER}.{load.queue}",
                detail=f"No worker that serves the queue {load.queue} is running; its tasks wait.",
                after=SURE_SECONDS,
                queues=[load.queue],
            )


def _pressed(sight: Sight, raised: Raised) -> Generator[Finding]:
    for pressure in sight.pressed:
        cap = Finding(
            name=CAP,
            detail="The queue of this tenant is nearly full; when it is, uploads are refused until tasks are done.",
            severity="warning",
            tenant_id=pressure.tenant_id,
        )
        if pressure.unfinished >= sight.cap * (CALM_CAP if raised(cap.key) else NEAR_CAP):
            yield cap
        dead = Finding(
            name=DEAD,
            detail="Tasks of this tenant are given up one after the other; see its dead letters.",
            severity="warning",
            tenant_id=pressure.tenant_id,
        )
        if pressure.dead >= (FEW_DEAD if raised(dead.key) else MANY_DEAD):
            yield dead


SILENT = {
    "redis": "Redis doesn't answer; tasks wait, and progress isn't told.",
    "models": "The models don't answer; files wait to be read, and searches are answered by mode keyword alone.",
    "clamd": "The virus scanner doesn't answer; uploads are refused until it does.",
}
