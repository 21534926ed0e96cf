"""When an alert begins and when it is over. Looks come every ten seconds of a time that the tests give."""

from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from internal.entities.ids import new_id
from internal.entities.tasks import Queue
from internal.entities.watch import (
    ALERTS,
    CALM_SECONDS,
    DEPENDENCIES,
    LOOK_SECONDS,
    SILENT,
    Change,
    Installation,
    Pressure,
    QueueLoad,
    Sight,
    WatchState,
    watch,
)
from internal.handlers.installation import InstallationMetrics

ALL = frozenset(Queue)


class Watcher:
    """Looks one after the other, as relays take them: the state goes through JSON each time."""

    def __init__(self) -> None:
        self.at = 1_000_000.0
        self.began = self.at
        self.state = WatchState()

    def look(self, *, wait: float = LOOK_SECONDS, **seen: Any) -> list[Change]:
        self.at += wait
        fields: dict[str, Any] = {"queues": [load()], "served": ALL, "workers": 1, **seen}
        state, changes = watch(self.state, Sight(at=self.at, seconds=wait, **fields))
        self.state = msgspec.json.decode(msgspec.json.encode(state), type=WatchState)
        return [change for change in changes if change.news]

    def until(self, name: str, *, active: bool = True, **seen: Any) -> float:
        """Seconds until the alert is told, or told to be over."""
        began = self.at
        while self.at - began < 120:
            for change in self.look(**seen):
                if (change.name, change.active) == (name, active):
                    return self.at - began
        raise AssertionError(f"{name} isn't told")


def load(queue: Queue = Queue.DEFAULT, **counts: Any) -> QueueLoad:
    return QueueLoad(queue=queue, **counts)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("queue.soft_deadlock", {"queues": [load(due=501, running=1)]}),
        ("queue.soft_deadlock", {"queues": [load(due=1, oldest_seconds=15)]}),
        ("queue.soft_deadlock", {"queues": [load(due=1, oldest_seconds=15)], "served": None, "workers": None}),
        ("queue.no_worker.batch", {"queues": [load(Queue.BATCH, due=1, oldest_seconds=15)], "served": frozenset()}),
        ("queue.no_worker.batch", {"queues": [load(Queue.BATCH, due=1, oldest_seconds=15)], "served": {Queue.DEFAULT}}),
        *((f"dependency.down.{name}", {"down": frozenset({name})}) for name in DEPENDENCIES),
        ("outbox.backlog", {"oldest_event_seconds": 31}),
        ("tenant.near_cap", {"pressed": [Pressure(tenant_id=new_id(), unfinished=9_000)]}),
        ("dead_letters.growing", {"pressed": [Pressure(tenant_id=new_id(), dead=10)]}),
    ],
)
def test_it_is_told_within_a_minute_once_and_once_more_when_it_is_over(name: str, seen: dict[str, Any]) -> None:
    watcher = Watcher()
    assert watcher.look() == []
    # What has to be fifteen seconds old before it counts was seen that much later than it began.
    assert watcher.until(name, **seen) + 15 < 60
    for _ in range(5):
        assert [change.name for change in watcher.look(**seen) if change.name == name] == []
    assert watcher.state.last is not None
    assert watcher.state.last.alerts[name] == 1
    assert watcher.until(name, active=False) <= CALM_SECONDS + LOOK_SECONDS
    assert watcher.state.conditions == {}
    assert watcher.state.last.alerts == {}


@pytest.mark.parametrize(
    "seen",
    [
        {"queues": [load(due=500, running=1)]},
        {"queues": [load(due=9, oldest_seconds=14)]},
        {"queues": [load(due=9, running=1, oldest_seconds=4_000)]},
        {"queues": [load(later=10_000)]},
        {"queues": [load(due=9, running=1, oldest_seconds=99)], "served": None},
        {"queues": [load(due=0, oldest_seconds=99)], "served": frozenset()},
        {"oldest_event_seconds": 30},
        {"pressed": [Pressure(tenant_id=new_id(), unfinished=8_999, dead=9)]},
    ],
)
def test_what_is_no_reason(seen: dict[str, Any]) -> None:
    watcher = Watcher()
    assert [watcher.look(**seen) for _ in range(12)] == [[]] * 12


def test_a_moment_is_no_reason() -> None:
    watcher = Watcher()
    for _ in range(6):
        assert watcher.look(queues=[load(due=9_000, running=1)], down=frozenset({"models"})) == []
        assert watcher.look() == []


def test_a_dependency_must_be_down_for_half_a_minute() -> None:
    watcher = Watcher()
    down = frozenset({"clamd"})
    assert [len(watcher.look(down=down)) for _ in range(5)] == [0, 0, 0, 1, 0]


def test_fewer_that_end_while_more_wait() -> None:
    watcher = Watcher()
    steps = [(100, 100), (160, 80), (220, 60), (300, 45)]
    found = [watcher.look(queues=[load(due=due, running=9, ended=ended)]) for due, ended in steps]
    assert [len(changes) for changes in found] == [0, 0, 0, 1]
    assert found[-1][0].name == "queue.soft_deadlock"


@pytest.mark.parametrize(
    "steps",
    [
        [(100, 100), (160, 100), (220, 100), (300, 100)],  # as fast as ever
        [(100, 100), (160, 80), (220, 90), (300, 45)],  # it recovered in between
        [(100, 100), (160, 80), (150, 60), (300, 45)],
        [(100, 9), (110, 5), (120, 3), (130, 1)],  # few
        [(9_000, 100), (9_100, 80), (9_200, 60), (9_300, 45)],  # a small part of what waits
    ],
)
def test_a_queue_that_only_grows_is_no_reason(steps: list[tuple[int, int]]) -> None:
    watcher = Watcher()
    assert [watcher.look(queues=[load(due=d, running=20, ended=e)]) for d, e in steps] == [[]] * 4


def test_it_takes_more_to_begin_than_to_go_on() -> None:
    watcher, tenant = Watcher(), new_id()
    high: dict[str, Any] = {
        "queues": [load(due=501, running=1)],
        "pressed": [Pressure(tenant_id=tenant, unfinished=9_000, dead=10)],
    }
    low: dict[str, Any] = {
        "queues": [load(due=401, running=1)],
        "pressed": [Pressure(tenant_id=tenant, unfinished=7_500, dead=3)],
    }
    assert sum(len(watcher.look(**high)) for _ in range(3)) == 3
    assert sum(len(watcher.look(**low)) for _ in range(9)) == 0
    assert sum(len(watcher.look()) for _ in range(4)) == 3


def test_flapping_is_told_once() -> None:
    watcher = Watcher()
    bad: dict[str, Any] = {"queues": [load(due=501, running=1)]}
    watcher.until("queue.soft_deadlock", **bad)
    assert [changes for _ in range(10) for changes in (watcher.look(), watcher.look(**bad)) if changes] == []


def test_a_relay_that_was_away_begins_to_count_anew_but_forgets_no_alert() -> None:
    watcher = Watcher()
    watcher.until("outbox.backlog", oldest_event_seconds=99)
    watcher.look(oldest_event_seconds=99, down=frozenset({"redis"}))
    assert watcher.look(wait=3_600, oldest_event_seconds=99, down=frozenset({"redis"})) == []
    assert len(watcher.state.looks) == 1
    assert watcher.until("outbox.backlog", active=False) <= CALM_SECONDS + LOOK_SECONDS


def test_each_tenant_has_its_own_alert_and_is_told_alone() -> None:
    watcher, first, second = Watcher(), new_id(), new_id()
    [begun] = watcher.look(pressed=[Pressure(tenant_id=first, unfinished=10_000)])
    both = [Pressure(tenant_id=tenant, unfinished=10_000) for tenant in (first, second)]
    [other] = watcher.look(pressed=both)
    assert (begun.tenants, other.tenants) == ([first], [second])
    ended = [change for _ in range(4) for change in watcher.look(pressed=both[1:])]
    assert [(change.tenants, change.active) for change in ended] == [([first], False)]
    assert not any(str(tenant) in change.detail for tenant in (first, second) for change in (begun, other, *ended))


def test_whoever_comes_later_is_told_too() -> None:
    watcher = Watcher()
    bad: dict[str, Any] = {"queues": [load(due=501, running=1)]}
    watcher.until("queue.soft_deadlock", **bad)
    _, changes = watch(watcher.state, Sight(at=watcher.at + 10, seconds=10, **bad))
    assert [(change.name, change.news, change.queues) for change in changes] == [
        ("queue.soft_deadlock", False, list(Queue))
    ]


def test_every_dependency_says_what_its_silence_means() -> None:
    assert set(SILENT) == set(DEPENDENCIES)


def test_metrics_tell_what_was_seen_and_nothing_when_nothing_is_known() -> None:
    watcher, tenant = Watcher(), new_id()
    busy: dict[str, Any] = {
        "queues": [load(due=9_000, later=5, running=2, oldest_seconds=40), load(Queue.BATCH)],
        "pressed": [Pressure(tenant_id=tenant, unfinished=10_000)],
    }
    watcher.until("queue.soft_deadlock", **busy)
    found: Installation | None = Installation(
        last=watcher.state.last, seconds=4.0, objects_removed=7, objects_missing=1, oldest_sweep=None
    )
    registry = CollectorRegistry()
    registry.register(InstallationMetrics(lambda: found))
    text = generate_latest(registry).decode()
    for line in (
        'queue_length{queue="default"} 9005.0',
        'queue_due{queue="default"} 9000.0',
        'queue_oldest_seconds{queue="default"} 40.0',
        'tasks_running{queue="default"} 2.0',
        "workers_live 1.0",
        "soft_deadlock 1.0",
        "objects_removed_total 7.0",
        "objects_missing 1.0",
        "relay_seen_seconds 4.0",
        'alerts_active{name="tenant.near_cap"} 1.0',
        'alerts_active{name="outbox.backlog"} 0.0',
    ):
        assert f"\n{line}\n" in text, text
    assert text.count("alerts_active{") == len(ALERTS)
    assert str(tenant) not in text
    found = None
    assert generate_latest(registry) == b""
