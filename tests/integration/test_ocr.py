"""Whose fault it is when a picture isn't read in time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from internal.providers import ocr
from internal.providers.ocr import LocalOcr
from pkg.apperr import AppError, Code


@asynccontextmanager
async def reader_that_hangs(folder: Path, *, healthy: bool) -> AsyncGenerator[str]:
    """Takes pictures and never answers; `/healthz` it answers only when `healthy`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if healthy and line.startswith(b"GET /healthz "):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "models.sock")
    try:
        yield f"unix:{folder / 'models.sock'}"
    finally:
        server.close()


@pytest.mark.parametrize(("healthy", "code"), [(True, Code.MODEL_TIMEOUT), (False, Code.MODEL_UNAVAILABLE)])
async def test_a_picture_that_takes_too_long_is_told_from_a_reader_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, healthy: bool, code: Code
) -> None:
    monkeypatch.setattr(ocr, "ALIVE_SECONDS", 0.2)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"x")
    async with reader_that_hangs(tmp_path, healthy=healthy) as url:
        reader = LocalOcr(url, timeout=0.2)
        with pytest.raises(AppError) as caught:
            await reader.read(picture)
        await reader.close()
    assert caught.value.code is code
