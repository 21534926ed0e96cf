"""Quality through the product's own API: `make eval ARGS="--data DIR"`.

Retrieval: each set becomes a tenant of its own, its passages are uploaded as files, its queries searched by each mode,
and the data's own judge scores the runs beside BM25's. One set is loaded twice: what a tenant finds of another's is
counted. Files: every document, picture and hostile file is uploaded and must end well (tests/bench/corpus.py).
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from tests.bench import corpus
from tests.bench.installation import Installation, borrowed
from tests.bench.ratios import Ratio, table
from tests.bench.retrieval import Tenant, rows

TARGETS = {
    "docqa_zh": ("hit@5", 0.97),
    "cranfield": ("ndcg@10", 0.425),
    "xquad_public_zh_en": ("ndcg@10", 0.90),
    "xquad_public_en_zh": ("ndcg@10", 0.90),
    "handbook_zh_en": ("ndcg@10", 0.65),
    "rgb_zh_refine_public": ("ndcg@10", 0.835),
    "scifact_train": ("ndcg@10", 0.735),
}
TWIN = "docqa_zh"
MODES = ("hybrid", "keyword", "vector")
HITS = 50
"""Passages of an answer; several may be of one document, whose best counts."""
AT_A_TIME = 4
SHOWN = ("ndcg@10", "hit@5", "recall@10", "recall@100")
FOLDERS = ("documents", "photos", "hostile")


class Loaded(NamedTuple):
    """A set in a tenant of its own: the set's passage ids by document id."""

    name: str
    api_key: str
    documents: dict[str, str]


class Crossings(msgspec.Struct):
    """Results that belong to another tenant, of all results."""

    results: int = 0
    foreign: int = 0


class Evaluation:
    """One run over the sets of a data folder."""

    def __init__(self, installation: Installation, data: Path) -> None:
        self._installation = installation
        self._data = data
        self.crossings = Crossings()

    async def load(self, name: str) -> Loaded:
        """Uploads a set and waits until all of it can be found. Raises RuntimeError when a passage failed."""
        key = self._installation.new_tenant(f"eval-{name}").api_key
        began = time.perf_counter()
        async with self._client(key) as client:
            tenant = Tenant(client, self._data / "retrieval" / name)
            documents = await tenant.upload()
            await tenant.finished()
            for status in ("failed", "dead"):
                failed = (await client.get("/api/v1/tasks", params={"status": status})).json()["items"]
                if failed:
                    raise RuntimeError(f"{name}: a passage {status}: {failed[0]['error']}")
        seconds = time.perf_counter() - began
        print(f"{name}: {len(documents)} documents searchable after {seconds:.0f} s, {len(documents) / seconds:.1f}/s")
        return Loaded(name, key, documents)

    async def scores(self, loaded: Loaded, mode: str) -> dict[str, dict[str, float]]:
        """The judge's figures: of this run, and of BM25."""
        with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as run:
            for query, ranked in (await self._run(loaded, mode)).items():
                run.writelines(f"{query}\t{item}\t{rank}\t{1 / rank:.6f}\n" for rank, item in enumerate(ranked, 1))
            run.flush()
            judge = [sys.executable, str(self._data / "checks" / "score.py"), "retrieval", "--json"]
            done = await asyncio.to_thread(
                subprocess.run,
                [*judge, "--set", loaded.name, "--run", run.name],
                stdout=subprocess.PIPE,
                check=True,
            )
        return json.loads(done.stdout)

    async def _run(self, loaded: Loaded, mode: str) -> dict[str, list[str]]:
        """Each query's passages, best first."""
        places = asyncio.Semaphore(AT_A_TIME)
        async with self._client(loaded.api_key) as client:

            async def one(query: dict[str, Any]) -> list[str]:
                async with places:
                    body = {"query": query["text"], "k": HITS, "mode": mode}
                    answer = await client.post("/api/v1/search", json=body)
                answer.raise_for_status()
                return self._own(loaded, [item["document_id"] for item in answer.json()["items"]])

            queries = rows(self._data / "retrieval" / loaded.name / "queries.jsonl")
            found = await asyncio.gather(*(one(query) for query in queries))
        return {query["id"]: ranked for query, ranked in zip(queries, found, strict=True)}

    def _own(self, loaded: Loaded, found: list[str]) -> list[str]:
        """The set's ids in their order; what isn't the tenant's is counted."""
        self.crossings.results += len(found)
        self.crossings.foreign += sum(document not in loaded.documents for document in found)
        return list(dict.fromkeys(loaded.documents[document] for document in found if document in loaded.documents))

    def _client(self, key: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self._installation.up["url"], headers=headers, timeout=120, trust_env=False)


async def retrieval(evaluation: Evaluation, sets: list[str]) -> bool:
    """Loads all sets first, so that each is searched beside the others. False when a result crossed."""
    loaded = [await evaluation.load(name) for name in sets]
    twins = [await evaluation.load(TWIN)] if TWIN in sets else []
    ratios: list[Ratio] = []
    print(f"\n{'set':<22} {'mode':<8}", *(f"{name:>11}" for name in SHOWN))
    for one in loaded:
        bm25: dict[str, float] = {}
        for mode in MODES:
            scores = await evaluation.scores(one, mode)
            run, bm25 = scores["run"], scores["bm25"]
            print(f"{one.name:<22} {mode:<8}", *(f"{run[name]:>11.3f}" for name in SHOWN), flush=True)
            if mode == "hybrid" and one.name in TARGETS:
                metric, goal = TARGETS[one.name]
                ratios.append(Ratio(f"{one.name} {metric} (BM25 {bm25[metric]:.3f})", run[metric], goal))
        print(f"{one.name:<22} {'BM25':<8}", *(f"{bm25[name]:>11.3f}" for name in SHOWN))
    for twin in twins:
        await evaluation.scores(twin, "hybrid")
    print(f"\n{table(ratios)}")
    crossings = evaluation.crossings
    print(f"\nresults of another tenant: {crossings.foreign} of {crossings.results}")
    return crossings.foreign == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds retrieval/, documents/, photos/ and checks/")
    parser.add_argument("--home", type=Path, help="of a running `dreamhub up`; else one is started")
    parser.add_argument("--sets", nargs="*", default=list(TARGETS), help="retrieval sets; none with no names")
    parser.add_argument("--folders", nargs="*", default=list(FOLDERS), help="of files; none with no names")
    flags = parser.parse_args()
    right = True
    with borrowed(flags.home) as installation:
        if flags.sets:
            right &= asyncio.run(retrieval(Evaluation(installation, flags.data), flags.sets))
        for folder in flags.folders:
            right &= asyncio.run(corpus.evaluate(installation, flags.data / folder))
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
