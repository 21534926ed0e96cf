"""When the evidence for an answer is enough."""

import numpy as np
import pytest

from internal.services.evidence import FEW, MANY, Evidence
from internal.services.late_interaction import likeness


def evidence(*, crosses: bool = False, asked_in: str = "en", relevance: float = 0.56) -> Evidence:
    return Evidence(
        relevance=relevance,
        above_rest=0.46,
        sentence_coverage=0.75,
        passage_coverage=0.75,
        crosses_languages=crosses,
        asked_in=asked_in,
    )


def test_what_is_the_best_of_many_has_to_say_more() -> None:
    values = [evidence().confidence(extent, 0.3) for extent in (0, FEW, 20, 100, MANY, 100_000)]
    assert values[0] == values[1] > values[2] > values[3] > values[4] == values[5]
    assert values[0] > 0 > values[5]


@pytest.mark.parametrize("asked_in", ["en", "zh"])
def test_more_of_each_kind_of_evidence_says_more(asked_in: str) -> None:
    usual = evidence(asked_in=asked_in).confidence(MANY, 0.3)
    assert evidence(asked_in=asked_in, relevance=0.6).confidence(MANY, 0.3) > usual
    assert evidence(asked_in=asked_in).confidence(MANY, 0.4) > usual
    assert evidence(asked_in=asked_in).confidence(FEW, 0.4) == evidence(asked_in=asked_in).confidence(FEW, 0.3)
    assert evidence(relevance=0.6).plausibility() > evidence().plausibility()


def test_across_languages_the_number_of_passages_does_not_count() -> None:
    assert evidence(crosses=True).confidence(FEW, 0.1) == evidence(crosses=True).confidence(MANY, 0.9)
    assert evidence(crosses=True).confidence(MANY, 0.5) == evidence(crosses=True).plausibility()


def test_likeness_is_the_mean_of_the_best_cosines() -> None:
    signs = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 1, -1, 1, -1]], np.float32)
    codes = np.packbits(signs > 0, axis=1).tobytes()
    assert likeness(signs, codes) == pytest.approx(1.0)
    assert likeness(-signs[:1], codes) == pytest.approx(0.0)  # the second is orthogonal to it, the first its opposite
    assert likeness(np.concatenate([3 * signs[:1], -signs[:1]]), codes) == pytest.approx(0.75)
    assert likeness(signs, b"") == 0.0
    assert likeness(np.zeros((0, 8), np.float32), codes) == 0.0
