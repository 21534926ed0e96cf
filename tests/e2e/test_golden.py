"""Upload → task → search → chat against stored expectations, in both languages, on real services (K4)."""

from pathlib import Path

import msgspec
import pytest

from tests.e2e.product import Product, finished, upload

FOLDER = Path(__file__).parents[1] / "fixtures" / "golden"
EXPECTED = msgspec.json.decode((FOLDER / "expectations.json").read_bytes())


@pytest.fixture(scope="module")
def client(product: Product):
    with product.client(product.new_tenant("golden")["api_key"]) as found:
        files = sorted(path for path in FOLDER.iterdir() if path.name != "expectations.json")
        uploads = [upload(found, path.name, path.read_bytes()) for path in files]
        for item in uploads:
            task = finished(found, item["task_id"])
            assert task["status"] == "succeeded", task
            document = found.get(f"/api/v1/documents/{item['document_id']}").json()
            assert document["status"] == "ready"
            assert document["chunk_count"] > 0
        yield found


def search(client, query: str, **body) -> list[dict]:
    answer = client.post("/api/v1/search", json={"query": query, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


@pytest.mark.parametrize("case", EXPECTED["searches"], ids=lambda case: case["query"])
def test_search_finds_the_place(client, case):
    """First, or among the first three where the question crosses the language of the document."""
    hits = search(client, case["query"], k=case.get("within", 1))
    assert any(hit["filename"] == case["file"] and case["text"] in hit["text"] for hit in hits), hits


@pytest.mark.parametrize("case", EXPECTED["phrases"], ids=lambda case: case["query"])
def test_a_phrase_is_found_by_its_words_alone(client, case):
    first = search(client, case["query"], k=1, mode="keyword")[0]
    assert first["filename"] == case["file"]
    assert case["query"] in first["text"]


@pytest.mark.parametrize("case", EXPECTED["answers"], ids=lambda case: case["question"])
def test_an_answer_quotes_its_source(client, case):
    conversation = client.post("/api/v1/conversations", json={}).json()["id"]
    answer = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": case["question"]})
    assert answer.status_code == 200, answer.text
    message = answer.json()
    quotes = {item["index"]: item for item in message["citations"]}
    assert any(case["quote"] in item["quote"] and item["filename"] == case["file"] for item in quotes.values()), message
    assert case["quote"] in message["content"]
    for item in quotes.values():
        assert f"[{item['index']}]" in message["content"]
        chunks = client.get(f"/api/v1/documents/{item['document_id']}/chunks").json()["items"]
        source = next(chunk for chunk in chunks if chunk["id"] == item["chunk_id"])
        assert item["quote"] in source["text"]


@pytest.mark.parametrize("question", EXPECTED["unanswerable"])
def test_what_is_not_in_the_documents_is_not_answered(client, question):
    conversation = client.post("/api/v1/conversations", json={}).json()["id"]
    message = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": question}).json()
    assert message["citations"] == []
    assert message["answered"] is False
    assert any(words in message["content"].lower() for words in ("not in your documents", "文档中没有"))


def test_another_tenant_finds_nothing_of_it(client, product):
    with product.client(product.new_tenant("stranger")["api_key"]) as stranger:
        for mode in ("hybrid", "vector", "keyword"):
            assert search(stranger, "年假", mode=mode) == []
        assert stranger.get("/api/v1/documents").json()["items"] == []
