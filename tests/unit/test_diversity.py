"""Maximal marginal relevance, on vectors whose likeness is plain to see."""

import numpy as np
import pytest

from internal.services.diversity import varied

# Two that say the same, one close to them, and one apart.
VECTORS = np.array([[1, 0, 0], [1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
SCORES = [0.9, 0.89, 0.8, 0.4]


@pytest.mark.parametrize(
    ("diversity", "order"),
    [(0.0, [0, 1, 2, 3]), (0.48, [0, 2, 1, 3]), (0.6, [0, 3, 2, 1]), (1.0, [0, 3, 2, 1])],
)
def test_the_more_diversity_the_later_comes_what_was_said(diversity: float, order: list[int]) -> None:
    assert varied(SCORES, VECTORS, count=4, diversity=diversity) == order
    assert varied(SCORES, VECTORS, count=2, diversity=diversity) == order[:2]


def test_the_best_comes_first_whatever_is_asked() -> None:
    assert varied([0.1, 0.2, 0.9], np.eye(3, dtype=np.float32), count=1, diversity=1.0) == [2]


def test_equal_scores_and_single_passages_are_no_trouble() -> None:
    assert varied([0.5, 0.5], np.eye(2, dtype=np.float32), count=5, diversity=0.3) == [0, 1]
    assert varied([0.5], np.eye(1, dtype=np.float32), count=5, diversity=1.0) == [0]
    assert varied([], np.empty((0, 3), np.float32), count=5, diversity=0.5) == []
