"""Uploads where a scanner is set: what is infected or couldn't be scanned is refused, and nothing of it stays."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import httpx
import pytest

from pkg import config
from tests.integration.api import Running, is_problem, served, settings_for
from tests.scanner import SIGNATURE, running_clamd
from tests.servers import Database, Servers


def scanning(database: Database, redis_url: str, folder: Path, address: str) -> config.Settings:
    found = settings_for(database, redis_url, folder)
    return found.model_copy(update={"scan": config.Scan(clamd=address, timeout_seconds=3)})


@pytest.fixture(scope="module")
def clamd() -> Generator[Path]:
    with running_clamd() as found:
        yield found


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory, clamd: Path
) -> AsyncGenerator[Running]:
    folder = tmp_path_factory.mktemp("scan")
    settings = scanning(module_database, servers.redis_url, folder, f"unix:{clamd / 'clamd.sock'}")
    async with served(settings) as running:
        yield running


async def upload(client: httpx.AsyncClient, data: bytes) -> httpx.Response:
    return await client.post("/api/v1/documents", files={"file": ("letter.txt", data)})


async def post(client: httpx.AsyncClient, data: bytes) -> httpx.Response:
    """Waits for clamd, which loads its signatures first."""
    async with asyncio.timeout(30):
        while True:
            answer = await upload(client, data)
            if answer.status_code != 503:
                return answer
            await asyncio.sleep(0.2)


async def test_an_infected_file_is_refused_and_nothing_of_it_stays(api):
    tenant = await api.new_tenant("scanned")
    async with api.client(tenant["api_key"]) as client:
        is_problem(await post(client, SIGNATURE), 422, "file.infected")
        assert (await client.get("/api/v1/documents")).json()["items"] == []
        assert (await client.get("/api/v1/tasks")).json()["items"] == []
        assert (await post(client, b"a harmless letter")).status_code == 202
    folder = Path(api.services.settings.home)
    assert len([path for path in (folder / "blobs").rglob("*") if path.is_file()]) == 1
    assert not list(folder.rglob("upload-*"))


async def test_without_an_answer_of_the_scanner_nothing_comes_in(servers, database, tmp_path):
    settings = scanning(database, servers.redis_url, tmp_path, f"unix:{tmp_path}/nobody.sock")
    async with served(settings) as api:
        tenant = await api.new_tenant("waiting")
        async with api.client(tenant["api_key"]) as client:
            answer = await upload(client, b"a harmless letter")
            is_problem(answer, 503, "scan.unavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert (await client.get("/api/v1/documents")).json()["items"] == []


async def test_a_crowd_is_scanned_and_comes_in(api):
    tenant = await api.new_tenant("crowd")
    async with api.client(tenant["api_key"]) as client:
        await post(client, b"the first letter")
        sent = await asyncio.gather(*(upload(client, b"letter %d" % number) for number in range(30)))
        assert [answer.status_code for answer in sent] == [202] * 30


async def test_while_the_scanner_hangs_a_crowd_is_sent_away_in_time_and_all_else_goes_on(api, clamd):
    tenant = await api.new_tenant("hanging")
    daemon = int((clamd / "clamd.pid").read_text())
    async with api.client(tenant["api_key"]) as client:
        await post(client, b"before")
        os.kill(daemon, signal.SIGSTOP)
        try:
            crowd = asyncio.gather(*(upload(client, b"hello %d" % number) for number in range(30)))
            listed = await client.get("/api/v1/documents")
            assert not crowd.done()
            assert len(listed.json()["items"]) == 1
            refused = await crowd
        finally:
            os.kill(daemon, signal.SIGCONT)
        for answer in refused:
            is_problem(answer, 503, "scan.unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert len((await client.get("/api/v1/documents")).json()["items"]) == 1
        assert (await post(client, b"hello 0")).status_code == 202
