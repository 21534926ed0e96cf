"""Questions on long reports: is the page with the answer among the first passages?"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.installation import Installation
from tests.eval.answers import rows
from tests.eval.judge import Judge
from tests.eval.table import Score, mean
from tests.eval.tenant import new_tenant

FIRST = 5
GOAL = 0.60


async def financebench(installation: Installation, judge: Judge, data: Path, limit: int | None) -> list[Score]:
    """Questions on annual reports, each searched for in its report alone, beside BM25 over the report's whole pages.

    A passage that goes on to the next page tells both. In the second figure it tells the one that the search names.
    """
    asked = rows(data / "answers" / "financebench_public.jsonl")
    asked = [row for row in asked if row.get("pdf") and (data / row["pdf"]).is_file()][:limit]
    paths = {row["document"]: data / row["pdf"] for row in asked}
    touched, named, plain = list[float](), list[float](), list[float]()
    async with new_tenant(installation, "financebench") as tenant:
        documents = await tenant.load({name: (path.name, path.read_bytes()) for name, path in paths.items()})
        for document, name in documents.items():
            chunks = await tenant.pages(f"/api/v1/documents/{document}/chunks")
            pages = {chunk["id"]: pages_of(chunk) for chunk in chunks}
            index = judge.BM25(texts_of_pages(chunks))
            for row in asked:
                if row["document"] != name:
                    continue
                wanted = {int(item.rpartition("#")[2]) + 1 for item in row["gold_ids"]}
                found = (await tenant.search(row["question"], filters={"document_ids": [document]}))[:FIRST]
                touched.append(_any(wanted, (page for hit in found for page in pages[hit["chunk_id"]])))
                named.append(_any(wanted, (hit["location"].get("page", 0) for hit in found)))
                plain.append(_any(wanted, (page for page, _ in index.rank(row["question"], FIRST))))
    bm25 = sum(plain) / len(plain)
    return [
        *mean("financebench_public", "right page among first 5", touched, bm25=bm25, goal=GOAL),
        *mean("financebench_public", "it is named for one of them", named, bm25=bm25),
    ]


def pages_of(chunk: Mapping[str, Any]) -> set[int]:
    """The pages, from 1, on which a chunk of the API stands."""
    return {part["location"].get("page", 0) for part in chunk["parts"]}


def texts_of_pages(chunks: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """What stands on each page, from 1: of each chunk of the API the parts that do."""
    pages: dict[int, list[str]] = defaultdict(list)
    for chunk in chunks:
        parts = chunk["parts"]
        ends = [*(part["start"] for part in parts[1:]), len(chunk["text"])]
        for part, end in zip(parts, ends, strict=True):
            pages[part["location"].get("page", 0)].append(chunk["text"][part["start"] : end])
    return {page: "\n".join(texts) for page, texts in pages.items()}


def _any(wanted: set[int], told: Iterable[int]) -> float:
    return float(not wanted.isdisjoint(told))
