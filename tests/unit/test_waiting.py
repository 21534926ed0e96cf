"""The arithmetic of waiting."""

from typing import Any

import pytest

from internal.entities.tasks import Queue
from internal.entities.waiting import (
    Pace,
    Roll,
    ServiceTime,
    Standing,
    WorkerReport,
    pace_of,
    size_class,
    start_seconds,
)
from internal.worker.stopwatch import HOUR, KEPT, Stopwatch
from tests.unit.test_tasks import task


def standing(**changes: Any) -> Standing:
    fields: dict[str, Any] = {"own": 0, "own_seconds": 0.0, "others": 0, "running": 0, "urgent": 0}
    return Standing(**{**fields, **changes})


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (1, 1), (65_535, 1), (65_536, 2), (1 << 20, 3), (8 << 20, 4), (1 << 40, 5)]
)
def test_sizes_fall_into_classes(size: int, expected: int) -> None:
    assert size_class(size) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (standing(), 0),
        (standing(running=3), 0),
        (standing(running=4), 2 * 10 / 4 + 0),
        (standing(own=8, own_seconds=80, running=4), (20 + 80) / 4),
        (standing(own=4, own_seconds=40, others=4, running=4), (20 + 80) / 4),
        (standing(own=1, own_seconds=10, urgent=4, running=4), (20 + 50) / 4),
        (standing(own=1, own_seconds=10, urgent=5000, running=4), (20 + 80) / 4),
    ],
)
def test_work_ahead_is_shared_by_the_slots(found: Standing, expected: float) -> None:
    assert start_seconds(found, Pace(slots=4, usual=10)) == expected


def test_nobody_knows_without_workers_or_times() -> None:
    assert start_seconds(standing(), Pace(slots=0, usual=10)) is None
    assert start_seconds(standing(), Pace(slots=4, usual=None)) is None


def test_reports_are_taken_together() -> None:
    def service(queue: Queue, count: int, seconds: float) -> ServiceTime:
        return ServiceTime(queue=queue, kind="note", size_class=1, count=count, seconds=seconds)

    reports = [
        WorkerReport(name="a", queues=[Queue.DEFAULT], slots=2, services=[service(Queue.DEFAULT, 3, 10)]),
        WorkerReport(name="b", queues=list(Queue), slots=4, services=[service(Queue.DEFAULT, 1, 2)]),
        WorkerReport(name="c", queues=[Queue.BATCH], slots=8, services=[service(Queue.BATCH, 9, 99)]),
    ]
    pace = pace_of(Roll(reports=reports, complete=True), Queue.DEFAULT)
    assert (pace.slots, pace.usual, pace.services) == (6, 8, {("note", 1): 8})
    assert (pace.of("note", 5), pace.of("other", 5)) == (8, 8)
    assert pace_of(Roll(reports=[], complete=False), Queue.DEFAULT) == Pace(slots=0, usual=None, complete=False)


def test_a_stopwatch_keeps_the_latest_of_an_hour() -> None:
    now = 0.0
    watch = Stopwatch(clock=lambda: now)
    watch.note(task(), 50)
    now = HOUR + 1
    for _ in range(KEPT + 20):
        watch.note(task(size=2), 4)
    [service] = watch.services()
    assert (service.count, service.seconds, service.size_class) == (KEPT, 4, 1)
