"""Documents as users handle them: once for the same bytes, private or shared, deleted for good, safe from faults."""

import asyncio
import os
import secrets
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import redis

from internal.repositories.migrate import OWNER
from tests.bench.pdf import make_pdf
from tests.e2e.product import Product, finished, upload
from tests.e2e.world import product_secrets
from tests.fixtures.files import build

TABLES = (
    *("contents", "documents", "generations", "chunks", "vectors_1", "token_codes", "chunk_terms"),
    "term_frequencies",
)


def counts(product: Product, tenant: dict[str, Any]) -> dict[str, int]:
    """Rows of the tenant in each table, counted past row-level security."""

    async def count() -> dict[str, int]:
        conn = await asyncpg.connect(product.up["postgres_dsn"])
        try:
            return {
                table: await conn.fetchval(
                    f"select count(*) from {table} where tenant_id = $1", uuid.UUID(tenant["id"])
                )
                for table in (*TABLES, "tasks")
            }
        finally:
            await conn.close()

    return asyncio.run(count())


def objects(product: Product, tenant: dict[str, Any]) -> list[Path]:
    return [path for path in (product.home / "blobs" / tenant["id"]).glob("*") if path.is_file()]


def ready(client: httpx.Client, name: str, data: bytes, **fields: str) -> dict[str, Any]:
    found = upload(client, name, data, **fields)
    task = finished(client, found["task_id"])
    assert task["status"] == "succeeded", task
    return found


def hits(client: httpx.Client, query: str, **filters: Any) -> list[str]:
    answer = client.post("/api/v1/search", json={"query": query, "filters": filters})
    assert answer.status_code == 200, answer.text
    return [item["filename"] for item in answer.json()["items"]]


def test_the_same_bytes_twice_are_one_document(product, tenant, client):
    first = upload(client, "a.txt", b"the lighthouse keeper counts ships")
    assert first["duplicate"] is False
    again = client.post("/api/v1/documents", files={"file": ("b.txt", b"the lighthouse keeper counts ships")})
    assert again.status_code == 200
    assert again.json()["duplicate"] is True
    assert (again.json()["document_id"], again.json()["task_id"]) == (first["document_id"], first["task_id"])
    finished(client, first["task_id"])
    assert counts(product, tenant)["documents"] == 1


def test_ten_at_once_are_one_document_and_one_task(product, tenant, client):
    async def all_at_once() -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {tenant['api_key']}"}
        async with httpx.AsyncClient(base_url=product.up["url"], headers=headers, trust_env=False, timeout=60) as many:
            files = {"file": ("same.txt", b"ten couriers carry the same letter")}
            answers = await asyncio.gather(*(many.post("/api/v1/documents", files=files) for _ in range(10)))
        assert {answer.status_code for answer in answers} <= {200, 202}
        return [answer.json() for answer in answers]

    found = asyncio.run(all_at_once())
    assert len({item["document_id"] for item in found}) == 1
    assert len({item["task_id"] for item in found}) == 1
    assert sum(not item["duplicate"] for item in found) == 1
    assert finished(client, found[0]["task_id"])["status"] == "succeeded"
    after = counts(product, tenant)
    assert (after["contents"], after["documents"], after["tasks"]) == (1, 1, 1)
    assert len(objects(product, tenant)) == 1


def test_a_colleague_gets_a_document_of_their_own_and_learns_nothing(product, tenant, client, colleague):
    text = b"the merger with Blue Heron closes in May"
    mine = ready(client, "secret.txt", text, visibility="private")
    before = counts(product, tenant)
    assert colleague.get(f"/api/v1/documents/{mine['document_id']}").status_code == 404
    assert colleague.get(f"/api/v1/tasks/{mine['task_id']}").status_code == 404
    assert hits(colleague, "Blue Heron merger") == []
    answer = colleague.post("/api/v1/documents", files={"file": ("theirs.txt", text)})
    assert answer.status_code == 202
    assert answer.json()["duplicate"] is False
    assert answer.json()["document_id"] != mine["document_id"]
    assert answer.json()["task_id"] != mine["task_id"]
    assert finished(colleague, answer.json()["task_id"])["status"] == "succeeded"
    after = counts(product, tenant)
    assert {name: after[name] - before[name] for name in ("contents", "generations", "chunks", "vectors_1")} == {
        "contents": 0,
        "generations": 0,
        "chunks": 0,
        "vectors_1": 0,
    }
    assert hits(colleague, "Blue Heron merger") == ["theirs.txt"]
    assert set(hits(client, "Blue Heron merger")) == {"secret.txt"}


def test_what_was_read_and_asked_is_in_the_ledger_once(client, colleague):
    def used() -> dict[str, tuple[int, int]]:
        answer = client.get("/api/v1/usage", params={"group_by": "purpose"})
        assert answer.status_code == 200, answer.text
        return {item["key"]: (item["requests"], item["prompt_tokens"]) for item in answer.json()["items"]}

    assert colleague.get("/api/v1/usage").status_code == 403
    text = b"the observatory on Mount Kestrel opens on the first clear night of every month"
    before = used().get("embedding", (0, 0))
    ready(client, "observatory.txt", text)
    after = used()["embedding"]
    assert after[0] == before[0] + 1
    assert 10 < after[1] - before[1] < 60
    ready(colleague, "theirs.txt", text)
    assert used()["embedding"] == after
    asked = used().get("chat", (0, 0))[0]
    conversation = client.post("/api/v1/conversations", json={}).json()["id"]
    question = {"content": "When does the observatory on Mount Kestrel open?"}
    assert client.post(f"/api/v1/conversations/{conversation}/messages", json=question).status_code == 200
    assert used()["chat"][0] == asked + 1
    assert client.get("/api/v1/usage").json()["storage"] == {"files": 1, "bytes": len(text)}


def test_only_the_last_document_of_a_content_takes_it_away(product, tenant, client, colleague):
    text = b"granite quarries of the northern province"
    mine, theirs = ready(client, "mine.txt", text), ready(colleague, "theirs.txt", text)
    first = client.delete(f"/api/v1/documents/{mine['document_id']}")
    assert first.status_code == 202
    assert finished(client, first.json()["task_id"])["status"] == "succeeded"
    assert hits(colleague, "granite quarries") == ["theirs.txt"]
    assert len(objects(product, tenant)) == 1
    last = colleague.delete(f"/api/v1/documents/{theirs['document_id']}")
    assert finished(colleague, last.json()["task_id"])["status"] == "succeeded"
    assert hits(colleague, "granite quarries") == []
    after = counts(product, tenant)
    assert {name: after[name] for name in TABLES if name != "term_frequencies"} == dict.fromkeys(
        (name for name in TABLES if name != "term_frequencies"), 0
    )
    assert objects(product, tenant) == []


def test_a_deleted_file_can_be_uploaded_again(client):
    text = b"the orchard blooms twice in warm years"
    for _ in range(2):
        found = ready(client, "orchard.txt", text)
        assert hits(client, "orchard blooms") == ["orchard.txt"]
        task = client.delete(f"/api/v1/documents/{found['document_id']}").json()["task_id"]
        assert hits(client, "orchard blooms") == []
        finished(client, task)


def test_a_document_can_be_renamed_tagged_gathered_and_hidden(client, colleague):
    found = ready(client, "draft.txt", "季度报告草稿，尚未审核。".encode(), tags="report", collection="drafts")
    assert hits(client, "季度报告", tags=["report"]) == ["draft.txt"]
    assert hits(client, "季度报告", tags=["other"]) == []
    assert hits(client, "季度报告", collections=["drafts"]) == ["draft.txt"]
    assert hits(colleague, "季度报告") == ["draft.txt"]
    changed = client.patch(
        f"/api/v1/documents/{found['document_id']}",
        json={"filename": "final.txt", "tags": ["final"], "collection": None, "visibility": "private"},
    )
    assert changed.status_code == 200, changed.text
    assert hits(client, "季度报告", tags=["final"]) == ["final.txt"]
    assert hits(client, "季度报告", collections=["drafts"]) == []
    assert hits(colleague, "季度报告") == []
    assert (
        client.get(f"/api/v1/documents/{found['document_id']}/content").content == "季度报告草稿，尚未审核。".encode()
    )


@pytest.mark.parametrize(
    ("name", "data", "status", "code"),
    [
        ("empty.txt", b"", 422, "file.empty"),
        ("setup.exe", b"MZ" + bytes(200), 415, "file.type_not_allowed"),
        ("a\x00b.txt", b"text", None, None),
        ("nested.zip", b"PK\x05\x06" + bytes(18), 415, "file.type_not_allowed"),
    ],
)
def test_what_is_no_document_is_refused_at_once(client, name, data, status, code):
    answer = client.post("/api/v1/documents", files={"file": (name, data)})
    if status is None:
        assert 400 <= answer.status_code < 500 or "\x00" not in answer.text
        return
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] == code
    assert client.get("/api/v1/documents").json()["items"] == []


def test_a_broken_pdf_fails_at_once_and_says_why(client):
    found = upload(client, "broken.pdf", b"%PDF-1.7\nthis is no PDF at all\n%%EOF")
    task = finished(client, found["task_id"])
    assert (task["status"], task["error"]["code"], task["retry_count"]) == ("failed", "file.unreadable", 0)
    assert task["error"]["message"]


def test_after_flushall_what_was_queued_still_ends(product, client):
    found = [upload(client, f"{number}.txt", f"letter number {number} of the archive".encode()) for number in range(20)]
    redis.Redis.from_url(product.up["redis_url"]).flushall()
    found += [upload(client, f"{number}.txt", f"later letter number {number}".encode()) for number in range(20, 25)]
    assert {finished(client, item["task_id"], 60)["status"] for item in found} == {"succeeded"}


def test_a_worker_killed_in_the_middle_loses_nothing(product, tenant, client):
    found = upload(client, "long.pdf", make_pdf(200, seed=secrets.randbits(32)))
    until = time.monotonic() + 60
    while counts(product, tenant)["vectors_1"] == 0:
        assert time.monotonic() < until
        time.sleep(0.05)
    killed = product.up["processes"]["worker"]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert client.get(f"/api/v1/tasks/{found['task_id']}").json()["status"] == "running"
    task = finished(client, found["task_id"], 60)
    assert task["status"] == "succeeded", task
    assert [attempt["outcome"] for attempt in task["attempts"]] == ["lost", "succeeded"]
    assert hits(client, "marker 199")[0] == "long.pdf"
    after = counts(product, tenant)
    assert after["chunks"] == after["vectors_1"] == after["token_codes"] == after["chunk_terms"]
    document = client.get(f"/api/v1/documents/{found['document_id']}").json()
    assert document["chunk_count"] == after["chunks"]
    while product.up["processes"]["worker"] == killed:
        assert time.monotonic() < until + 60
        time.sleep(0.1)


KINDS = {
    "report.pdf": build.pdf(build.show((72, 700, 12, "the harbour report"))),
    "letter.docx": build.docx(build.paragraph("the harbour letter")),
    "slides.pptx": build.pptx(("The harbour slides", "second line", "a note")),
    "notes.odt": build.odt("<text:p>the harbour notes</text:p>"),
    "book.epub": build.epub("<p>the harbour book</p>"),
    "page.html": b"<html><body><h1>The harbour page</h1><p>ships come and go</p></body></html>",
    "readme.md": b"# The harbour readme\n\nships come and go\n",
    "plain.txt": "港口的说明".encode("gb18030") * 20,
    "wide.txt": "港口的另一份说明".encode("utf-16"),
    "table.csv": b"ship,port\nAurora,Bergen\nVega,Oslo\n",
    "data.json": b'{"ship": "Aurora", "port": "Bergen"}',
    "mail.eml": b"From: a@example.com\nTo: b@example.com\nSubject: The harbour\n\nships come and go\n",
    "photo.png": build.picture("PNG"),
    "photo.jpg": build.picture("JPEG"),
    "photo.webp": build.picture("WEBP"),
    "photo.gif": build.picture("GIF"),
    "photo.tiff": build.picture("TIFF"),
}


def test_every_kind_of_file_is_read(client):
    found = {name: upload(client, name, data) for name, data in KINDS.items()}
    for name, item in found.items():
        task = finished(client, item["task_id"])
        assert task["status"] == "succeeded", (name, task)
        document = client.get(f"/api/v1/documents/{item['document_id']}").json()
        kind = {"photo": "photo", "mail": "email"}.get(name.partition(".")[0], "document")
        assert document["source_type"] == kind
        assert (document["chunk_count"] > 0) == (kind != "photo"), document


def test_an_encrypted_pdf_says_so(client):
    found = upload(client, "locked.pdf", build.encrypted_pdf())
    task = finished(client, found["task_id"])
    assert (task["status"], task["error"]["code"], task["retry_count"]) == ("failed", "file.encrypted", 0)


def test_the_same_bytes_are_read_again_while_their_removal_is_cut_short(product: Product) -> None:
    """The removal condemned the content and lost its worker; whoever uploads the file again doesn't wait for it."""
    tenant = product.new_tenant(f"again-{secrets.token_hex(4)}")
    mark = f"heron{secrets.token_hex(4)}"
    text = f"The {mark} stands in the reeds.".encode()
    with product.client(tenant["api_key"]) as client:
        first = upload(client, "heron.txt", text)
        assert finished(client, first["task_id"])["status"] == "succeeded"
        asyncio.run(condemn(product, first["document_id"]))
        again = upload(client, "heron.txt", text)
        assert again["document_id"] != first["document_id"]
        assert finished(client, again["task_id"])["status"] == "succeeded"
        found = client.post("/api/v1/search", json={"query": mark, "mode": "keyword"}).json()["items"]
        assert [item["document_id"] for item in found] == [again["document_id"]]


async def condemn(product: Product, document: str) -> None:
    """What the removal of a document has written when its worker dies before the first passage is gone."""
    dsn = httpx.URL(product.up["postgres_dsn"])
    password = product_secrets(product)["database_passwords"][OWNER]
    conn = await asyncpg.connect(str(dsn.copy_with(username=OWNER, password=password)))
    try:
        content = await conn.fetchval("delete from documents where id = $1 returning content_id", uuid.UUID(document))
        await conn.execute("update contents set purged_at = now(), generation_id = null where id = $1", content)
    finally:
        await conn.close()
