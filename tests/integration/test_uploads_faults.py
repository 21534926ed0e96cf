"""Unfinished uploads after a crash, on S3, and when their time is over."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from dreamhub.embedded import free_port
from internal.providers.antivirus import NoScan
from internal.providers.blobs import open_blobs
from internal.services.documents import DocumentService, UploadRequest
from internal.services.pieces import Body
from internal.services.purge import PurgeService
from internal.services.uploads import PART_BYTES, UploadService
from internal.services.versions import VersionService
from pkg.sections import Blobs, Limits
from tests.integration.api import JWT_SECRET, PLATFORM_TOKEN
from tests.integration.test_api_uploads import begin, offset_of, send, text
from tests.ledger import eventually, open_ledger
from tests.servers import Database, Servers

MB = 1024 * 1024
CHECKOUT = Path(__file__).parents[2]


@asynccontextmanager
async def process(
    servers: Servers, database: Database, folder: Path, failpoints: str = ""
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str]]:
    """`dreamhub serve` and its address."""
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{CHECKOUT / 'cmd'}:{CHECKOUT}",
        "DREAMHUB_HOME": str(folder),
        "DREAMHUB_FAILPOINTS": failpoints,
        "SERVER__PORT": str(port),
        "DB__DSN": database.app,
        "REDIS__URL": servers.redis_url,
        "BLOBS__URL": (folder / "blobs").as_uri(),
        "MODELS__URL": "http://127.0.0.1:9",
        "AUTH__PLATFORM_TOKEN": PLATFORM_TOKEN,
        "AUTH__JWT_SECRET": JWT_SECRET,
    }
    with (folder / "log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dreamhub", "serve", env=environment, cwd=CHECKOUT, stdout=log, stderr=log
        )
    try:
        await listening(child, port)
        yield child, f"http://127.0.0.1:{port}"
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def listening(child: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(120):
        while True:
            assert child.returncode is None, "the server ended at its start"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            await asyncio.sleep(0.05)


def client_of(url: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=90, trust_env=False)


async def test_killed_servers_lose_no_byte_that_counts(servers, database, tmp_path):
    """One dies between the second part's object and its row, one between the document and the upload's row; the third
    takes in a large file, and doesn't grow by it."""
    data = text(2 * PART_BYTES + 1000)
    conn = await asyncpg.connect(database.superuser)

    async def release() -> None:
        """What 30 seconds would do."""
        await conn.execute("update uploads set held_until = clock_timestamp() where holder is not null")

    async with process(servers, database, tmp_path, "part.after_object=crash@2") as (child, url):
        async with client_of(url, PLATFORM_TOKEN) as platform:
            tenant = {"name": "killed", "owner_email": "o@killed.example"}
            key = (await platform.post("/api/v1/tenants", json=tenant)).json()["api_key"]
        async with client_of(url, key) as client:
            path = await begin(client, len(data))
            with pytest.raises(httpx.TransportError):
                await send(client, path, 0, data)
        assert await child.wait() == -9
    await release()
    async with process(servers, database, tmp_path, "part.after_document=crash") as (child, url):
        async with client_of(url, key) as client:
            assert await offset_of(client, path) == PART_BYTES
            with pytest.raises(httpx.TransportError):
                await send(client, path, PART_BYTES, data[PART_BYTES:])
        assert await child.wait() == -9
    await release()
    async with process(servers, database, tmp_path) as (child, url), client_of(url, key) as client:
        stored = await offset_of(client, path)
        assert stored == 2 * PART_BYTES
        done = await send(client, path, stored, data[stored:])
        assert done.status_code == 204, done.text
        [document] = (await client.get("/api/v1/documents")).json()["items"]
        assert document["id"] == done.headers["dreamhub-document-id"]
        assert (await client.get(f"/api/v1/documents/{document['id']}/content")).content == data
        assert not list((tmp_path / "blobs").rglob("uploads/*"))
        assert len([item for item in (tmp_path / "blobs").rglob("*") if item.is_file()]) == 1
        await _stays_small(client, psutil.Process(child.pid))
    await conn.close()


async def _stays_small(client: httpx.AsyncClient, server: psutil.Process) -> None:
    size = 64 * MB
    block = text(MB)

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(size // MB):
            yield block

    path = await begin(client, size)
    before = highest = server.memory_info().rss
    sending = asyncio.create_task(send(client, path, 0, blocks()))
    while not sending.done():
        highest = max(highest, server.memory_info().rss)
        await asyncio.sleep(0.01)
    assert (await sending).status_code == 204, (await sending).text
    assert highest - before < 30 * MB, f"{(highest - before) / MB:.1f} MB"


async def test_what_nobody_went_on_with_is_removed_with_its_bytes(database, redis_url, tmp_path):
    async def chunks() -> AsyncIterator[bytes]:
        yield b"four"

    async with open_ledger(database, redis_url) as ledger:
        blobs = open_blobs(Blobs(url=(tmp_path / "blobs").as_uri()))
        documents = DocumentService(ledger.app, blobs, NoScan(), spool=tmp_path, max_file_mb=1)
        versions = VersionService(ledger.app, documents, keep=2)
        limits = Limits(max_file_mb=1)
        uploads = UploadService(ledger.app, blobs, documents, versions, spool=tmp_path, limits=limits)
        contexts = [await ledger.tenant() for _ in range(2)]
        kept = []
        for ctx in contexts:
            for _ in range(2):
                upload = await uploads.begin(ctx, 10, "", UploadRequest(filename="a.txt"))
                await uploads.append(ctx, upload.id, 0, Body(chunks=chunks()))
            kept.append(upload.id)
        over = await ledger.inspector.execute(
            "update uploads set expires_at = now() - interval '1 second' where id <> all($1)", kept
        )
        assert over == "UPDATE 2"
        assert len(list((tmp_path / "blobs").rglob("uploads/*"))) == 4
        purge = PurgeService(ledger.worker_store, blobs)
        async with ledger.relay(), ledger.worker(ledger.jobs(purge_uploads=purge.purge_uploads)):

            async def swept() -> bool:
                return await ledger.inspector.fetchval("select count(*) from uploads") == 2

            await eventually(swept, seconds=60)
        assert {row["id"] for row in await ledger.inspector.fetch("select id from uploads")} == set(kept)
        assert len(list((tmp_path / "blobs").rglob("uploads/*"))) == 2
        rows = await ledger.inspector.fetch("select tenant_id, user_id from tasks where kind = 'purge_uploads'")
        assert {tuple(row) for row in rows} == {(ctx.tenant_id, ctx.user_id) for ctx in contexts}
