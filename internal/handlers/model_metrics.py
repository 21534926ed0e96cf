"""Metrics of this process's calls of models."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from internal.providers.model_calls import ModelCalls


class ModelMetrics(Collector):
    """By kind and model, both of which the settings name; `lane` tells whether a person waits for a call or a task."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry needn't ask for values to learn the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Counters of refusals and waits, and how many keys rest."""
        names, lanes = ["kind", "model"], ["kind", "model", "lane"]
        refused = CounterMetricFamily("model_calls_limited", "Calls refused for a rate limit or quota", labels=names)
        waits = CounterMetricFamily("model_call_waits", "Calls that waited for their turn", labels=lanes)
        seconds = CounterMetricFamily("model_call_wait_seconds", "What they waited together", labels=lanes)
        given_up = CounterMetricFamily("model_calls_given_up", "Calls whose turn was too far off", labels=lanes)
        keys = GaugeMetricFamily("model_keys", "API keys that the settings name", labels=names)
        resting = GaugeMetricFamily("model_keys_resting", "Those that are passed over now", labels=names)
        for name, totals in self._calls.totals():
            refused.add_metric(name, totals.refused)
            keys.add_metric(name, totals.keys)
            resting.add_metric(name, totals.resting)
            for lane, count in totals.lanes.items():
                waits.add_metric([*name, lane], count.waits)
                seconds.add_metric([*name, lane], count.seconds)
                given_up.add_metric([*name, lane], count.given_up)
        yield from (refused, waits, seconds, given_up, keys, resting)
