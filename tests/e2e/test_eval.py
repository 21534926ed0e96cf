"""`make eval` on a folder that somebody made, against the running product."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.product import CHECKOUT, Product
from tests.eval.table import read

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
    return {"queries": len(hits), "hit@5": sum(hits) / len(hits), "ndcg@10": sum(first) / len(first)}

class BM25:
    def __init__(self, documents):
        self.documents = documents
    def rank(self, query, depth):
        return [(item, 1.0) for item in list(self.documents)[:depth]]

def cer(output, truth):
    return float(output != truth)

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
    }.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
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


def test_a_set_that_is_not_there_is_named(data: Path) -> None:
    command = [sys.executable, "-m", "tests.eval", "--data", str(data), "--sets", "yours"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "there is no set yours; there are mine, torn, locomo" in done.stderr
