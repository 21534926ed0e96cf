"""Answers: the right page of a report, talks over several turns, and questions that the documents don't answer.

A refusal is an answer that the API marks with `answered: false`.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.installation import Installation
from tests.eval.judge import Judge
from tests.eval.table import Score
from tests.eval.tenant import Tenant, new_tenant

FIRST = 5
TALKS_AT_A_TIME = 4
PAGES_GOAL, REFUSED_GOAL, WRONGLY_REFUSED_GOAL = 0.60, 0.85, 0.10


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


async def financebench(installation: Installation, judge: Judge, data: Path) -> list[Score]:
    """Whether the page with the answer is told among the first five passages of a search inside its report.

    A passage that goes on to the next page counts for the one on which it begins.
    """
    asked = [
        row for row in rows(data / "answers" / "financebench_public.jsonl") if (data / row.get("pdf", "-")).is_file()
    ]
    paths = {row["document"]: data / row["pdf"] for row in asked}
    hits, plain = 0, 0
    async with new_tenant(installation, "financebench") as tenant:
        documents = await tenant.load({name: (path.name, path.read_bytes()) for name, path in paths.items()})
        ids = {name: document for document, name in documents.items()}
        for row in asked:
            wanted = {int(item.rpartition("#")[2]) + 1 for item in row["gold_ids"]}
            found = await tenant.search(row["question"], filters={"document_ids": [ids[row["document"]]]})
            hits += bool(wanted & {hit["location"].get("page") for hit in found[:FIRST]})
        for name, document in ids.items():
            pages = await _pages(tenant, document)
            index = judge.BM25(pages)
            for row in asked:
                if row["document"] == name:
                    wanted = {int(item.rpartition("#")[2]) + 1 for item in row["gold_ids"]}
                    plain += bool(wanted & {page for page, _ in index.rank(row["question"], FIRST)})
    count = len(asked)
    metric = "right page among first 5"
    value = {"value": hits / count, "bm25": plain / count, "count": count, "goal": PAGES_GOAL}
    return [Score(set="financebench_public", metric=metric, **value)]


async def _pages(tenant: Tenant, document_id: str) -> dict[int, str]:
    """The texts of a document's chunks by the page on which they begin."""
    pages: dict[int, list[str]] = defaultdict(list)
    cursor = None
    while True:
        given = {"limit": 100} | ({"cursor": cursor} if cursor else {})
        page = await tenant.call("GET", f"/api/v1/documents/{document_id}/chunks", params=given)
        for item in page["items"]:
            pages[item["location"].get("page", 0)].append(item["text"])
        cursor = page["next_cursor"]
        if not cursor:
            return {number: "\n".join(texts) for number, texts in pages.items()}


async def mtrag(installation: Installation, judge: Judge, data: Path) -> list[Score]:
    """Talks over several turns: every user's turn is asked, the last answer counts.

    Each collection is a tenant, and its documents are the gold passages of all its talks.
    """
    talks = rows(data / "answers" / "mtrag_public.jsonl")
    predictions: dict[str, dict[str, Any]] = {}
    for collection in sorted({talk["collection"] for talk in talks}):
        mine = [talk for talk in talks if talk["collection"] == collection]
        passages = {item["id"]: item for talk in mine for item in talk["passages"]}
        files = {
            name: (f"{name}.txt", f"{item.get('title') or ''}\n\n{item['text']}".strip().encode())
            for name, item in passages.items()
        }
        async with new_tenant(installation, f"mtrag-{collection}") as tenant:
            documents = await tenant.load(files)
            for talk, answer in zip(mine, await _talks(tenant, mine), strict=True):
                predictions[talk["id"]] = {
                    "text": answer["content"],
                    "refused": not answer["answered"],
                    "citations": [documents[item["document_id"]] for item in answer["citations"]],
                }
    answered = [talk for talk in talks if talk["answerability"] in ("ANSWERABLE", "UNANSWERABLE")]
    found = judge.score_answers(answered, predictions)
    return [
        _mean("mtrag_public", "refused, unanswerable", found["refused_when_it_should"], goal=REFUSED_GOAL),
        _mean(
            "mtrag_public",
            "refused, answerable",
            found["refused_when_it_should_not"],
            goal=WRONGLY_REFUSED_GOAL,
            at_most=True,
        ),
        *(_mean("mtrag_public", name, found[name]) for name in ("f1", "citation_precision", "citation_recall")),
    ]


async def _talks(tenant: Tenant, talks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last answer of each."""
    places = asyncio.Semaphore(TALKS_AT_A_TIME)

    async def one(talk: Mapping[str, Any]) -> dict[str, Any]:
        async with places:
            return (await tenant.converse([turn["text"] for turn in talk["dialogue"] if turn["speaker"] == "user"]))[-1]

    return await asyncio.gather(*map(one, talks))


async def rgb(installation: Installation, judge: Judge, data: Path) -> list[Score]:
    """Questions in Chinese, once over all passages, once over those alone that answer none of them; and in English over
    passages each of which is on its question's subject."""
    name = "rgb_zh_refine_public"
    texts, queries, qrels = judge.load_set(name, str(data))
    gold = {item for grades in qrels.values() for item, grade in grades.items() if grade > 0}
    without = {item: text for item, text in texts.items() if item not in gold}
    asked = [text for query, text in queries.items() if query in qrels]
    scores = await _refusals(installation, "rgb_zh", (texts, asked), (without, asked))
    english = rows(data / "answers" / "rgb_en_fact.jsonl")
    right = {f"{row['id']}-{place}": text for row in english for place, text in enumerate(row["positive"])}
    wrong = {f"{row['id']}-{place}": text for row in english for place, text in enumerate(row["negative"])}
    questions = [row["question"] for row in english]
    return scores + await _refusals(installation, "rgb_en_fact", (right | wrong, questions), (wrong, questions))


Material = tuple[Mapping[str, str], Sequence[str]]


async def _refusals(installation: Installation, name: str, known: Material, unknown: Material) -> list[Score]:
    """How often questions are refused where documents answer them, and where none does."""
    shares: list[float] = []
    for kind, (texts, questions) in (("with", known), ("without", unknown)):
        async with new_tenant(installation, f"{name}-{kind}") as tenant:
            await tenant.load({item: (f"{item}.txt", text.encode()) for item, text in texts.items() if text.strip()})
            talks = [{"dialogue": [{"speaker": "user", "text": question}]} for question in questions]
            answers = await _talks(tenant, talks)
            shares.append(sum(not answer["answered"] for answer in answers) / len(answers))
    given: dict[str, Any] = {"set": name, "count": len(known[1])}
    return [
        Score(metric="refused, unanswerable", value=shares[1], goal=REFUSED_GOAL, **given),
        Score(metric="refused, answerable", value=shares[0], goal=WRONGLY_REFUSED_GOAL, at_most=True, **given),
    ]


def _mean(
    name: str, metric: str, found: Mapping[str, float], *, goal: float | None = None, at_most: bool = False
) -> Score:
    return Score(set=name, metric=metric, value=found["mean"], count=int(found["n"]), goal=goal, at_most=at_most)
