"""A reading is cancelled wherever it waits: for the text reader, or for the embedding model."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from internal.entities.ids import new_id
from internal.entities.search import Space
from internal.entities.tasks import TaskStatus
from internal.parsers.sandbox import Sandbox
from internal.providers.blobs import open_blobs
from internal.providers.embeddings import LocalEmbeddings
from internal.providers.ocr import LocalOcr
from internal.repositories.broadcasts import Megaphone
from internal.services.embedder import Embedder
from internal.services.ingest import IngestService
from internal.services.sweep import SweepService
from pkg import config
from pkg.ctxutil import Context
from tests.ledger import Ledger, open_ledger
from tests.servers import Database

SPACE = Space("multilingual-e5-small", "2", 384, 1)


class Mute:
    """A model process that takes every request and answers none."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hung_up = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            self.asked.set()
        self.hung_up.set()
        writer.close()


@asynccontextmanager
async def muted() -> AsyncGenerator[Mute]:
    found = Mute()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()


@asynccontextmanager
async def reading(ledger: Ledger, folder: Path, models: Mute, redis_url: str) -> AsyncGenerator[IngestService]:
    sandbox, ocr = Sandbox(config.Limits()), LocalOcr(models.url)
    embeddings, megaphone = LocalEmbeddings(models.url, SPACE), Megaphone(redis_url)
    blobs = open_blobs(config.Blobs(url=(folder / "blobs").as_uri()))
    try:
        embedder = Embedder(embeddings)
        sweep = SweepService(ledger.worker_store, blobs, orphan_hours=24)
        yield IngestService(ledger.worker_store, blobs, sandbox, ocr, embedder, megaphone, sweep, workdir=folder)
    finally:
        for part in (sandbox, ocr, embeddings, megaphone):
            await part.close()


async def uploaded(ledger: Ledger, ctx: Context, folder: Path, file: Path, media_type: str) -> Any:
    """A task that reads the file."""
    content = new_id()
    blobs = open_blobs(config.Blobs(url=(folder / "blobs").as_uri()))
    await blobs.put_file(blobs.key(ctx.tenant_id, content), file)
    await ledger.inspector.execute(
        "insert into contents (tenant_id, id, sha256, size, media_type, source_type, blob_key)"
        " values ($1, $2, $3, $4, $5, 'photo', $6)",
        ctx.tenant_id,
        content,
        hashlib.sha256(content.bytes).digest(),
        file.stat().st_size,
        media_type,
        blobs.key(ctx.tenant_id, content),
    )
    [task] = await ledger.add(ctx, "ingest_content")
    await ledger.inspector.execute("update tasks set content_id = $2 where id = $1", task.id, content)
    return task


def picture(folder: Path) -> tuple[Path, str]:
    image = Image.new("RGB", (400, 100), "white")
    ImageDraw.Draw(image).text((10, 40), "The lighthouse keeper counts ships", fill="black")
    image.save(folder / "picture.png")
    return folder / "picture.png", "image/png"


def text(folder: Path) -> tuple[Path, str]:
    (folder / "text.txt").write_text("The lighthouse keeper counts ships.")
    return folder / "text.txt", "text/plain"


@pytest.mark.parametrize(("make", "stage"), [(picture, "recognising"), (text, "reading")])
async def test_a_reading_that_waits_for_a_model_is_cancelled(
    database: Database, redis_url: str, tmp_path: Path, make: Any, stage: str
) -> None:
    async with open_ledger(database, redis_url) as ledger, muted() as models:
        ctx = await ledger.tenant()
        async with reading(ledger, tmp_path, models, redis_url) as ingest, ledger.relay():
            task = await uploaded(ledger, ctx, tmp_path, *make(tmp_path))
            async with ledger.worker(ledger.jobs(ingest_content=ingest.ingest_content)):
                await asyncio.wait_for(models.asked.wait(), 30)
                assert (await ledger.get(ctx, task.id)).stage == stage
                async with ledger.app.tenant(ctx) as tx:
                    await tx.tasks.cancel(task.id)
                await ledger.until(ctx, task.id, TaskStatus.CANCELLED, seconds=10)
                await asyncio.wait_for(models.hung_up.wait(), 10)
        assert await ledger.outcomes(ctx, task.id) == ["cancelled"]
        assert list(tmp_path.glob("ingest-*")) == []
