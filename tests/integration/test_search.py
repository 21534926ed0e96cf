"""Search through the database function: who finds what, and that filters never shorten an answer."""

import asyncio
import math
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from internal.entities.ids import new_id
from internal.entities.search import Filters
from internal.repositories.search_function import EXACT_CHUNKS, LENGTH_SHARE, SATURATION, USUAL_LENGTH
from tests.library import SPACE, Library, embed
from tests.servers import Database

MANY = EXACT_CHUNKS + 300


@pytest.fixture(scope="module")
async def library(module_database: Database) -> AsyncGenerator[Library]:
    opened = await Library.open(module_database)
    yield opened
    await opened.close()


async def test_chinese_substring_and_english_stem(library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["供应商须在三十天内退还全部预付款", "今天天气很好"], name="合同.txt")
    await library.add(ctx, ["The suppliers refunded every prepayment.", "It rained."], name="contract.txt")
    for query, name in (("退还全部", "合同.txt"), ("supplier refund", "contract.txt"), ("SUPPLIERS", "contract.txt")):
        hits = await library.search(ctx, query, mode="keyword")
        assert [hit.filename for hit in hits] == [name]
        assert hits[0].location.page == 1
        assert hits[0].score >= (hits[0].keyword or 0) > 0


async def test_modes_fill_what_they_compute(library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["alpha beta", "gamma delta", "epsilon"])
    vector = await library.search(ctx, "alpha", mode="vector")
    assert vector[0].text == "alpha beta"
    assert len(vector) == 3
    assert all(hit.keyword is None and hit.score == hit.similarity for hit in vector)
    hybrid = await library.search(ctx, "alpha", mode="hybrid")
    assert len(hybrid) == 3
    assert hybrid[0].text == "alpha beta"
    assert all(hit.keyword is not None and hit.similarity is not None for hit in hybrid)


async def test_hybrid_is_the_gated_combination(library: Library) -> None:
    """Against the formula computed here: z-scores over the union, words weighted by what they cover."""
    ctx = await library.tenant()
    rng = np.random.default_rng(7)
    words = [f"word{n}" for n in range(120)]  # so many that fewer than 100 passages match: no ties at the cut
    texts = [" ".join(rng.choice(words, 12)) for _ in range(250)]
    await library.add(ctx, texts)
    query = "word1 word2 word3"
    found = await library.find(ctx, query, k=10)
    dense = np.array([embed(text) @ embed(query) for text in texts])
    bm25, most = _bm25(texts, query)
    union = sorted({*np.argsort(-dense)[:100], *[n for n in np.argsort(-bm25)[:100] if bm25[n] > 0]})
    coverage = bm25.max() / most
    share = 0.5 * min(max((coverage - 0.05) / 0.15, 0), 1)
    z = [(v[union] - v[union].mean()) / v[union].std() for v in (dense, bm25)]
    fused = (1 - share) * z[0] + share * z[1]
    expected = sorted(zip(fused, union, strict=True), reverse=True)[:10]
    assert found.coverage == pytest.approx(coverage, rel=1e-3)
    assert [hit.score for hit in found.hits] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert {hit.text for hit in found.hits} == {texts[n] for _, n in expected}


async def test_bm25_has_frequencies_of_the_tenant_alone(library: Library) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    texts = ["red fish blue fish", "red bird", "green turtle swims home"]
    await library.add(ctx, texts)
    before = [hit.keyword for hit in await library.search(ctx, "red fish", mode="keyword")]
    scores, _ = _bm25(texts, "red fish")
    assert before == pytest.approx(sorted((s for s in scores if s > 0), reverse=True), rel=1e-4)
    for _ in range(3):
        await library.add(other, ["red red red fish", "fish"])
    assert [hit.keyword for hit in await library.search(ctx, "red fish", mode="keyword")] == before


async def test_nothing_crosses_between_tenants(library: Library) -> None:
    ctx, other = await library.tenant(), await library.tenant()
    mine = await library.add(ctx, ["the same words in both"])
    theirs = await library.add(other, ["the same words in both"])
    for mode in ("hybrid", "vector", "keyword"):
        assert [h.document_id for h in await library.search(ctx, "same words", mode=mode)] == [mine.document]
        assert [h.document_id for h in await library.search(other, "same words", mode=mode)] == [theirs.document]
    ids = Filters(document_ids=[theirs.document])
    assert await library.search(ctx, "same words", filters=ids) == []
    assert await library.search(await library.tenant(), "same words") == []


async def test_private_documents_are_their_owners(library: Library) -> None:
    owner = await library.tenant()
    member = await library.member(owner.tenant_id)
    await library.add(owner, ["secret salary list"], visibility="private", name="private.txt")
    await library.add(owner, ["public salary scale"], name="public.txt")
    for mode in ("hybrid", "vector", "keyword"):
        assert len(await library.search(owner, "salary", mode=mode)) == 2
        assert [h.filename for h in await library.search(member, "salary", mode=mode)] == ["public.txt"]


async def test_only_published_passages_are_found_and_counted(library: Library) -> None:
    ctx = await library.tenant()
    entry = await library.add(ctx, ["zebra crossing"], published=False)
    await library.add(ctx, ["horse"])
    assert [h.text for h in await library.search(ctx, "zebra")] == ["horse"]
    await library.owner.execute(
        "update documents set generation_id = $3 where tenant_id = $1 and id = $2",
        ctx.tenant_id,
        entry.document,
        entry.generation,
    )
    async with library.worker.tenant(ctx) as tx:
        await tx.lexicon.publish(entry.generation)
        await tx.lexicon.publish(entry.generation)
    assert await _counts(library, ctx.tenant_id) == (2, 3)
    assert [h.text for h in await library.search(ctx, "zebra", mode="keyword")] == ["zebra crossing"]
    async with library.worker.tenant(ctx) as tx:
        await tx.lexicon.retire(entry.generation)
        await tx.lexicon.retire(entry.generation)
        await tx.chunks.remove(entry.generation, limit=10)
    assert await _counts(library, ctx.tenant_id) == (1, 1)
    assert [h.text for h in await library.search(ctx, "zebra")] == ["horse"]


async def test_each_filter_narrows(library: Library) -> None:
    ctx = await library.tenant()
    member = await library.member(ctx.tenant_id)
    shelf = new_id()
    await library.owner.execute(
        "insert into collections (tenant_id, id, name) values ($1, $2, 'shelf')", ctx.tenant_id, shelf
    )
    old = datetime(2020, 1, 1, tzinfo=UTC)
    plain = await library.add(ctx, ["common word one"])
    photo = await library.add(ctx, ["common word two"], source_type="photo")
    tagged = await library.add(ctx, ["common word three"], tags=["a", "b"])
    shelved = await library.add(ctx, ["common word four"], collection=shelf)
    aged = await library.add(ctx, ["common word five"], created_at=old)
    own = await library.add(member, ["common word six"])
    cases = [
        (Filters(source_types=["photo"]), [photo]),
        (Filters(document_ids=[plain.document, aged.document]), [plain, aged]),
        (Filters(collections=["shelf"]), [shelved]),
        (Filters(collections=[str(shelf)]), [shelved]),
        (Filters(collections=["no such"]), []),
        (Filters(tags=["b", "a"]), [tagged]),
        (Filters(tags=["b", "z"]), []),
        (Filters(created_before=old + timedelta(days=1)), [aged]),
        (Filters(created_after=old), [plain, photo, tagged, shelved, aged, own]),
        (Filters(created_before=old), []),
        (Filters(source_types=["photo"], tags=["a"]), []),
    ]
    for mode in ("hybrid", "vector", "keyword"):
        for filters, expected in cases:
            hits = await library.search(ctx, "common word", mode=mode, filters=filters)
            assert {h.document_id for h in hits} == {e.document for e in expected}, (mode, filters)
        hits = await library.search(member, "common word", mode=mode, filters=Filters(mine=True))
        assert [h.document_id for h in hits] == [own.document]


async def test_filters_and_visibility_never_shorten_an_answer(library: Library) -> None:
    """Far more passages are nearer to the query than the few that may be shown."""
    ctx = await library.tenant()
    member = await library.member(ctx.tenant_id)
    texts = [f"near word{n}" for n in range(MANY)]
    await library.add(ctx, texts, visibility="private")
    await library.add(ctx, [f"far{n} away{n} thing{n}" for n in range(12)], tags=["few"])
    await library.add(ctx, [f"distant{n} odd{n}" for n in range(MANY)], tags=["lot"], visibility="private")
    async with library.worker.tenant(ctx) as tx:
        await tx.vectors.analyze(SPACE)
    for mode in ("hybrid", "vector"):
        assert len(await library.search(ctx, "near word1", mode=mode)) == 10
        assert len(await library.search(ctx, "near", mode=mode, filters=Filters(tags=["few"]))) == 10
        assert len(await library.search(ctx, "near", mode=mode, filters=Filters(tags=["lot"]))) == 10
        shown = await library.search(member, "near", mode=mode)
        assert len(shown) == 10
        assert all(hit.text.startswith("far") for hit in shown)
    common = await library.search(ctx, "near", mode="keyword", k=100)
    assert len(common) == 100
    assert await library.search(member, "near word7 thing7", mode="keyword") != []


async def test_copies_of_a_text_are_one_hit(library: Library) -> None:
    ctx = await library.tenant()
    member = await library.member(ctx.tenant_id)
    first = await library.add(
        ctx, ["boilerplate footer"], name="first.txt", created_at=datetime(2020, 1, 1, tzinfo=UTC)
    )
    await library.add(ctx, ["boilerplate footer"] * 150, name="copies.txt")
    held = await library.hold(member, first, name="mine.txt")
    await library.add(ctx, [f"other footer {n}" for n in range(5)])
    for mode in ("hybrid", "vector", "keyword"):
        hits = await library.search(ctx, "boilerplate footer", mode=mode)
        assert len(hits) == 6, mode
        assert hits[0].filename == "first.txt"
    mine = await library.search(member, "boilerplate footer", k=1)
    assert [hit.document_id for hit in mine] == [held]


async def test_queries_without_terms_or_matches(library: Library) -> None:
    ctx = await library.tenant()
    await library.add(ctx, ["something"])
    assert await library.search(ctx, "?!", mode="keyword") == []
    assert await library.search(ctx, "unheard", mode="keyword") == []
    assert len(await library.search(ctx, "the of and", mode="hybrid")) == 1
    assert (await library.find(ctx, "unheard", mode="hybrid")).coverage == 0


async def test_concurrent_publishing_counts_right(library: Library) -> None:
    ctx = await library.tenant()
    texts = [f"shared words number{n}" for n in range(12)]
    entries = [await library.add(ctx, [text], published=False) for text in texts]

    async def publish(number: int) -> None:
        async with library.worker.tenant(ctx) as tx:
            await tx.lexicon.publish(entries[number].generation)

    await asyncio.gather(*(publish(n) for n in range(12)))
    assert await _counts(library, ctx.tenant_id) == (12, 2 * 12 + 12)


async def test_touch_raises_the_data_version(library: Library) -> None:
    ctx = await library.tenant()
    async with library.app.tenant(ctx) as tx:
        first = await tx.lexicon.touch()
        second = await tx.lexicon.touch()
    assert second == first + 1


async def _counts(library: Library, tenant: object) -> tuple[int, int]:
    chunks = await library.owner.fetchval("select chunks from tenant_statistics where tenant_id = $1", tenant)
    terms = await library.owner.fetchval("select sum(chunks) from term_frequencies where tenant_id = $1", tenant)
    return chunks, terms


def _bm25(texts: list[str], query: str) -> tuple[np.ndarray, float]:
    """Okapi BM25 (Robertson et al., TREC-3), written out."""
    words = [text.split() for text in texts]
    scores, most = np.zeros(len(texts)), 0.0
    for term in query.split():
        holding = sum(term in text for text in words)
        weight = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        most += weight * (SATURATION + 1)
        for number, text in enumerate(words):
            count = text.count(term)
            damp = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * len(text) / USUAL_LENGTH)
            scores[number] += weight * count * (SATURATION + 1) / (count + damp)
    return scores, most
