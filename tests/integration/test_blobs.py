"""Objects in a folder and in a real S3 server."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import obstore
import pytest

from internal.entities.ids import new_id
from internal.providers.blobs import BlobStore, open_blobs
from pkg.apperr import AppError, Code, SettingsError
from pkg.sections import Blobs
from tests.integration.api import served, settings_for
from tests.integration.test_api_uploads import begin, send

SOCKETS = Path("/tmp")
"""Where SeaweedFS makes sockets, whatever it is told."""
ACCESS, SECRET = "dreamhub-test", "a-secret-of-the-tests"
CREDENTIALS = """{"identities": [{"name": "test", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],
 "actions": ["Admin", "Read", "Write", "List"]}]}"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(scope="module")
def s3() -> Generator[str]:
    """Address of a SeaweedFS that speaks S3."""
    program = Path(sys.executable).with_name("weed")
    with tempfile.TemporaryDirectory(prefix="weed-") as folder:
        (Path(folder) / "s3.json").write_text(CREDENTIALS % (ACCESS, SECRET))
        master, volume, filer, port, *grpc = free_ports(8)
        command = [program, "-logtostderr", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
                   f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={port}",
                   f"-master.port.grpc={grpc[0]}", f"-volume.port.grpc={grpc[1]}", f"-filer.port.grpc={grpc[2]}",
                   f"-s3.port.grpc={grpc[3]}", f"-s3.config={folder}/s3.json", "-master.volumeSizeLimitMB=64",
                   "-volume.max=20"]  # fmt: skip
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()  # a clean stop takes it half a minute
            process.wait(timeout=20)
            for left in (
                left for number in (filer, port, *grpc) for left in SOCKETS.glob(f"seaweedfs-*-{number}.sock")
            ):
                left.unlink()


@pytest.fixture(params=["file", "s3"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[BlobStore]:
    if request.param == "file":
        yield open_blobs(Blobs(url=f"file://{tmp_path}/objects with space"))
        return
    endpoint = request.getfixturevalue("s3")
    store = open_blobs(
        Blobs(url=f"s3://dreamhub?endpoint={endpoint}&region=us-east-1", access_key=ACCESS, secret_key=SECRET)
    )
    async with asyncio.timeout(60):
        while not await bucket_ready(endpoint, store):
            await asyncio.sleep(0.2)
    yield store


async def bucket_ready(endpoint: str, store: BlobStore) -> bool:
    """SeaweedFS makes a bucket at the first write by an admin."""
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(endpoint)
        await store.check()
    except (httpx.HTTPError, AppError):
        return False
    return True


async def test_a_large_file_comes_back_as_it_was(blobs, tmp_path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(20 * 1024 * 1024 + 7))
    key = BlobStore.key(new_id(), new_id())
    await blobs.put_file(key, source)
    assert await blobs.fetch(key, copy) == source.stat().st_size
    assert copy.read_bytes() == source.read_bytes()
    part = b"".join([part async for part in blobs.read(key, start=100, end=300)])
    assert part == source.read_bytes()[100:300]
    rest = b"".join([part async for part in blobs.read(key, start=20 * 1024 * 1024)])
    assert len(rest) == 7


async def test_an_upload_in_pieces_through_s3(servers, database, tmp_path, s3):
    """Parts are objects, and the whole is put together without lying in memory."""
    address = Blobs(url=f"s3://dreamhub?endpoint={s3}&region=us-east-1", access_key=ACCESS, secret_key=SECRET)
    store = open_blobs(address)
    async with asyncio.timeout(60):
        while not await bucket_ready(s3, store):
            await asyncio.sleep(0.2)
    settings = settings_for(database, servers.redis_url, tmp_path).model_copy(update={"blobs": address})
    data = os.urandom(9 * 1024 * 1024).hex().encode()[: 12 * 1024 * 1024 + 5]
    async with served(settings) as api:
        tenant = await api.new_tenant("pieces")
        async with api.client(tenant["api_key"]) as client:
            path = await begin(client, len(data))
            assert (await send(client, path, 0, data[:7_000_000])).status_code == 204
            done = await send(client, path, 7_000_000, data[7_000_000:])
            assert done.status_code == 204, done.text
            content = await client.get(f"/api/v1/documents/{done.headers['dreamhub-document-id']}/content")
            assert content.content == data
            assert (await client.head(path, headers={"Tus-Resumable": "1.0.0"})).status_code == 200
    left = [item["path"] async for page in obstore.list(store._store, prefix=tenant["id"]) for item in page]
    assert len(left) == 1, left


async def test_a_removed_object_is_gone_and_removing_again_is_fine(blobs, tmp_path):
    (tmp_path / "source").write_bytes(b"x")
    key = BlobStore.key(new_id(), new_id())
    await blobs.put_file(key, tmp_path / "source")
    await blobs.remove(key)
    await blobs.remove(key)
    with pytest.raises(FileNotFoundError):
        await blobs.fetch(key, tmp_path / "copy")


async def test_a_store_that_is_away_is_named_as_such(tmp_path):
    port = free_ports(1)[0]
    away = open_blobs(Blobs(url=f"s3://bucket?endpoint=http://127.0.0.1:{port}", access_key="a", secret_key="b"))
    with pytest.raises(AppError) as error:
        await away.check()
    assert error.value.code == Code.BLOB_UNAVAILABLE


async def test_a_folder_that_goes_away_is_named_as_such(tmp_path):
    store = open_blobs(Blobs(url=f"file://{tmp_path}/objects"))
    shutil.rmtree(tmp_path / "objects")
    (tmp_path / "objects").write_text("a file stands where the folder was")
    with pytest.raises(AppError) as error:
        await store.check()
    assert error.value.code == Code.BLOB_UNAVAILABLE


@pytest.mark.parametrize(
    "settings",
    [
        Blobs(url="file:///proc/nowhere"),
        Blobs(url="s3://bucket?ennpoint=x"),
        Blobs(url="s3://b", access_key="a"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(settings):
    with pytest.raises(SettingsError, match="BLOBS__"):
        open_blobs(settings)


async def test_objects_are_listed_a_page_at_a_time_with_their_age(blobs, tmp_path):
    (tmp_path / "source").write_bytes(b"x")
    tenant, other = new_id(), new_id()
    keys = [BlobStore.key(tenant, new_id()) for _ in range(5)] + [BlobStore.part_key(tenant, new_id())]
    for key in [*keys, BlobStore.key(other, new_id())]:
        await blobs.put_file(key, tmp_path / "source")
    pages = [page async for page in blobs.pages(str(tenant), size=4)]
    assert sorted(item.key for page in pages for item in page) == sorted(keys)
    assert all(abs((datetime.now(UTC) - item.modified).total_seconds()) < 120 for page in pages for item in page)
    assert [page async for page in blobs.pages(str(new_id()), size=4)] == []
    assert await blobs.exists(keys[0])
    await blobs.remove(keys[0])
    assert not await blobs.exists(keys[0])
