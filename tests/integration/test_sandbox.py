"""Real children that are bounded, killed and replaced, while the worker lives on."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from PIL import ExifTags, Image

from internal.entities.parsed import PageImage
from internal.parsers import media_types as media
from internal.parsers.sandbox import Sandbox
from pkg.apperr import AppError, Code
from pkg.sections import Limits
from tests.fixtures.files import build

ROOT = Path(__file__).parents[2]
SLOW = b"One more sentence that somebody wrote, \xc3\xa9t\xc3\xa9 included.\n\n" * 400_000


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    made = Sandbox(Limits())
    await made.start()
    yield made
    await made.close()


def write(folder: Path, data: bytes) -> Path:
    path = folder / "upload"
    path.write_bytes(data)
    (folder / "work").mkdir(exist_ok=True)
    return path


async def parse(sandbox: Sandbox, folder: Path, data: bytes, media_type: str = media.PLAIN):
    return await sandbox.parse(write(folder, data), media_type=media_type, workdir=folder / "work")


async def code_of(sandbox: Sandbox, folder: Path, data: bytes, media_type: str = media.PLAIN) -> Code:
    with pytest.raises(AppError) as caught:
        await parse(sandbox, folder, data, media_type)
    return caught.value.code


def zygotes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "internal.parsers.zygote" in child.cmdline()]


async def children() -> list[psutil.Process]:
    """Waits until the zygote has a child at work."""
    async with asyncio.timeout(20):
        while True:
            found = [child for zygote in zygotes() for child in zygote.children()]
            if found:
                return found
            await asyncio.sleep(0.002)


async def gone(processes: list[psutil.Process]) -> None:
    async with asyncio.timeout(20):
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            await asyncio.sleep(0.01)


async def test_reads_text_and_office(sandbox: Sandbox, tmp_path: Path) -> None:
    assert (await parse(sandbox, tmp_path, "你好。Hello.".encode())).blocks[0].text == "你好。Hello."
    parsed = await parse(sandbox, tmp_path, build.docx(build.paragraph("Title", "H1")), media.DOCX)
    assert parsed.blocks[0].kind == "heading"
    assert "no-new-privileges" in sandbox.capabilities


async def test_page_images_arrive_in_the_work_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (image,) = (await parse(sandbox, closed, build.scanned_pdf(), media.PDF)).page_images
    assert Path(image.path).parent == closed / "work"
    assert Path(image.path).read_bytes().startswith(b"\xff\xd8")


async def test_pictures_are_as_small_as_asked_and_tell_nothing_but_pixels(sandbox: Sandbox, tmp_path: Path) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    work.mkdir()
    image = Image.new("RGB", (900, 300), "white")
    exif = image.getexif()
    exif[ExifTags.Base.Artist] = "somebody"
    exif[ExifTags.Base.Orientation] = 6
    image.save(source, "JPEG", exif=exif)
    parsed = await sandbox.parse(source, media_type="image/jpeg", workdir=work, side=300)
    (page,) = parsed.page_images
    assert (page.width, page.height) == (100, 300)
    with Image.open(work / page.path) as made:
        assert made.size == (100, 300)
        assert not made.getexif()
    assert b"somebody" not in (work / page.path).read_bytes()


async def test_errors_of_the_file_keep_their_code(sandbox: Sandbox, tmp_path: Path) -> None:
    assert await code_of(sandbox, tmp_path, build.encrypted_pdf(), media.PDF) is Code.FILE_ENCRYPTED
    assert await code_of(sandbox, tmp_path, b"%PDF-1.4 torn", media.PDF) is Code.FILE_UNREADABLE
    assert await code_of(sandbox, tmp_path, b"x", "application/x-unknown") is Code.FILE_TYPE_NOT_ALLOWED


async def test_time_is_bounded(tmp_path: Path) -> None:
    sandbox = Sandbox(Limits(parse_seconds=0.3))
    try:
        assert await code_of(sandbox, tmp_path, SLOW) is Code.FILE_TOO_COMPLEX
        await parse(sandbox, tmp_path, b"the next file is read")
    finally:
        await sandbox.close()


async def test_memory_is_bounded(tmp_path: Path) -> None:
    sandbox = Sandbox(Limits(parse_memory_mb=128))
    try:
        bomb = b"[" + b"{}," * 4_000_000 + b"{}]"
        assert await code_of(sandbox, tmp_path, bomb, media.JSON) is Code.FILE_TOO_COMPLEX
        await parse(sandbox, tmp_path, b"the next file is read")
    finally:
        await sandbox.close()


async def test_output_is_bounded(tmp_path: Path) -> None:
    sandbox = Sandbox(Limits(parse_output_mb=1))
    try:
        assert await code_of(sandbox, tmp_path, b"many words " * 200_000) is Code.FILE_TOO_COMPLEX
        # Few words in very many blocks: the text is small, its wrapping isn't.
        assert await code_of(sandbox, tmp_path, b"a\n\n" * 100_000) is Code.FILE_TOO_COMPLEX
    finally:
        await sandbox.close()


async def test_a_crash_is_the_files_fault(sandbox: Sandbox, tmp_path: Path) -> None:
    running = asyncio.create_task(code_of(sandbox, tmp_path, SLOW))
    (child,) = await children()
    child.send_signal(signal.SIGSEGV)
    assert await running is Code.FILE_UNREADABLE
    await parse(sandbox, tmp_path, b"the next file is read")


async def test_a_lost_zygote_is_replaced_and_the_file_read_again(sandbox: Sandbox, tmp_path: Path) -> None:
    running = asyncio.create_task(parse(sandbox, tmp_path, SLOW[:6_000_000]))
    victims = await children()
    (zygote,) = zygotes()
    zygote.kill()
    assert len((await running).blocks) > 10_000
    await gone(victims)


async def test_cancelling_kills_the_child(sandbox: Sandbox, tmp_path: Path) -> None:
    running = asyncio.create_task(parse(sandbox, tmp_path, SLOW))
    victims = await children()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(victims)
    await parse(sandbox, tmp_path, b"the next file is read")


async def test_many_files_at_once(sandbox: Sandbox, tmp_path: Path) -> None:
    async def one(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        return (await parse(sandbox, folder, f"file {number}".encode())).blocks[0].text

    assert await asyncio.gather(*(one(number) for number in range(12))) == [f"file {number}" for number in range(12)]
    assert len(zygotes()) == 1


async def test_closing_ends_everything(tmp_path: Path) -> None:
    sandbox = Sandbox(Limits())
    await sandbox.start()
    running = asyncio.create_task(code_of(sandbox, tmp_path, SLOW))
    victims = [*(await children()), *zygotes()]
    await sandbox.close()
    await gone(victims)
    assert await running is Code.INTERNAL
    assert zygotes() == []


async def test_a_cancelled_start_leaves_nothing_behind(tmp_path: Path) -> None:
    sandbox = Sandbox(Limits())
    running = asyncio.create_task(parse(sandbox, tmp_path, b"text"))
    async with asyncio.timeout(20):
        while not zygotes():
            await asyncio.sleep(0.002)
    victims = zygotes()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await gone(victims)
    await sandbox.close()


def test_nothing_outlives_a_killed_worker(tmp_path: Path) -> None:
    path = write(tmp_path, SLOW)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), str(tmp_path / "work"), media.PLAIN], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    identifiers = [int(word) for word in worker.stdout.readline().split()]
    assert len(identifiers) == 2
    worker.kill()
    worker.wait()
    worker.stdout.close()
    processes = [psutil.Process(identifier) for identifier in identifiers if psutil.pid_exists(identifier)]
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


def test_the_walls_stand(tmp_path: Path) -> None:
    """What a taken-over parser would try: sockets, programs, other files, signals."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    work = tmp_path / "work"
    work.mkdir()
    if os.geteuid() == 0:
        work.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER, str(secret), str(work), str(os.getpid())],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    walls, _, results = done.stdout.strip().partition("\n")
    assert {"no-new-privileges", "calls"} <= set(walls.split())
    assert results.split() == ["write", "socket:1", "program:1", "signal:1", "read:13"]


def test_a_warm_parser_opens_and_imports_nothing_more() -> None:
    """Where Python lies in a closed folder, a child without rights could not; the others would not notice."""
    done = subprocess.run([sys.executable, "-c", WARM], cwd=ROOT, capture_output=True, text=True, check=True)
    read, late = done.stdout.splitlines()
    assert int(read) >= 30
    assert late == "[]"


def test_code_in_a_closed_folder_stops_no_child(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "lib").mkdir(parents=True)
    closed.chmod(0o000)
    try:
        done = subprocess.run(
            [sys.executable, "-c", FOLDERS, str(closed / "lib")], cwd=ROOT, capture_output=True, text=True, check=True
        )
    finally:
        closed.chmod(0o700)
    assert done.stdout.split() == ["/usr"]


async def test_a_childs_word_on_paths_is_not_believed(tmp_path: Path) -> None:
    from internal.parsers.sandbox import admit

    (tmp_path / "page.jpg").write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to("/etc/passwd")
    assert admit(PageImage(page=1, path="page.jpg", width=1, height=1), tmp_path).path == str(tmp_path / "page.jpg")
    for path in ("link.jpg", "../x", "/etc/passwd", "missing.jpg", ""):
        with pytest.raises(AppError) as caught:
            admit(PageImage(page=1, path=path, width=1, height=1), tmp_path)
        assert caught.value.code is Code.FILE_UNREADABLE


WORKER = """
import asyncio, sys
from pathlib import Path
import psutil
from internal.parsers.sandbox import Sandbox
from pkg.sections import Limits

async def main():
    sandbox = Sandbox(Limits())
    await sandbox.start()
    running = asyncio.create_task(sandbox.parse(Path(sys.argv[1]), media_type=sys.argv[3], workdir=Path(sys.argv[2])))
    while len(found := psutil.Process().children(recursive=True)) < 2:
        await asyncio.sleep(0.002)
    print(*(child.pid for child in found), flush=True)
    await running

asyncio.run(main())
"""
WARM = """
import io, os, sys, tempfile
from pathlib import Path
from internal.parsers import media_types as media, zygote
from internal.parsers.read import read
from pkg.apperr import AppError
from tests.fixtures.files import build

text = "你好，世界。Grüße, élan.\\n\\n"
mail = "From: a@b\\nSubject: =?{0}?B?aGVsbG8=?=\\nContent-Type: text/plain; charset={0}\\n\\nhello\\n"
page = '<html><head><meta charset="{0}"></head><body><p>hello</p></body></html>'
charsets = "us-ascii", "iso-8859-1", "windows-1251", "koi8-r", "shift_jis", "iso-2022-jp", "euc-kr", "big5", "gbk", "x"
files = [(mail.format(name).encode(), media.EML) for name in charsets]
files += [(page.format(name).encode(), media.HTML) for name in charsets]
files += [((text * 40).encode(name, "ignore"), media.PLAIN) for name in
          ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "gb18030", "big5", "cp1252", "cp1251", "koi8-r", "shift_jis")]
files += [
    (build.docx(build.paragraph("Title", "H1") + build.word_table(("a", "b"))), media.DOCX),
    (build.pptx(("Title", "Body", "Notes")), media.PPTX),
    (build.xlsx("<row><c t='inlineStr'><is><t>x</t></is></c></row>"), media.XLSX),
    (build.odt("<text:p>x</text:p>"), media.ODT),
    (build.epub("<p>x</p>"), media.EPUB),
    (build.pdf(build.show((72, 700, 12, "words"))), media.PDF),
    (build.scanned_pdf(), media.PDF),
    (build.encrypted_pdf(), media.PDF),
    (b"# Title", media.MARKDOWN), (b"a,b", media.CSV), (b'{"a": 1}', media.JSON),
]
files += [(build.picture(kind), f"image/{kind.lower()}") for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")]
os.chdir(tempfile.mkdtemp())
late = []
watching = False

def watch(event, arguments):
    if watching and event in ("open", "import") and isinstance(arguments[0], str) and "page-" not in arguments[0]:
        late.append((event, arguments[0]))

sys.addaudithook(watch)
zygote.warm_up()
for data, media_type in files:
    watching = True
    try:
        read(io.BytesIO(data), media_type=media_type, workdir=Path(), max_bytes=1 << 20, megapixels=1)
    except AppError:
        pass
    watching = False
print(len(files))
print(late)
"""
FOLDERS = """
import sys
sys.prefix = sys.base_prefix = sys.argv[1]
from internal.parsers import confine
confine.drop_privileges()
print(*(folder for folder in confine.code_folders() if folder in ("/usr", sys.prefix)))
"""
INTRUDER = """
import os, signal, socket, sys
from internal.parsers import confine

def attempt(name, action):
    try:
        action()
        print(name + ":0")
    except OSError as error:
        print(name + ":" + str(error.errno))

secret, work, parent = sys.argv[1:]
os.chdir(work)
walls = []
confine.bound_resources(seconds=10, memory=1 << 30)
if confine.drop_privileges(): walls.append("user")
if confine.forbid_privileges(): walls.append("no-new-privileges")
if confine.forbid_files(readable=confine.code_folders(), writable="."): walls.append("files")
if confine.forbid_calls(): walls.append("calls")
print(*walls)
with open("page.jpg", "wb") as file:
    file.write(b"x")
print("write")
attempt("socket", lambda: socket.socket())
attempt("program", lambda: os.execv("/bin/true", ["true"]))
attempt("signal", lambda: os.kill(int(parent), 0))
attempt("read", lambda: open(secret).close())
"""
