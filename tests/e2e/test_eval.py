"""`make eval` on a folder that somebody made, against the running product."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.installation import Installation
from tests.bench.pdf import make_pdf
from tests.e2e.product import CHECKOUT, Product
from tests.eval.table import read
from tests.eval.tenant import new_tenant

JUDGE = '''
"""A judge as a data folder brings it, with as much as these sets need."""
import json, os

def load_set(name, data):
    folder = os.path.join(data, "retrieval", name)
    def lines(file):
        return [json.loads(line) for line in open(os.path.join(folder, file), encoding="utf-8")]
    qrels = {}
    for line in open(os.path.join(folder, "qrels.tsv"), encoding="utf-8").read().splitlines()[1:]:
        query, item, grade = line.split("\\t")
        qrels.setdefault(query, {})[item] = int(grade)
    texts = {row["id"]: row["text"] for row in lines("corpus.jsonl")}
    return texts, {row["id"]: row["text"] for row in lines("queries.jsonl")}, qrels

def score_rankings(run, qrels):
    hits = [bool(set(run.get(query, [])[:5]) & set(grades)) for query, grades in qrels.items()]
    first = [run.get(query, [""])[0] in grades for query, grades in qrels.items()]
    share = sum(hits) / len(hits)
    return {"queries": len(hits), "hit@5": share, "recall@10": share, "ndcg@10": sum(first) / len(first)}

class BM25:
    def __init__(self, documents):
        self.documents = documents
    def rank(self, query, depth):
        return [(item, 1.0) for item in list(self.documents)[:depth]]

def cer(output, truth):
    return float(output != truth)

def units(text):
    return text.replace("#", " ").replace(".", " ").split()

def score_answers(gold, predictions):
    told = [predictions[row["id"]] for row in gold]
    return {
        "refused_when_it_should": {"mean": float(told[1]["refused"]), "n": 1},
        "refused_when_it_should_not": {"mean": float(told[0]["refused"]), "n": 1},
        "citation_recall": {"mean": float(told[0]["citations"] == gold[0]["gold_ids"]), "n": 1},
    }

def contains(answer, parts):
    return float(all(any(writing in answer for writing in part) for part in parts))
'''
CORPUS = """\
{"id": "ship", "text": "The ferry to Bergen leaves at seven in the morning."}
{"id": "年假", "text": "员工每年享有十五天带薪年假。"}
{"id": "refund", "text": "Refunds are paid within thirty days."}
"""
QUERIES = """\
{"id": "1", "text": "When does the ferry leave?"}
{"id": "2", "text": "年假有多少天？"}
{"id": "3", "text": "not judged"}
"""
QRELS = "query_id\tcorpus_id\tgrade\n1\tship\t1\n2\t年假\t1\n"
TALK = """\
[{"id": 1, "speakers": ["Ann", "Bo"], "sessions": [{"session": 1, "turns": [
    {"id": "D1:1", "speaker": "Ann", "text": "I bought a violet bicycle yesterday."},
    {"id": "D1:2", "speaker": "Bo", "text": "My sister moved to Lisbon in spring."}]}],
  "questions": [{"id": "1/0", "question": "Where did Bo's sister move?", "answer": "Lisbon", "evidence": ["D1:2"]},
                {"id": "1/1", "question": "What can't be told?", "answer": null, "evidence": ["D1:1"]}]}]
"""


REPORTS = """\
{"document": "report", "pdf": "documents/report.pdf", "question": "Which marker is 2?", "gold_ids": ["report#1"]}
{"document": "report", "pdf": "documents/report.pdf", "question": "Which marker is 9?", "gold_ids": ["report#8"]}
{"document": "lost", "pdf": null, "question": "What is lost?", "gold_ids": ["lost#0"]}
"""
TALKS = """\
{"id": "a", "collection": "sea", "answerability": "ANSWERABLE", "gold_ids": ["ferry"], "reference": "At seven.",
"dialogue": [{"speaker": "user", "text": "When does the ferry to Bergen leave?"}], "passages": [
{"id": "ferry", "title": "Ferries", "text": "The ferry to Bergen leaves at seven in the morning."}]}
{"id": "b", "collection": "sea", "answerability": "UNANSWERABLE", "gold_ids": [], "reference": null,
"dialogue": [{"speaker": "user", "text": "Who invented the telescope?"}], "passages": []}
"""
RECEIPTS = '[{"id": "1", "file": "1.txt", "lines": ["TEA", "3.50"], "fields": {"company": "LEAF", "total": "3.50"}}]'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, text in {
        "checks/score.py": JUDGE,
        "retrieval/mine/corpus.jsonl": CORPUS,
        "retrieval/mine/queries.jsonl": QUERIES,
        "retrieval/mine/qrels.tsv": QRELS,
        "retrieval/torn/corpus.jsonl": "{",
        "retrieval/torn/queries.jsonl": QUERIES,
        "retrieval/torn/qrels.tsv": QRELS,
        "memory/locomo_public.json": TALK,
        "answers/financebench_public.jsonl": REPORTS,
        "answers/mtrag_public.jsonl": TALKS.replace(",\n", ", ").replace("[\n", "["),
        "photos/receipts/receipts.json": RECEIPTS,
        "photos/receipts/1.txt": "TEA\n3.50\n",
        "documents/docling/tea.md": "# Tea\n\nGreen leaves.",
        "documents/docling/tea.md.reference.md": "# Tea\n\n<!-- image -->\n\nGreen leaves and roots.",
        "documents/docling/old.doc": "\x00 nothing that can be read",
        "documents/docling/old.doc.reference.md": "words",
    }.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "data" / "documents" / "report.pdf").write_bytes(make_pdf(3))
    return tmp_path / "data"


def test_each_set_of_a_folder_is_scored_and_a_broken_one_ends_no_other(product: Product, data: Path) -> None:
    kept = data / "kept" / "last.json"
    command = [sys.executable, "-m", "tests.eval", "--data", str(data), "--home", str(product.home)]
    done = subprocess.run(
        [*command, "--kept", str(kept)], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = {(score.set, score.metric): score for score in read(kept)}
    assert found["mine", "ndcg@10"].value == 1.0
    assert found["mine", "ndcg@10"].count == 2
    assert found["mine", "ndcg@10"].bm25 == 0.5
    assert "JSONDecodeError" in found["torn", "-"].failed
    assert found["locomo_public", "turns recalled, recall@5"].value == 1.0
    assert found["financebench_public", "right page among first 5"].value == 0.5
    assert found["financebench_public", "right page among first 5"].bm25 == 0.5
    assert found["financebench_public", "it is named for one of them"].count == 2
    assert found["mtrag_public", "refused, unanswerable"].met is True
    assert found["mtrag_public", "refused, answerable"].met is True
    assert found["mtrag_public", "citation recall"].value == 1.0
    assert found["photos/receipts", "lines read whole"].value == 1.0
    assert found["photos/receipts", "fields found"].value == 0.5
    assert found["documents/docling", "files taken"].value == 0.5
    assert found["documents/docling", "words of the reference"].value == 0.3
    again = subprocess.run(
        [*command, "--kept", str(kept), "--sets", "mine"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "+0.000" in again.stdout
    part = subprocess.run(
        [*command, "--kept", str(kept), "--sets", "mine", "financebench", "receipts", "--limit", "1"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert part.returncode == 0, part.stdout + part.stderr
    values = {(score.set, score.metric, score.count): score.value for score in read(kept)}
    assert values["mine", "ndcg@10", 1] == values["mine", "ndcg@10", 2] == 1.0
    assert values["financebench_public", "right page among first 5", 1] == 1.0


def test_a_set_that_is_not_there_is_named(data: Path) -> None:
    command = [sys.executable, "-m", "tests.eval", "--data", str(data), "--sets", "yours"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "there is no set yours; there are mine, torn, financebench, mtrag, locomo, receipts, docling" in done.stderr


def test_what_a_tenant_did_not_upload_is_left_out_and_ends_the_set(product: Product) -> None:
    """A document that came past the evaluation is to it as one of another tenant."""
    found: list[dict[str, Any]] = []

    async def search() -> None:
        async with new_tenant(Installation(product.home), "crossed") as tenant:
            mine = await tenant.upload("mine.txt", b"The ferry to Bergen leaves at seven.")
            await tenant.call(
                "POST", "/api/v1/documents", files={"file": ("theirs.txt", b"The ferry to Oslo is late.")}
            )
            await tenant.settled()
            found.extend(await tenant.search("When does the ferry leave?"))
            assert [hit["document_id"] for hit in found] == [mine["document_id"]]

    with pytest.raises(RuntimeError, match="1 of 2 results belong to another tenant"):
        asyncio.run(search())
    assert len(found) == 1
