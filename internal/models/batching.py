"""Forms the texts of many callers into batches, in two lanes: queries never wait behind ingest.

Each thread of the ingest lane and the one thread of the interactive lane has a replica of its own over the same
weights, so that a query starts at once; the operating system shares the cores between them. Measured on two cores by
tests/bench/models.py: while ingest floods, a query's p95 is 2.1 times its idle one, and ingest keeps 89 % of its rate.
"""

import asyncio
import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import NamedTuple

from internal.models.embedding import Encoded, Work

Forward = Callable[[Sequence[Work]], Sequence[Encoded]]


class Lane(StrEnum):
    """Who waits: a person for an interactive text, a worker for ingest."""

    INTERACTIVE = "interactive"
    INGEST = "ingest"


class LaneShape(NamedTuple):
    """`threads` batches at a time of at most `tokens` padded tokens, of texts whose lengths differ by `spread`."""

    threads: int
    tokens: int
    spread: int


INGEST_TOKENS = 256
"""About 30 ms on one core at 8,000 tokens a second; more in a batch is no faster. One full window takes 100 ms."""
INTERACTIVE_TOKENS = 1024
POSITIONS = 512


def lanes(threads: int) -> dict[Lane, LaneShape]:
    """The lanes of a process that may use `threads` cores."""
    return {
        Lane.INTERACTIVE: LaneShape(1, INTERACTIVE_TOKENS, POSITIONS),
        Lane.INGEST: LaneShape(threads, INGEST_TOKENS, 32),
    }


class Job:
    """One caller's texts; its future resolves to what became of each, in the caller's order."""

    def __init__(self, size: int, future: "asyncio.Future[list[Encoded]]") -> None:
        self.future = future
        self._rows: list[Encoded | None] = [None] * size
        self._left = size

    def put(self, position: int, row: Encoded) -> None:
        """Takes one result; the last one resolves the future."""
        self._rows[position] = row
        self._left -= 1
        if self._left == 0 and not self.future.done():
            self.future.set_result([row for row in self._rows if row is not None])

    def fail(self, error: Exception) -> None:
        """Passes the error on, once."""
        if not self.future.done():
            self.future.set_exception(error)


class Item(NamedTuple):
    """One text of a job."""

    work: Work
    job: Job
    position: int


class FairQueue:
    """Texts that wait in one lane, in buckets of similar length, fairly between jobs.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996) with tokens as the cost: a small job that comes late is
    served between the texts of a large one. Texts of jobs that ended are dropped when they are met.
    """

    def __init__(self, shape: LaneShape) -> None:
        self._shape = shape
        self._buckets: dict[int, list[tuple[int, int, Item]]] = {}
        self._virtual_time = 0
        self._arrivals = 0

    def add(self, job: Job, works: Sequence[Work]) -> None:
        """Queues the texts of `job`."""
        start = self._virtual_time
        for position, work in enumerate(works):
            bucket = self._buckets.setdefault(-(-len(work) // self._shape.spread), [])
            heapq.heappush(bucket, (start, self._arrivals, Item(work, job, position)))
            start += len(work)
            self._arrivals += 1

    def take(self) -> list[Item]:
        """The next batch: the text that is due first, and others of about its length. Empty when none waits."""
        for width in list(self._buckets):
            self._drop_ended(width)
        if not self._buckets:
            return []
        width = min(self._buckets, key=lambda candidate: self._buckets[candidate][0])
        self._virtual_time = max(self._virtual_time, self._buckets[width][0][0])
        batch: list[Item] = []
        longest = 0
        while width in self._buckets:
            item = self._buckets[width][0][2]
            longest = max(longest, len(item.work))
            if batch and longest * (len(batch) + 1) > self._shape.tokens:
                break
            heapq.heappop(self._buckets[width])
            batch.append(item)
            self._drop_ended(width)
        return batch

    def _drop_ended(self, width: int) -> None:
        """Brings a text of a living job to the front of the bucket, or removes the bucket."""
        bucket = self._buckets[width]
        while bucket and bucket[0][2].job.future.done():
            heapq.heappop(bucket)
        if not bucket:
            del self._buckets[width]


class LaneRunner:
    """The threads of one lane and the queue they are fed from. Lives on one event loop.

    `reserve` says how many of the threads must stay free at the moment; `on_change` hears when the lane begins or
    ends to be busy.
    """

    def __init__(
        self, name: str, shape: LaneShape, forward: Forward, reserve: Callable[[], int], on_change: Callable[[], None]
    ) -> None:
        self._queue = FairQueue(shape)
        self._forward = forward
        self._reserve = reserve
        self._on_change = on_change
        self._threads = ThreadPoolExecutor(shape.threads, thread_name_prefix=name)
        self._free = shape.threads
        self._size = shape.threads
        self._running: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """True while a batch of this lane runs."""
        return self._free < self._size

    async def embed(self, works: Sequence[Work]) -> list[Encoded]:
        """What becomes of `works`. Cancelling the call drops those of its texts that still wait."""
        future: asyncio.Future[list[Encoded]] = asyncio.get_running_loop().create_future()
        self._queue.add(Job(len(works), future), works)
        self.start()
        return await future

    def start(self) -> None:
        """Hands a batch to each thread that may work, as long as any text waits."""
        while self._free > self._reserve() and (batch := self._queue.take()):
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def close(self) -> None:
        """Ends the threads after the batches that run."""
        self._threads.shutdown(wait=False)

    async def _run(self, batch: list[Item]) -> None:
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._threads, self._forward, [item.work for item in batch])
        except Exception as error:  # noqa: BLE001 - whatever it was, it belongs to the callers
            for item in batch:
                item.job.fail(error)
        else:
            for item, row in zip(batch, rows, strict=True):
                item.job.put(item.position, row)
        finally:
            self._free += 1
            self.start()
            self._on_change()


class Batcher:
    """Both lanes over one model. `forward` embeds texts and may be called by several threads.

    While a query runs, ingest starts no batch on its last thread but one, so that a core falls to the query; one
    thread of ingest always goes on, so that queries without a pause don't starve it.
    """

    def __init__(self, forward: Forward, shapes: dict[Lane, LaneShape]) -> None:
        spare = min(1, shapes[Lane.INGEST].threads - 1)
        queries = LaneRunner(
            Lane.INTERACTIVE.value,
            shapes[Lane.INTERACTIVE],
            forward,
            reserve=lambda: 0,
            on_change=lambda: ingest.start(),  # noqa: PLW0108 - ingest is made below
        )
        ingest = LaneRunner(
            Lane.INGEST.value,
            shapes[Lane.INGEST],
            forward,
            reserve=lambda: spare if queries.busy else 0,
            on_change=lambda: None,
        )
        self._runners = {Lane.INTERACTIVE: queries, Lane.INGEST: ingest}

    async def embed(self, lane: Lane, works: Sequence[Work]) -> list[Encoded]:
        """What became of each text, in order; `works` isn't empty."""
        return await self._runners[lane].embed(works)

    def close(self) -> None:
        """Ends the threads of both lanes."""
        for runner in self._runners.values():
            runner.close()
