"""Codes of tokens and their comparison, against the plain formula."""

from uuid import UUID

import numpy as np
import pytest

from internal.entities.parsed import Location
from internal.entities.search import COVERED, SearchHit, share_of_words
from internal.models.token_codes import (
    CENTRE,
    COMMON,
    DIMENSION,
    MOST_QUERY_TOKENS,
    TokenCoder,
    _rotation,  # pyright: ignore[reportPrivateUsage]
)
from internal.services.late_interaction import WEIGHT, rerank, scores, weight

FRAME = 4
RARE, USUAL = 12.0, 2.0


def coder(*rarity: float) -> TokenCoder:
    return TokenCoder(np.array(rarity, np.float16))


def window(*tokens: int) -> list[int]:
    """Ids of a text between what stands around it."""
    return [0] * FRAME + list(tokens) + [0]


def states(count: int, seed: int = 1) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return drawn * 0.2 + CENTRE


def hit(score: float) -> SearchHit:
    return SearchHit(
        chunk_id=UUID(int=1),
        document_id=UUID(int=2),
        filename="a.txt",
        source_type="document",
        text="",
        score=score,
        location=Location(),
    )


def test_the_rotation_is_orthogonal_and_always_the_same() -> None:
    made = _rotation()
    assert np.abs(made @ made.T - np.eye(DIMENSION)).max() < 1e-4
    # What is stored stays comparable: these must never change.
    assert (made[0, :6] * 128**1.5).round().tolist() == [4, 109, -27, 10, 19, -31]


def test_bits_stand_for_the_angle_between_tokens() -> None:
    made = coder(USUAL, RARE)
    near, far = states(1)[0], states(1, seed=2)[0]
    text = states(FRAME + 2)
    text[FRAME] = near
    query = np.frombuffer(made.query(window(1), text), "<f2").reshape(-1, DIMENSION).astype(np.float32)
    passages = []
    for token in (near, 0.5 * near + 0.5 * far, far):
        text[FRAME] = token
        passages.append(made.passage(window(1), text))
    same, between, other = scores(query, passages)
    assert same == pytest.approx((2 / np.pi) ** 0.5, abs=0.05), "the mean absolute coordinate of a unit vector"
    assert abs(other) < 0.2 < between < same


def test_scores_are_the_plain_formula() -> None:
    draw = np.random.default_rng(3)
    query = draw.standard_normal((5, DIMENSION)).astype(np.float32)
    lengths = (1, 700, 3, 512)
    signs = [draw.integers(0, 2, (length, DIMENSION)).astype(np.uint8) for length in lengths]
    found = scores(query, [np.packbits(bits, axis=1).tobytes() for bits in signs])
    plain = [(query @ (bits.astype(np.float32) * 2 - 1).T).max(axis=1).sum() for bits in signs]
    assert found == pytest.approx(plain, rel=1e-4)


def test_of_a_long_query_the_rarest_tokens_are_kept_and_weigh_one_together() -> None:
    made = coder(USUAL, *np.linspace(5, 15, 60))
    ids = window(*range(1, 61))
    coded = np.frombuffer(made.query(ids, states(len(ids))), "<f2").reshape(-1, DIMENSION).astype(np.float32)
    assert len(coded) == MOST_QUERY_TOKENS
    weights = np.linalg.norm(coded, axis=1) * DIMENSION**0.5
    assert weights.sum() == pytest.approx(1, abs=0.01)
    assert (np.diff(weights) > 0).all(), "in the order of the text, which is that of rarity here"


def test_common_pieces_of_a_passage_are_left_out_unless_there_are_no_others() -> None:
    made = coder(USUAL, RARE, COMMON - 1)
    assert len(made.passage(window(1, 2, 1, 2), states(FRAME + 5))) == 2 * DIMENSION // 8
    assert len(made.passage(window(2, 2), states(FRAME + 3))) == 2 * DIMENSION // 8


def test_tokens_count_where_words_say_nothing() -> None:
    assert weight(0) == WEIGHT
    assert weight(COVERED) == weight(1) == 0
    assert 0 < weight(COVERED / 2) < WEIGHT
    assert (share_of_words(0.05), share_of_words(0.125), share_of_words(0.9)) == (0, pytest.approx(0.5), 1)


def test_an_order_is_made_of_both_scores() -> None:
    hits = [hit(2), hit(1), hit(0)]
    assert sorted(range(3), key=lambda i: -rerank(hits, [0.1, 0.2, 0.9], WEIGHT)[i]) == [2, 0, 1]
    assert sorted(range(3), key=lambda i: -rerank(hits, [0.1, 0.2, 0.9], 0.1)[i]) == [0, 1, 2]
    assert rerank(hits, [0.5, 0.5, 0.5], 3.0) == pytest.approx(rerank(hits, [0.5, None, None], 3.0))
    assert rerank(hits[:1], [0.4], 3.0) == [0.0]
