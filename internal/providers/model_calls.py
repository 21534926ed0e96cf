"""What a process's calls of models have come to, for its metrics; no key and no tenant in it."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from internal.providers.retries import Retries
from internal.providers.turns import LANES, Lane, WaitCount


class ModelName(NamedTuple):
    """What a model is to people (chat, embedding, rerank), and what the settings call it."""

    kind: str
    model: str


class ModelTotals(msgspec.Struct):
    """Of one model since the process began. `resting` and `keys` are counts of keys, now."""

    refused: int
    resting: int
    keys: int
    lanes: dict[Lane, WaitCount]


class ModelCalls:
    """Every model that a process may call, by name; one that is opened twice counts once, with the sum of both."""

    def __init__(self) -> None:
        self._all: list[Retries] = []

    def add(self, retries: Retries) -> None:
        """From now on its calls are among the totals."""
        self._all.append(retries)

    def totals(self) -> Iterable[tuple[ModelName, ModelTotals]]:
        """Of each model, from counters that are kept anyway."""
        found: dict[ModelName, ModelTotals] = {}
        for retries in self._all:
            name = ModelName(retries.kind, retries.model)
            totals = found.setdefault(name, ModelTotals(0, 0, 0, {lane: WaitCount() for lane in LANES}))
            totals.refused += retries.refused
            totals.resting = max(totals.resting, retries.turns.keys.resting())
            totals.keys = len(retries.turns.keys)
            for lane, count in retries.turns.counts.items():
                totals.lanes[lane].waits += count.waits
                totals.lanes[lane].seconds += count.seconds
                totals.lanes[lane].given_up += count.given_up
        return found.items()
