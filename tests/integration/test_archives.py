"""Archives on their way to documents: each file once, whatever is in the archive and whatever happens to the worker."""

import asyncio
import random
import signal
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from internal.entities.tasks import Queue
from internal.providers.antivirus import Clamd
from pkg.sections import Scan
from tests.archives import flagged_encrypted, raw_named, tarred, zipped
from tests.integration.batches import Stage, items_of, send_archive, staged
from tests.ledger import eventually
from tests.scanner import SIGNATURE, running_clamd
from tests.servers import Database, Servers

MB = 1 << 20


@pytest.fixture
async def stage(servers: Servers, database: Database, tmp_path: Path) -> AsyncGenerator[Stage]:
    async with staged(servers, database, tmp_path, max_file_mb=1, batch_mb=4) as found:
        yield found


@pytest.fixture
async def client(stage: Stage) -> AsyncGenerator[httpx.AsyncClient]:
    made = await stage.api.new_tenant("archives")
    async with stage.api.client(made["api_key"]) as found:
        yield found


@pytest.fixture(scope="module")
def clamd() -> Generator[Path]:
    with running_clamd() as folder:
        yield folder


async def documents_of(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """By name; fails where one is there twice."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await client.get(f"/api/v1/documents?limit=200{cursor}")).json()
        found += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len({item["filename"] for item in found}) == len(found)
    return {item["filename"]: item for item in found}


async def test_files_of_an_archive_become_documents(stage: Stage, client: httpx.AsyncClient) -> None:
    names = ["员工手册.txt", "财务/报表/二零二六年.txt", "plain.txt"]
    data = raw_named({name.encode("gb18030"): f"the text of {name}".encode() for name in names})
    batch = await send_archive(client, data, tags="a, b", collection="资料", visibility="private", priority="high")
    assert (batch["kind"], batch["status"], batch["total"], batch["progress"]) == ("archive", "queued", 0, 0.0)
    assert batch["items"] == []
    assert len(stage.archives()) == 1
    async with stage.worker():
        over = await stage.over(client, batch)
    assert (over["status"], over["total"], over["succeeded"], over["progress"]) == ("succeeded", 3, 3, 1.0)
    items = await items_of(client, batch)
    assert [(item["folder"], item["filename"]) for item in items] == [
        (None, "员工手册.txt"),
        ("财务/报表", "二零二六年.txt"),
        (None, "plain.txt"),
    ]
    for item in items:
        document = (await client.get(f"/api/v1/documents/{item['document_id']}")).json()
        assert (document["tags"], document["collection"], document["visibility"]) == (["a", "b"], "资料", "private")
        assert document["metadata"].get("folder") == item["folder"]
        assert (await client.get(f"/api/v1/tasks/{item['task_id']}")).json()["queue"] == "high_priority"
    content = await client.get(f"/api/v1/documents/{items[1]['document_id']}/content")
    assert content.content == f"the text of {names[1]}".encode()
    assert stage.archives() == []
    assert list((stage.folder / "work").iterdir()) == []


@pytest.mark.parametrize("pack", [zipped, tarred])
async def test_a_bad_entry_refuses_no_other(stage: Stage, client: httpx.AsyncClient, clamd: Path, pack) -> None:
    files = {
        "good.txt": b"a good note",
        "../out.txt": b"leads out",
        "empty.txt": b"",
        "program.exe": b"MZ\x00\x01" + b"\x00" * 100,
        "nested.zip": zipped({"inner.txt": b"inner"}),
        "nested.tar.gz": tarred({"inner.txt": b"inner"}),
        "nested.tar": tarred({"inner.txt": b"inner"}, "w"),
        "infected.txt": SIGNATURE,
        "large.bin": random.Random(1).randbytes(MB + 1),
        "copy.txt": b"a good note",
        "n" * 300 + ".txt": b"a long name",
        "last.txt": b"another good note",
    }
    batch = await send_archive(client, pack(files))
    async with stage.worker(antivirus=Clamd(Scan(clamd=f"unix:{clamd}/clamd.sock"))):
        over = await stage.over(client, batch)
    items = await items_of(client, batch)
    assert [item["error"] and item["error"]["code"] for item in items] == [
        None,
        "file.name_invalid",
        "file.empty",
        "file.type_not_allowed",
        "file.type_not_allowed",
        "file.type_not_allowed",
        "file.type_not_allowed",
        "file.infected",
        "file.too_large",
        None,
        "file.name_invalid",
        None,
    ]
    assert (over["status"], over["succeeded"], over["refused"]) == ("failed", 3, 9)
    assert (items[9]["duplicate"], items[9]["document_id"]) == (True, items[0]["document_id"])
    assert set(await documents_of(client)) == {"good.txt", "last.txt"}
    assert stage.archives() == []


async def test_an_encrypted_archive_says_so_of_each_file(stage: Stage, client: httpx.AsyncClient) -> None:
    batch = await send_archive(client, flagged_encrypted(zipped({"a.txt": b"a", "b.txt": b"b"})))
    async with stage.worker():
        over = await stage.over(client, batch)
    assert (over["status"], over["refused"]) == ("failed", 2)
    assert {item["error"]["code"] for item in await items_of(client, batch)} == {"file.encrypted"}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (tarred({"good.txt": b"good", "bomb.txt": b"\0" * 64 * MB}), "file.too_complex"),
        (zipped({"good.txt": b"good", "other.txt": b"x" * MB})[:-99], "file.unreadable"),
    ],
    ids=["bomb", "cut"],
)
async def test_of_an_archive_that_is_refused_nothing_is_made(
    stage: Stage, client: httpx.AsyncClient, data: bytes, code: str
) -> None:
    batch = await send_archive(client, data)
    async with stage.worker():
        over = await stage.over(client, batch)
    assert (over["status"], over["total"], over["error"]["code"]) == ("failed", 0, code)
    task = (await client.get(f"/api/v1/tasks/{batch['task_id']}")).json()
    assert (task["status"], task["error"]["code"], task["retry_count"]) == ("failed", code, 0)
    assert await documents_of(client) == {}
    assert stage.archives() == []


async def test_ten_thousand_empty_files_are_told_one_by_one(stage: Stage, client: httpx.AsyncClient) -> None:
    batch = await send_archive(client, zipped({f"{number}.txt": b"" for number in range(10_000)}))
    async with stage.worker():
        over = await stage.over(client, batch)
    assert (over["status"], over["total"], over["refused"]) == ("failed", 10_000, 10_000)


async def test_a_full_tenant_holds_the_archive_and_loses_nothing(
    servers: Servers, database: Database, tmp_path: Path
) -> None:
    async with staged(servers, database, tmp_path, queue_depth=6) as stage:
        made = await stage.api.new_tenant("full")
        async with stage.api.client(made["api_key"]) as client:
            files = {f"{number}.txt": f"file number {number}".encode() for number in range(9)}
            batch = await send_archive(client, zipped(files), priority="normal")
            path = f"/api/v1/tasks/{batch['task_id']}"
            async with stage.worker(Queue.BATCH):
                held: dict[str, Any] = {}

                async def is_held() -> bool:
                    nonlocal held
                    held = (await client.get(path)).json()
                    return (held["error"] or {}).get("code") == "queue.full"

                await eventually(is_held)
                assert (held["retry_count"], held["attempts"][0]["outcome"]) == (0, "held")
                half = await stage.until(client, batch, lambda found: found["waiting"] == 9)
                assert half["status"] == "queued"
                assert len(await documents_of(client)) == 5
                async with stage.worker(Queue.DEFAULT):
                    over = await stage.over(client, batch)
            assert (over["status"], over["succeeded"]) == ("succeeded", 9)
            assert set(await documents_of(client)) == set(files)
            assert len(stage.read) == len(set(stage.read)) == 9
            task = (await client.get(path)).json()
            assert (task["status"], task["retry_count"]) == ("succeeded", 0)


@pytest.mark.parametrize(
    ("count", "crashes"),
    [
        (300, ("upload.after_blob=crash@100", "upload.after_commit=crash@150")),
        (30, ("archive.after_plan=crash", "archive.before_removal=crash")),
    ],
    ids=["between entries", "at the ends"],
)
async def test_each_file_is_there_once_however_workers_die(
    stage: Stage, client: httpx.AsyncClient, count: int, crashes: tuple[str, str]
) -> None:
    files = {f"{number}.txt": f"the text of file {number}".encode() for number in range(count)}
    batch = await send_archive(client, zipped(files), priority="normal")
    for failpoints in crashes:
        with stage.process(Queue.BATCH, failpoints=failpoints) as doomed:
            assert await asyncio.to_thread(doomed.wait, 60) == -signal.SIGKILL
    with stage.process(Queue.BATCH):
        found = await stage.until(client, batch, lambda found: found["total"] == count and not stage.archives())
        assert found["waiting"] == count
        assert (await client.get(f"/api/v1/tasks/{batch['task_id']}")).json()["retry_count"] == 0
    assert set(await documents_of(client)) == set(files)
    items = await items_of(client, batch)
    assert [item["filename"] for item in items] == list(files)
    assert len({item["task_id"] for item in items}) == count
    assert await stage.ledger.inspector.fetchval("select count(*) from tasks where kind = 'ingest_content'") == count
    async with stage.worker(Queue.DEFAULT):
        over = await stage.over(client, batch)
    assert (over["status"], over["succeeded"]) == ("succeeded", count)


async def test_a_cancelled_archive_makes_nothing_more(stage: Stage, client: httpx.AsyncClient) -> None:
    files = {f"{number}.txt": f"file number {number}".encode() for number in range(50)}
    batch = await send_archive(client, zipped(files), priority="normal")
    with stage.process(Queue.BATCH, failpoints="archive.after_entry=delay:0.2"):
        await stage.until(client, batch, lambda found: found["total"] == 50)
        cancelled = await client.post(f"/api/v1/batches/{batch['id']}/cancel")
        assert cancelled.status_code == 202
        over = await stage.over(client, batch)
    assert (over["status"], over["cancelled"], over["waiting"]) == ("cancelled", 50, 0)
    assert len(await documents_of(client)) < 50
