"""How long tasks take: what a worker tells of the last hour."""

import time
from collections import deque
from collections.abc import Callable

from internal.entities.tasks import Queue, Task
from internal.entities.waiting import ServiceTime, size_class

HOUR = 3600.0
KEPT = 100
"""Times of a queue, kind and size class: the latest tell most."""


class Stopwatch:
    """Times of tasks that ended well, by queue, kind and size of their file."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[tuple[Queue, str, int], deque[tuple[float, float]]] = {}

    def note(self, task: Task, seconds: float) -> None:
        """A task took so long."""
        name = task.queue, task.kind, size_class(task.size)
        self._times.setdefault(name, deque(maxlen=KEPT)).append((self._clock(), seconds))

    def services(self) -> list[ServiceTime]:
        """Means of the last hour."""
        found: list[ServiceTime] = []
        for (queue, kind, size), times in self._times.items():
            while times and times[0][0] < self._clock() - HOUR:
                times.popleft()
            if times:
                mean = sum(seconds for _at, seconds in times) / len(times)
                found.append(ServiceTime(queue=queue, kind=kind, size_class=size, count=len(times), seconds=mean))
        return found
