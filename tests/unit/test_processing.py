"""Which files a trial reads, and what is said of two readings."""

from uuid import UUID

import numpy as np
import pytest

from internal.entities.documents import Chunk
from internal.entities.ids import new_id
from internal.entities.parsed import Location
from internal.entities.processing import Switch
from internal.services.processing import PASSAGES, PROCESSINGS, few, mirrored, processing_of
from internal.services.shadow import Reading, compare
from pkg.apperr import AppError, Code


def reading(*texts: str, vectors: list[list[float]] | None = None) -> Reading:
    chunks = [
        Chunk(id=new_id(), ordinal=number, hash=b"", text_hash=b"", text=text, tokens=2, location=Location(), parts=())
        for number, text in enumerate(texts)
    ]
    found = np.array(vectors or [[1.0, 0.0]] * len(texts), np.float32).reshape(len(texts), 2)
    return Reading(chunks, found, len(texts), 2 * len(texts))


def test_a_share_is_a_share_and_always_the_same_one() -> None:
    tasks = [UUID(int=number) for number in range(4000)]
    chosen = [task for task in tasks if mirrored(task, 0.05)]
    assert 150 < len(chosen) < 250
    assert chosen == [task for task in tasks if mirrored(task, 0.05)]
    assert set(chosen) <= {task for task in tasks if mirrored(task, 0.2)}
    assert not any(mirrored(task, 0.0) for task in tasks)
    assert all(mirrored(task, 1.0) for task in tasks)


def test_an_unknown_version_is_left_to_other_workers() -> None:
    assert processing_of("1") is PROCESSINGS["1"]
    with pytest.raises(AppError, match="version 99") as raised:
        processing_of("99")
    assert raised.value.code is Code.MODEL_UNAVAILABLE


def test_a_switch_takes_few_passages_at_a_time_and_large_files_alone() -> None:
    small = [Switch(new_id(), new_id(), new_id(), chunks=3) for _ in range(900)]
    large = Switch(new_id(), new_id(), new_id(), chunks=PASSAGES + 1)
    assert len(few(small)) == PASSAGES // 3
    assert few([large, *small]) == [large]
    assert few([*small[:2], large]) == small[:2]
    assert few([]) == []


def test_the_same_text_cut_otherwise_is_kept() -> None:
    found = compare(reading("One is here. Two is there."), reading("One is here.", "Two is there."), 1.5)
    assert (found.text_kept, found.text_added, found.chunks_same) == (1.0, 0.0, 0.0)
    assert (found.chunks_before, found.chunks_after, found.seconds) == (1, 2, 1.5)


def test_what_is_lost_and_what_is_new_shows() -> None:
    found = compare(
        reading("One is here.", "Two is there.", vectors=[[1, 0], [0, 1]]),
        reading("One is here.", "Three is new.", vectors=[[2, 0], [1, 1]]),
        0.0,
    )
    assert (found.text_kept, found.text_added, found.chunks_same) == (0.5, 0.5, 0.5)
    assert found.vectors_mean == pytest.approx((1 + 0.5**0.5) / 2)
    assert found.vectors_least == pytest.approx(0.5**0.5)


def test_nothing_against_something() -> None:
    empty = reading()
    assert compare(empty, empty, 0.0).text_kept == 1.0
    assert compare(empty, reading("New."), 0.0).text_added == 1.0
    lost = compare(reading("Old."), empty, 0.0)
    assert (lost.text_kept, lost.chunks_same, lost.vectors_mean) == (0.0, 0.0, None)
