"""Why a task waits, how long it will, and when a full queue has room again. Seconds, and nothing but arithmetic."""

from bisect import bisect_right
from datetime import datetime
from enum import StrEnum

import msgspec

from internal.entities.tasks import Queue

ROOM_UNKNOWN_SECONDS = 30.0
ROOM_SHORTEST, ROOM_LONGEST = 1.0, 300.0
SIZE_BOUNDS = (1, 64 * 1024, 1024**2, 8 * 1024**2, 64 * 1024**2)
"""Bytes. Files of one class take about as long; class 0 is work without a file."""

REVERSED_SHARE = 8
"""A worker's every eighth round begins with the least urgent queue."""


class Reason(StrEnum):
    """What a queued task waits for."""

    NEXT = "next"
    TENANT_SHARE = "tenant_share"
    QUEUE = "queue"
    BACKOFF = "backoff"
    DEPENDENCY = "dependency"
    NO_WORKER = "no_worker"


class ServiceTime(msgspec.Struct, frozen=True, kw_only=True):
    """How long `count` tasks of a kind and size class took, `seconds` each on average."""

    queue: Queue
    kind: str
    size_class: int
    count: int
    seconds: float


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells of itself every few seconds: the queues it serves, its slots, and the last hour's times."""

    name: str
    queues: list[Queue]
    slots: int
    services: list[ServiceTime] = []


class Roll(msgspec.Struct, frozen=True, kw_only=True):
    """Live workers' reports. Unless it is `complete`, there may be more workers than that."""

    reports: list[WorkerReport]
    complete: bool


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What comes before a task: its tenant's own tasks and the seconds of work in them, others', and urgent queues'."""

    own: int
    own_seconds: float
    others: int
    running: int
    urgent: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Why a queued task doesn't run yet. `position` counts the tenant's own tasks ahead, `ahead` everybody's."""

    reason: Reason
    detail: str
    position: int | None = None
    ahead: int | None = None
    until: datetime | None = None
    estimated_start_at: datetime | None = None
    estimated_end_at: datetime | None = None


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a queue moves: the slots that serve it, and what tasks took of late. `usual` is None when none ended.

    `complete` is False where some of the workers may be unknown.
    """

    slots: int
    usual: float | None
    complete: bool = True
    services: dict[tuple[str, int], float] = {}

    def of(self, kind: str, size: int) -> float | None:
        """Seconds that such a task takes."""
        return self.services.get((kind, size_class(size)), self.usual)


def size_class(size: int) -> int:
    """The number of SIZE_BOUNDS that `size` reaches, as PostgreSQL's width_bucket counts."""
    return bisect_right(SIZE_BOUNDS, size)


def pace_of(roll: Roll, queue: Queue) -> Pace:
    """All live workers' reports taken together, each time weighted by how many tasks it is the mean of."""
    found: dict[tuple[str, int], tuple[int, float]] = {}
    for service in (one for report in roll.reports for one in report.services if one.queue is queue):
        count, total = found.get((service.kind, service.size_class), (0, 0.0))
        found[service.kind, service.size_class] = count + service.count, total + service.count * service.seconds
    tasks = sum(count for count, _total in found.values())
    return Pace(
        slots=sum(report.slots for report in roll.reports if queue in report.queues),
        usual=sum(total for _count, total in found.values()) / tasks if tasks else None,
        complete=roll.complete,
        services={name: total / count for name, (count, total) in found.items()},
    )


def start_seconds(standing: Standing, pace: Pace) -> float | None:
    """Seconds until the task begins; None where nobody can say.

    Work ahead is shared by the slots, and what runs is half done on average. Urgent queues come first, but leave this
    one its eighth.
    """
    if not pace.slots or pace.usual is None:
        return None
    if standing.own + standing.others + standing.urgent + standing.running < pace.slots:
        return 0.0
    ahead = standing.own_seconds + standing.others * pace.usual
    urgent = standing.urgent * pace.usual
    running = min(standing.running, pace.slots) * pace.usual / 2
    return (running + min(ahead + urgent, max(1.0, ahead) * REVERSED_SHARE)) / pace.slots


def room_seconds(excess: int, *, ended: int, seconds: float) -> float:
    """When a full tenant has room for one task more: `excess` + 1 must end, and `ended` did in the last `seconds`.

    Between a second and five minutes; half a minute where nothing has ended lately, so that nobody can say.
    """
    if ended < 1 or seconds <= 0:
        return ROOM_UNKNOWN_SECONDS
    return min(ROOM_LONGEST, max(ROOM_SHORTEST, (max(0, excess) + 1) * seconds / ended))
