"""clamd for real: what it finds, what it can't look into, and when it is away."""

import asyncio
import os
import signal
import zipfile
from collections.abc import Generator
from pathlib import Path

import pytest

from internal.providers.antivirus import Antivirus, open_antivirus
from pkg.apperr import AppError, Code
from pkg.sections import Scan
from tests.scanner import SIGNATURE, running_clamd


@pytest.fixture(scope="module")
def folder() -> Generator[Path]:
    with running_clamd() as found:
        yield found


@pytest.fixture
async def antivirus(folder: Path) -> Antivirus:
    found = open_antivirus(Scan(clamd=f"unix:{folder / 'clamd.sock'}", timeout_seconds=5))
    async with asyncio.timeout(30):
        while True:
            try:
                await found.check()
            except AppError:
                await asyncio.sleep(0.1)
            else:
                return found


async def refusal(antivirus: Antivirus, path: Path) -> Code:
    with pytest.raises(AppError) as error:
        await antivirus.scan(path)
    return error.value.code


async def test_a_harmless_file_comes_in(antivirus, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    await antivirus.scan(tmp_path / "a.txt")


async def test_a_virus_is_named(antivirus, tmp_path):
    (tmp_path / "a.txt").write_bytes(SIGNATURE)
    with pytest.raises(AppError, match="Eicar") as error:
        await antivirus.scan(tmp_path / "a.txt")
    assert error.value.code == Code.FILE_INFECTED


async def test_a_virus_in_an_archive_is_found(antivirus, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner.com", SIGNATURE)
    assert await refusal(antivirus, tmp_path / "a.zip") == Code.FILE_INFECTED


async def test_what_is_nested_too_deeply_to_be_scanned_is_refused(antivirus, tmp_path):
    inner = tmp_path / "0.zip"
    inner.write_bytes(SIGNATURE)
    for depth in range(1, 12):
        outer = tmp_path / f"{depth}.zip"
        with zipfile.ZipFile(outer, "w") as archive:
            archive.write(inner, inner.name)
        inner = outer
    assert await refusal(antivirus, inner) == Code.FILE_SCAN_LIMIT


async def test_what_is_longer_than_the_scanner_takes_is_refused(antivirus, tmp_path):
    (tmp_path / "big.bin").write_bytes(os.urandom(3 * 1024 * 1024))
    assert await refusal(antivirus, tmp_path / "big.bin") == Code.FILE_SCAN_LIMIT


async def test_a_scanner_that_is_away_accepts_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    away = open_antivirus(Scan(clamd=f"unix:{tmp_path}/nobody.sock", timeout_seconds=1))
    assert await refusal(away, tmp_path / "a.txt") == Code.SCAN_UNAVAILABLE


async def test_a_scanner_that_hangs_accepts_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("hello")

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(silent, tmp_path / "slow.sock"):
        slow = open_antivirus(Scan(clamd=f"unix:{tmp_path}/slow.sock", timeout_seconds=0.3))
        assert await refusal(slow, tmp_path / "a.txt") == Code.SCAN_UNAVAILABLE


async def test_waiting_for_a_turn_counts_as_waiting_for_the_scanner(antivirus, folder, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    hasty = open_antivirus(Scan(clamd=f"unix:{folder / 'clamd.sock'}", timeout_seconds=1))
    daemon = int((folder / "clamd.pid").read_text())
    os.kill(daemon, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            refused = await asyncio.gather(*(refusal(hasty, tmp_path / "a.txt") for _ in range(30)))
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert set(refused) == {Code.SCAN_UNAVAILABLE}
    await antivirus.scan(tmp_path / "a.txt")


async def test_a_caller_who_leaves_frees_the_scanner(antivirus, tmp_path):
    (tmp_path / "big.bin").write_bytes(os.urandom(1024 * 1024))
    for _ in range(20):
        leaving = asyncio.create_task(antivirus.scan(tmp_path / "big.bin"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait({leaving})
    await antivirus.scan(tmp_path / "big.bin")


async def test_a_scanner_behind_a_port(antivirus, folder, tmp_path):
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.write_eof()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond = await asyncio.open_unix_connection(folder / "clamd.sock")
        await asyncio.gather(carry(reader, beyond[1]), carry(beyond[0], writer))
        writer.close()

    (tmp_path / "a.txt").write_bytes(SIGNATURE)
    async with await asyncio.start_server(forward, "localhost", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = open_antivirus(Scan(clamd=f"tcp://localhost:{port}", timeout_seconds=5))
        await found.check()
        assert await refusal(found, tmp_path / "a.txt") == Code.FILE_INFECTED


async def test_without_a_scanner_everything_comes_in(tmp_path):
    (tmp_path / "a.txt").write_bytes(SIGNATURE)
    await open_antivirus(Scan(clamd="off")).scan(tmp_path / "a.txt")
