"""Sets of passages, queries and grades: `retrieval/<set>/` with corpus.jsonl, queries.jsonl, qrels.tsv."""

import re
from pathlib import Path

from tests.bench.installation import Installation
from tests.eval.judge import Judge, bm25_run
from tests.eval.table import Score
from tests.eval.tenant import new_tenant

GOALS = {
    "scifact_train": {"ndcg@10": 0.735},
    "cranfield": {"ndcg@10": 0.425},
    "docqa_zh": {"hit@5": 0.97},
    "rgb_zh_refine_public": {"ndcg@10": 0.835},
    "xquad_public_zh_en": {"ndcg@10": 0.90},
    "xquad_public_en_zh": {"ndcg@10": 0.90},
    "handbook_zh_en": {"ndcg@10": 0.65},
}
USUAL = ("ndcg@10", "hit@5", "recall@10")
FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv")


def sets(data: Path) -> list[str]:
    """Whatever folders have the form of a set."""
    return sorted(folder.parent.name for folder in data.glob(f"retrieval/*/{FILES[0]}") if _whole(folder.parent))


def _whole(folder: Path) -> bool:
    return all((folder / name).exists() for name in FILES)


async def evaluate(installation: Installation, judge: Judge, data: Path, limit: int | None, name: str) -> list[Score]:
    """All passages of the set, and its first queries, as a tenant of its own.

    Raises RuntimeError where it can't be loaded or a result isn't the tenant's.
    """
    texts, queries, qrels = judge.load_set(name, str(data))
    queries = dict([(query, text) for query, text in queries.items() if query in qrels][:limit])
    qrels = {query: qrels[query] for query in queries}
    files = {
        item: (f"{re.sub(r'[^a-zA-Z0-9.-]', '-', item)[:100]}.txt", text.encode())
        for item, text in texts.items()
        if text.strip()
    }
    async with new_tenant(installation, name) as tenant:
        documents = await tenant.load(files)
        run = await tenant.run(documents, queries)
    scores, plain = (judge.score_rankings(found, qrels) for found in (run, bm25_run(judge, texts, queries)))
    goals = GOALS.get(name, {})
    return [
        Score(
            set=name,
            metric=metric,
            value=scores[metric],
            count=int(scores["queries"]),
            bm25=plain[metric],
            goal=goals.get(metric),
        )
        for metric in dict.fromkeys([*USUAL, *goals])
    ]
