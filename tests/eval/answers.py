"""Answers: talks over several turns, and questions that the documents don't answer.

A refusal is an answer that the API marks with `answered: false`.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.installation import Installation
from tests.eval.judge import Judge
from tests.eval.table import Score
from tests.eval.tenant import Tenant, new_tenant

TALKS_AT_A_TIME = 4
REFUSED_GOAL, WRONGLY_REFUSED_GOAL = 0.85, 0.10


MTRAG: dict[str, tuple[str, dict[str, Any]]] = {
    "refused_when_it_should": ("refused, unanswerable", {"goal": REFUSED_GOAL}),
    "refused_when_it_should_not": ("refused, answerable", {"goal": WRONGLY_REFUSED_GOAL, "at_most": True}),
    "f1": ("f1", {}),
    "citation_precision": ("citation precision", {}),
    "citation_recall": ("citation recall", {}),
}
"""The judge's name of each figure, ours, and its goal."""


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


async def mtrag(installation: Installation, judge: Judge, data: Path, limit: int | None) -> list[Score]:
    """Talks over several turns: every user's turn is asked, the last answer counts.

    Each collection is a tenant, and its documents are the gold passages of all its talks.
    """
    talks = rows(data / "answers" / "mtrag_public.jsonl")[:limit]
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
        Score(set="mtrag_public", metric=metric, value=found[name]["mean"], count=int(found[name]["n"]), **more)
        for name, (metric, more) in MTRAG.items()
        if name in found
    ]


async def _talks(tenant: Tenant, talks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last answer of each."""
    places = asyncio.Semaphore(TALKS_AT_A_TIME)

    async def one(talk: Mapping[str, Any]) -> dict[str, Any]:
        async with places:
            return (await tenant.converse([turn["text"] for turn in talk["dialogue"] if turn["speaker"] == "user"]))[-1]

    return await asyncio.gather(*map(one, talks))


async def rgb(installation: Installation, judge: Judge, data: Path, limit: int | None) -> list[Score]:
    """Questions in Chinese and in English, each asked where its passages are and where only those of others are: the
    set's questions are divided between two tenants. And, without a goal, among passages on the very subject that don't
    hold the answer, which takes a reader."""
    texts, queries, qrels = judge.load_set("rgb_zh_refine_public", str(data))
    gold = {
        query: {item for item, grade in grades.items() if grade > 0} for query, grades in list(qrels.items())[:limit]
    }
    chinese = {queries[query]: {item: texts[item] for item in items} for query, items in gold.items()}
    rows_en = rows(data / "answers" / "rgb_en_fact.jsonl")[:limit]
    english = {
        row["question"]: {f"{row['id']}-{place}": text for place, text in enumerate(row["positive"] + row["negative"])}
        for row in rows_en
    }
    scores = [
        *await _divided(installation, "rgb_zh", chinese),
        *await _divided(installation, "rgb_en", english),
    ]
    wrong = {f"{row['id']}-{place}": text for row in rows_en for place, text in enumerate(row["negative"])}
    found = set[str]().union(*gold.values())
    without = {item: text for item, text in texts.items() if item not in found}
    for name, passages, questions in (("rgb_zh", without, chinese), ("rgb_en", wrong, english)):
        async with new_tenant(installation, f"{name}-near") as tenant:
            await tenant.load(_files(passages))
            share = await _refused(tenant, list(questions))
        scores.append(Score(set=name, metric="refused, same subject", value=share, count=len(questions)))
    return scores


async def _divided(installation: Installation, name: str, questions: Mapping[str, Mapping[str, str]]) -> list[Score]:
    """How often questions, given with their passages, are refused among their own and among those of others.

    Questions that share a passage are in one half.
    """
    halves: list[dict[str, Mapping[str, str]]] = [{}, {}]
    place: dict[str, int] = {}
    for question, passages in questions.items():
        half = next((place[item] for item in passages if item in place), len(halves[0]) > len(halves[1]))
        place |= {item: int(half) for item in passages if item not in place}
        halves[int(half)][question] = passages
    own, other = list[float](), list[float]()
    for half in (0, 1):
        async with new_tenant(installation, f"{name}-{half}") as tenant:
            mine = {item: text for passages in questions.values() for item, text in passages.items()}
            await tenant.load(_files({item: text for item, text in mine.items() if place[item] == half}))
            own.append(await _refused(tenant, list(halves[half])) * len(halves[half]))
            other.append(await _refused(tenant, list(halves[1 - half])) * len(halves[1 - half]))
    given: dict[str, Any] = {"set": name, "count": len(questions)}
    refused, wrongly = sum(other) / len(questions), sum(own) / len(questions)
    return [
        Score(metric="refused, unanswerable", value=refused, goal=REFUSED_GOAL, **given),
        Score(metric="refused, answerable", value=wrongly, goal=WRONGLY_REFUSED_GOAL, at_most=True, **given),
    ]


async def _refused(tenant: Tenant, questions: Sequence[str]) -> float:
    """The share of questions, each the first of its conversation, that are refused; 0 of none."""
    talks = [{"dialogue": [{"speaker": "user", "text": question}]} for question in questions]
    answers = await _talks(tenant, talks)
    return sum(not answer["answered"] for answer in answers) / max(len(answers), 1)


def _files(texts: Mapping[str, str]) -> dict[str, tuple[str, bytes]]:
    return {item: (f"{item}.txt", text.encode()) for item, text in texts.items() if text.strip()}
