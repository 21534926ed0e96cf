"""Metrics of the whole installation, the same from every server: take the largest, don't add them up."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from internal.entities.watch import ALERTS, SOFT_DEADLOCK, Installation, Seen


class InstallationMetrics(Collector):
    """What `latest` has; nothing while it is None, so that an old number is never taken for a new one."""

    def __init__(self, latest: Callable[[], Installation | None]) -> None:
        self._latest = latest

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry needn't ask for values to learn the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Gauges and one counter."""
        found = self._latest()
        if found is None:
            return
        yield CounterMetricFamily("objects_removed", "Objects removed that no row held", value=found.objects_removed)
        yield _gauge("objects_missing", "Contents whose object is gone", found.objects_missing)
        if found.seconds is not None:
            yield _gauge("relay_seen_seconds", "Since a relay last looked at queues and workers", found.seconds)
        if found.last is not None:
            yield from _seen(found.last)


def _seen(last: Seen) -> Iterable[Metric]:
    length = GaugeMetricFamily("queue_length", "Tasks that wait, due or not", labels=["queue"])
    due = GaugeMetricFamily("queue_due", "Tasks that could run now", labels=["queue"])
    oldest = GaugeMetricFamily("queue_oldest_seconds", "How long the oldest due task waits", labels=["queue"])
    running = GaugeMetricFamily("tasks_running", "Tasks that run", labels=["queue"])
    for load in last.queues:
        name = [load.queue.value]
        length.add_metric(name, load.due + load.later)
        due.add_metric(name, load.due)
        oldest.add_metric(name, load.oldest_seconds)
        running.add_metric(name, load.running)
    yield from (length, due, oldest, running)
    if last.workers is not None:
        yield _gauge("workers_live", "Workers that told of themselves within 16 s", last.workers)
    yield _gauge("dead_letters", "Tasks that were given up", last.dead)
    yield _gauge("outbox_events", "Events that wait to be handed on", last.events)
    yield _gauge("outbox_oldest_seconds", "How long the oldest of them waits", last.oldest_event_seconds)
    yield _gauge("soft_deadlock", "1 while tasks wait and too few run", float(SOFT_DEADLOCK in last.alerts))
    alerts = GaugeMetricFamily("alerts_active", "Alerts that aren't over; a tenant's count one by one", labels=["name"])
    for name in ALERTS:
        alerts.add_metric([name], last.alerts.get(name, 0))
    yield alerts


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)
