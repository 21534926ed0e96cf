"""A document that is replaced keeps its id; the old version answers until the new one does, and stays readable."""

import base64
import secrets
import time
from typing import Any

import httpx
import pytest

from tests.e2e.product import Product, finished, upload
from tests.e2e.test_documents import counts, objects, ready
from tests.e2e.world import BROKEN


def sentence(word: str) -> bytes:
    return f"The keeper of {word} counts {secrets.token_hex(8)} ships.".encode()


def replace(client: httpx.Client, document: str, name: str, data: bytes) -> httpx.Response:
    return client.put(f"/api/v1/documents/{document}/content", files={"file": (name, data)})


def replaced(client: httpx.Client, document: str, name: str, data: bytes) -> dict[str, Any]:
    answer = replace(client, document, name, data)
    assert answer.status_code == 202, answer.text
    task = finished(client, answer.json()["task_id"])
    assert task["status"] == "succeeded", task
    return task


def passages(client: httpx.Client, query: str = "keeper counts ships") -> list[str]:
    """Texts that the search finds."""
    answer = client.post("/api/v1/search", json={"query": query})
    assert answer.status_code == 200, answer.text
    return [item["text"] for item in answer.json()["items"]]


def versions(client: httpx.Client, document: str) -> list[tuple[int, str, str]]:
    items = client.get(f"/api/v1/documents/{document}/versions").json()["items"]
    return [(item["number"], item["status"], item["filename"]) for item in items]


def content(client: httpx.Client, document: str, number: int) -> bytes:
    answer = client.get(f"/api/v1/documents/{document}/versions/{number}/content")
    assert answer.status_code == 200, answer.text
    return answer.content


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_document_is_replaced_and_keeps_its_id(product: Product, client: httpx.Client, tenant: dict[str, Any]):
    old, new = sentence("lighthouse"), sentence("lightship")
    document = ready(client, "old.txt", old, tags="kept")["document_id"]
    assert versions(client, document) == [(1, "current", "old.txt")]
    assert content(client, document, 1) == old
    before = client.get(f"/api/v1/documents/{document}").json()
    answer = replace(client, document, "new.txt", new)
    assert answer.status_code == 202, answer.text
    seen = set()
    task_id = answer.json()["task_id"]
    while client.get(f"/api/v1/tasks/{task_id}").json()["status"] in ("queued", "running"):
        now = client.get(f"/api/v1/documents/{document}").json()
        seen.add((now["version"], now["sha256"], now["status"]))
        assert passages(client), "one version or the other always answers"
    assert {version for version, _, _ in seen} <= {1, 2}
    assert {status for _, _, status in seen} <= {"ready"}
    after = client.get(f"/api/v1/documents/{document}").json()
    assert (after["id"], after["version"], after["filename"]) == (document, 2, "new.txt")
    assert (after["tags"], after["created_at"], after["size"]) == (["kept"], before["created_at"], len(new))
    assert client.get(f"/api/v1/documents/{document}/content").content == new
    assert [text for text in passages(client) if "lightship" in text]
    assert not [text for text in passages(client) if "lighthouse" in text]
    assert versions(client, document) == [(2, "current", "new.txt"), (1, "superseded", "old.txt")]
    assert content(client, document, 1) == old
    until(lambda: counts(product, tenant)["chunks"] == 1)
    assert len(objects(product, tenant)) == 2
    again = replace(client, document, "again.txt", new)
    assert (again.status_code, again.json()["duplicate"]) == (200, True)
    assert len(versions(client, document)) == 2

    restored = client.post(f"/api/v1/documents/{document}/versions/1/restore")
    assert restored.status_code == 202, restored.text
    assert finished(client, restored.json()["task_id"])["status"] == "succeeded"
    assert [item[:2] for item in versions(client, document)] == [(3, "current"), (2, "superseded"), (1, "superseded")]
    assert client.get(f"/api/v1/documents/{document}/content").content == old
    assert [text for text in passages(client) if "lighthouse" in text]
    until(lambda: counts(product, tenant)["chunks"] == 1)
    assert finished(client, client.delete(f"/api/v1/documents/{document}").json()["id"])["status"] == "succeeded"
    until(lambda: objects(product, tenant) == [])
    left = counts(product, tenant)
    gone = ("contents", "chunks", "vectors_1", "token_codes", "chunk_terms", "term_frequencies")
    assert {table: left[table] for table in gone} == dict.fromkeys(gone, 0)


def test_a_version_that_can_not_be_read_leaves_the_old_one(client: httpx.Client):
    document = ready(client, "good.txt", sentence("pier"))["document_id"]
    answer = replace(client, document, "broken.pdf", BROKEN + secrets.token_bytes(8))
    assert finished(client, answer.json()["task_id"])["status"] == "failed"
    newest, old = client.get(f"/api/v1/documents/{document}/versions").json()["items"]
    assert (newest["status"], newest["error"]["code"]) == ("failed", "file.unreadable")
    assert (old["status"], old["error"]) == ("current", None)
    assert client.get(f"/api/v1/documents/{document}").json()["status"] == "ready"
    assert [text for text in passages(client) if "pier" in text]
    replaced(client, document, "better.txt", sentence("quay"))
    assert [item[:2] for item in versions(client, document)] == [(3, "current"), (2, "superseded"), (1, "superseded")]


def test_another_document_on_the_same_bytes_is_unaffected(client: httpx.Client, colleague: httpx.Client):
    shared = sentence("harbour")
    mine, theirs = (ready(who, "shared.txt", shared)["document_id"] for who in (client, colleague))
    replaced(client, mine, "mine.txt", sentence("jetty"))
    assert client.delete(f"/api/v1/documents/{mine}").status_code == 202
    until(lambda: not [text for text in passages(client) if "jetty" in text])
    assert colleague.get(f"/api/v1/documents/{theirs}/content").content == shared
    assert [text for text in passages(colleague) if "harbour" in text]
    assert versions(colleague, theirs) == [(1, "current", "shared.txt")]


def test_who_may_replace(product: Product, client: httpx.Client, colleague: httpx.Client):
    shared = ready(client, "shared.txt", sentence("beacon"))["document_id"]
    private = ready(client, "private.txt", sentence("buoy"), visibility="private")["document_id"]
    assert replace(colleague, shared, "a.txt", b"mine").status_code == 403
    assert colleague.post(f"/api/v1/documents/{shared}/versions/1/restore").status_code == 403
    assert colleague.get(f"/api/v1/documents/{shared}/versions").status_code == 200
    for path in (f"{private}/versions", f"{private}/versions/1/content"):
        assert colleague.get(f"/api/v1/documents/{path}").status_code == 404
    assert replace(colleague, private, "a.txt", b"mine").status_code == 404
    assert colleague.post(f"/api/v1/documents/{private}/versions/1/restore").status_code == 404
    for number in ("2", "0", "-1", "x", "9" * 30):
        answer = client.get(f"/api/v1/documents/{shared}/versions/{number}/content")
        assert (answer.status_code, answer.json()["code"]) == (404, "version.not_found")
    wrong = client.put(
        f"/api/v1/documents/{shared}/content", files={"file": ("a.txt", b"a")}, data={"visibility": "private"}
    )
    assert wrong.status_code == 400


def test_a_replacement_may_come_in_pieces(client: httpx.Client, colleague: httpx.Client):
    document = ready(client, "old.txt", sentence("mole"))["document_id"]
    data = sentence("dock")
    fields = {"filename": "new.txt", "document_id": document}
    told = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields.items())
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(data)),
        "Upload-Metadata": told,
        "Content-Type": "application/offset+octet-stream",
    }
    assert colleague.post("/api/v1/uploads", headers=headers).status_code == 403
    done = client.post("/api/v1/uploads", content=data, headers=headers)
    assert (done.status_code, done.headers["dreamhub-document-id"]) == (201, document)
    assert finished(client, done.headers["dreamhub-task-id"])["status"] == "succeeded"
    assert versions(client, document) == [(2, "current", "new.txt"), (1, "superseded", "old.txt")]


def test_the_later_of_two_replacements_wins(client: httpx.Client):
    document = ready(client, "old.txt", sentence("wharf"))["document_id"]
    texts = [sentence("ferry"), sentence("barge")]
    tasks = [replace(client, document, f"{text[14:19].decode()}.txt", text).json()["task_id"] for text in texts]
    assert [finished(client, task)["status"] for task in tasks] == ["succeeded"] * 2
    assert [item[:2] for item in versions(client, document)] == [(3, "current"), (2, "superseded"), (1, "superseded")]
    assert client.get(f"/api/v1/documents/{document}/content").content == texts[1]


def test_old_versions_are_forgotten(product: Product, client: httpx.Client, tenant: dict[str, Any]):
    document = upload(client, "0.txt", sentence("0"))["document_id"]
    for number in range(1, 12):
        assert replace(client, document, f"{number}.txt", sentence(str(number))).status_code == 202
    until(lambda: versions(client, document)[0][1] == "current")
    kept = [number for number, _, _ in versions(client, document)]
    assert len(kept) in (10, 11)  # the one that answered when the last came may be older than ten
    assert kept[0] == 12
    until(lambda: len(objects(product, tenant)) == len(kept))
    assert client.get(f"/api/v1/documents/{document}/versions/{kept[-1]}/content").status_code == 200


@pytest.mark.parametrize("path", ["", "/versions", "/versions/1/content"])
def test_a_deleted_document_has_no_versions(client: httpx.Client, path: str):
    document = ready(client, "gone.txt", sentence("wreck"))["document_id"]
    client.delete(f"/api/v1/documents/{document}")
    assert client.get(f"/api/v1/documents/{document}{path}").status_code == 404
