"""Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): a passage is worth what others don't say."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def varied(scores: Sequence[float], vectors: Floats, *, count: int, diversity: float) -> list[int]:
    """The places of up to `count` passages, in the order to show them.

    `vectors` are unit vectors, one row for each of `scores`. With `diversity` 0 the best come as they are, with 1
    each is the one that is least like those before it; scores are spread over 0 to 1 first, as cosines between
    passages are.
    """
    if not scores:
        return []
    relevance = np.asarray(scores, np.float64)
    spread = float(np.ptp(relevance))
    relevance = (relevance - relevance.min()) / spread if spread > 0 else np.ones_like(relevance)
    alike = vectors @ vectors.T
    nearest = np.zeros(len(relevance))
    chosen: list[int] = []
    left = np.ones(len(relevance), bool)
    while left.any() and len(chosen) < count:
        worth = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        best = int(worth.argmax()) if chosen else int(relevance.argmax())
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, alike[best])
    return chosen
