"""The data's own judge: `checks/score.py` of the data folder, which knows the metrics and a plain BM25."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast


class Judge(Protocol):
    """What is used of that module."""

    def load_set(self, name: str, data: str) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
        """Documents and queries by id, and grades by query and document."""
        ...

    def score_rankings(
        self, run: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]]
    ) -> dict[str, float]:
        """Means over the queries: `ndcg@10`, `hit@5`, `recall@10`, …"""
        ...

    def cer(self, output: str, truth: str) -> float:
        """Character error rate."""
        ...

    def units(self, text: str) -> list[str]:
        """Words, and Chinese one character each; case, width and punctuation dropped."""
        ...

    def contains(self, answer: str, parts: Sequence[Sequence[str]]) -> float:
        """1 if every part stands in the answer, in one of its writings."""
        ...

    def score_answers(
        self, gold: Sequence[Mapping[str, Any]], predictions: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Each metric as `{"mean", "n"}`."""
        ...

    BM25: Any


def judge_of(data: Path) -> Judge:
    """Raises FileNotFoundError where the folder has none."""
    path = data / "checks" / "score.py"
    spec = importlib.util.spec_from_file_location("score", path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"{path}: a data folder brings its judge")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("Judge", module)


def bm25_run(
    judge: Judge, documents: Mapping[str, str], queries: Mapping[str, str], depth: int = 100
) -> dict[str, list[str]]:
    """What plain BM25 finds, best first."""
    index = judge.BM25(documents)
    return {query: [item for item, _ in index.rank(text, depth)] for query, text in queries.items()}
