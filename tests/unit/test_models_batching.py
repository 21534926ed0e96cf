"""Lanes, batches, fairness and bounds, proven by structure: work is held at gates, never timed."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from internal.models.admission import Admission, Bound
from internal.models.batching import Batcher, FairQueue, Job, Lane, LaneShape, lanes
from internal.models.embedding import Encoded, Work
from internal.models.lifecycle import OnDemand
from pkg.apperr import AppError, Code

INGEST_TEXT = 1
QUERY_TEXT = 2


class GatedModel:
    """Holds every batch whose first id is in `held` until `open` is called, and writes down what it saw."""

    def __init__(self, *held: int) -> None:
        self._held = set(held)
        self._gate = threading.Event()
        self._seen = threading.Condition()
        self.batches: list[list[list[int]]] = []

    def forward(self, works: Sequence[Work]) -> list[Encoded]:
        with self._seen:
            self.batches.append([work.ids for work in works])
            self._seen.notify_all()
        if works[0].ids[0] in self._held:
            assert self._gate.wait(30)
        return [Encoded(np.array([work.ids[-1], len(work)], np.float32), b"") for work in works]

    def open(self) -> None:
        self._gate.set()

    async def saw(self, batches: int) -> None:
        def wait() -> None:
            with self._seen:
                assert self._seen.wait_for(lambda: len(self.batches) >= batches, 30)

        await asyncio.to_thread(wait)


def texts(sequences: Sequence[list[int]]) -> list[Work]:
    return [Work(ids) for ids in sequences]


def numbers(rows: Sequence[Encoded]) -> list[list[float]]:
    return [row.vector.tolist() for row in rows]


def job() -> Job:
    return Job(1000, asyncio.get_running_loop().create_future())


async def test_vectors_come_back_in_the_callers_order() -> None:
    batcher = Batcher(GatedModel().forward, lanes(2))
    sequences = [[7] * length + [index] for index, length in enumerate((300, 3, 90, 500, 4, 91, 2))]
    rows = await batcher.embed(Lane.INGEST, texts(sequences))
    assert numbers(rows) == [[index, len(ids)] for index, ids in enumerate(sequences)]
    batcher.close()


async def test_queries_pass_ingest_that_holds_every_thread() -> None:
    model = GatedModel(INGEST_TEXT)
    batcher = Batcher(model.forward, lanes(2))
    flood = [asyncio.ensure_future(batcher.embed(Lane.INGEST, texts([[INGEST_TEXT] * 200] * 50))) for _ in range(3)]
    await model.saw(2)
    rows = await asyncio.wait_for(batcher.embed(Lane.INTERACTIVE, texts([[QUERY_TEXT, 9]])), 30)
    assert numbers(rows) == [[9, 2]]
    assert not any(caller.done() for caller in flood)
    model.open()
    assert [len(rows) for rows in await asyncio.gather(*flood)] == [50] * 3
    batcher.close()


@pytest.mark.parametrize(("threads", "batches"), [(1, 2), (2, 2), (4, 4)])
async def test_ingest_leaves_a_core_to_a_query_but_never_stops(threads: int, batches: int) -> None:
    model = GatedModel(QUERY_TEXT, INGEST_TEXT)
    batcher = Batcher(model.forward, lanes(threads))
    query = asyncio.ensure_future(batcher.embed(Lane.INTERACTIVE, texts([[QUERY_TEXT]])))
    await model.saw(1)
    ingest = asyncio.ensure_future(batcher.embed(Lane.INGEST, texts([[INGEST_TEXT] * 300] * 8)))
    await model.saw(batches)
    assert len(model.batches) == batches, "the query and all ingest threads but one, at least one"
    model.open()
    await asyncio.gather(query, ingest)
    batcher.close()


async def test_waiting_queries_are_batched_together() -> None:
    model = GatedModel(QUERY_TEXT)
    batcher = Batcher(model.forward, lanes(1))
    first = asyncio.ensure_future(batcher.embed(Lane.INTERACTIVE, texts([[QUERY_TEXT]])))
    await model.saw(1)
    others = [asyncio.ensure_future(batcher.embed(Lane.INTERACTIVE, texts([[3, number]]))) for number in range(5)]
    await asyncio.sleep(0)
    model.open()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in model.batches] == [1, 5]
    batcher.close()


async def test_texts_of_a_caller_that_left_are_dropped() -> None:
    model = GatedModel(INGEST_TEXT)
    batcher = Batcher(model.forward, lanes(1))
    stays = asyncio.ensure_future(batcher.embed(Lane.INGEST, texts([[INGEST_TEXT] * 200] * 2)))
    await model.saw(1)
    leaves = asyncio.ensure_future(batcher.embed(Lane.INGEST, texts([[5] * 200] * 40)))
    await asyncio.sleep(0)
    leaves.cancel()
    model.open()
    await stays
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert all(ids[0] == INGEST_TEXT for batch in model.batches for ids in batch)
    batcher.close()


async def test_an_error_reaches_every_caller_of_its_batch_and_work_goes_on() -> None:
    failing = threading.Event()
    failing.set()

    def forward(works: Sequence[Work]) -> list[Encoded]:
        if failing.is_set():
            raise RuntimeError("out of memory")
        return [Encoded(np.zeros(2, np.float32), b"") for _ in works]

    batcher = Batcher(forward, lanes(2))
    for lane in Lane:
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.embed(lane, texts([[1], [2]]))
    failing.clear()
    assert numbers(await batcher.embed(Lane.INGEST, texts([[1]]))) == [[0, 0]]
    batcher.close()


async def test_batches_hold_texts_of_like_length_within_the_budget() -> None:
    queue = FairQueue(LaneShape(1, tokens=256, spread=32))
    queue.add(job(), [[0] * length for length in (10, 200, 20, 30, 210, 100, 110, 512, 31)])
    batches = []
    while batch := queue.take():
        batches.append(sorted(len(item.work) for item in batch))
    assert sorted(batches) == [[10, 20, 30, 31], [100, 110], [200], [210], [512]]
    for lengths in batches:
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= 256


async def test_a_small_job_does_not_wait_for_a_large_one() -> None:
    queue = FairQueue(LaneShape(1, tokens=200, spread=32))
    large, small = job(), job()
    queue.add(large, [[0] * 100] * 100)
    for _ in range(10):
        queue.take()
    queue.add(small, [[0] * 100] * 4)
    served = [item.job for _ in range(6) for item in queue.take()]
    assert served.count(small) == 4


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    refused: list[str] = []
    admission = Admission({"ocr": Bound(2, 5.0)}, on_refusal=refused.append)
    with admission.admit("ocr", 2):
        with pytest.raises(AppError) as caught, admission.admit("ocr"):
            pass
        assert (caught.value.code, caught.value.retry_after) == (Code.QUEUE_FULL, 5.0)
        assert (admission.depths, refused) == ({"ocr": 2}, ["ocr"])
    with admission.admit("ocr"):
        assert admission.depths == {"ocr": 1}


async def test_a_model_is_loaded_once_kept_while_used_and_released_when_idle() -> None:
    now = [0.0]
    loads: list[object] = []
    released: list[object] = []

    def load() -> object:
        loads.append(object())
        return loads[-1]

    model = OnDemand("test", load, released.append, idle_seconds=10, clock=lambda: now[0])

    async def use() -> object:
        async with model.use() as found:
            return found

    assert not model.loaded
    assert len(set(map(id, await asyncio.gather(*(use() for _ in range(5)))))) == 1
    assert len(loads) == 1
    now[0] = 9.0
    assert not await model.release_if_idle()
    now[0] = 10.0
    async with model.use():
        now[0] = 50.0
        assert not await model.release_if_idle()
        assert not await model.release()
    assert not await model.release_if_idle(), "the idle time begins when the last user ends"
    now[0] = 60.0
    assert await model.release_if_idle()
    assert (model.loaded, released) == (False, loads)
    await use()
    assert len(loads) == 2


async def test_a_failed_load_is_tried_again() -> None:
    outcomes: list[object] = [AppError(Code.MODEL_UNAVAILABLE, "no weights"), "model"]

    def load() -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, AppError):
            raise outcome
        return outcome

    model = OnDemand("test", load, lambda _: None, idle_seconds=10)
    with pytest.raises(AppError, match="no weights"):
        async with model.use():
            pass
    async with model.use() as found:
        assert found == "model"
