"""Bounds on how much may wait. What is over the bound is refused at once, so that the caller can come back."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from pkg.apperr import AppError, Code


class Bound(NamedTuple):
    """At most `capacity` pieces of work wait or run; a refused caller should come back after `retry_after` seconds."""

    capacity: int
    retry_after: float


class Admission:
    """Counts the work of each queue; `on_refusal` hears which was full. Used from one event loop."""

    def __init__(self, bounds: Mapping[str, Bound], *, on_refusal: Callable[[str], None]) -> None:
        self._bounds = dict(bounds)
        self._on_refusal = on_refusal
        self._depths = dict.fromkeys(bounds, 0)

    @property
    def depths(self) -> dict[str, int]:
        """Pieces of work that wait or run, by queue."""
        return dict(self._depths)

    @contextmanager
    def admit(self, queue: str, pieces: int = 1) -> Generator[None]:
        """Holds a place for `pieces` during the block. Raises `queue.full`."""
        bound = self._bounds[queue]
        if self._depths[queue] + pieces > bound.capacity:
            self._on_refusal(queue)
            raise AppError(
                Code.QUEUE_FULL,
                f"the models have too much waiting in the queue {queue}; try again in {bound.retry_after:.0f} s",
                retry_after=bound.retry_after,
            )
        self._depths[queue] += pieces
        try:
            yield
        finally:
            self._depths[queue] -= pieces
