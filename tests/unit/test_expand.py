"""Archives: what is taken out of them, what is refused of them, and what refuses them whole."""

import bz2
import gzip
import io
import random
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from internal.entities.archives import ArchiveBounds, ArchiveEntry
from internal.parsers.entries import archive_type, decoded
from internal.parsers.expand import expand
from pkg.apperr import AppError, Code
from tests.archives import flagged_encrypted, overlapping, raw_named, tarred, understated, zipped

MB = 1 << 20
BOUNDS = ArchiveBounds(entries=10_000, entry_bytes=2 * MB, total_bytes=8 * MB)
FILES = {"a.txt": b"first", "folder/b.txt": b"second", "folder/deep/c.txt": b"third"}


def expanded(data: bytes, folder: Path, bounds: ArchiveBounds = BOUNDS) -> list[ArchiveEntry]:
    for path in folder.iterdir():
        path.unlink()
    return expand(io.BytesIO(data), workdir=folder, bounds=bounds)


def refusals(entries: list[ArchiveEntry]) -> dict[str, str | None]:
    return {f"{entry.folder}/{entry.filename}".lstrip("/"): entry.error_code for entry in entries}


def whole(data: bytes, folder: Path, bounds: ArchiveBounds = BOUNDS) -> str:
    """The code that refuses the archive."""
    with pytest.raises(AppError) as raised:
        expanded(data, folder, bounds)
    return raised.value.code


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "data",
    [zipped(FILES), zipped(FILES, compression=zipfile.ZIP_STORED), zipped(FILES, compression=zipfile.ZIP_LZMA)]
    + [tarred(FILES, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")],
    ids=["zip", "stored", "zip-lzma", "tar", "gz", "bz2", "xz"],
)
def test_every_kind_is_read(data: bytes, tmp_path: Path):
    entries = expanded(data, tmp_path)
    assert [(entry.folder, entry.filename, entry.size) for entry in entries] == [
        ("", "a.txt", 5),
        ("folder", "b.txt", 6),
        ("folder/deep", "c.txt", 5),
    ]
    assert [(tmp_path / str(entry.ordinal)).read_bytes() for entry in entries] == list(FILES.values())


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_chinese_names(encoding: str, tmp_path: Path):
    names = ["员工手册.txt", "财务/二零二六年　报表.txt"]  # with a space as wide as the others
    data = raw_named({name.encode(encoding): name.encode() for name in names})
    assert list(refusals(expanded(data, tmp_path))) == names
    assert list(refusals(expanded(zipped(dict.fromkeys(names, b"x")), tmp_path, BOUNDS))) == names


def test_a_name_of_dos_is_no_chinese():
    assert decoded("Übung für später.txt".encode("cp437")) == "Übung für später.txt"
    assert decoded("合同.txt".encode("gb18030")) == "合同.txt"
    assert decoded("合同.txt".encode()) == "合同.txt"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_path_that_leads_out_is_refused_and_no_other(pack, tmp_path: Path):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    bad = ["../up.txt", "a/../../up.txt", "..\\windows.txt", "/etc/passwd", "C:\\boot.ini", "\\\\host\\share"]
    entries = expanded(pack(dict.fromkeys(bad, b"out") | {"good.txt": b"in"}), folder)
    assert [entry.error_code for entry in entries] == [Code.FILE_NAME_INVALID] * len(bad) + [None]
    assert [path.name for path in folder.iterdir()] == [str(len(bad))]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [str(len(bad))]


def test_names_with_control_characters_are_shown_escaped(tmp_path: Path):
    entries = expanded(zipped({"a\x07b.txt": b"bell", "good.txt": b"good"}), tmp_path)
    assert refusals(entries) == {"a\\u0007b.txt": Code.FILE_NAME_INVALID, "good.txt": None}
    nul = zipped({"aXb.txt": b"nul"}).replace(b"aXb", b"a\0b")
    assert refusals(expanded(nul, tmp_path)) == {"a\\u0000b.txt": Code.FILE_NAME_INVALID}


def test_a_second_file_of_the_same_name_is_refused(tmp_path: Path):
    data = zipped({"sameA.txt": b"one", "sameB.txt": b"two", "./sameA.txt": b"three"}).replace(b"sameB", b"sameA")
    entries = expanded(data, tmp_path)
    assert [entry.error_code for entry in entries] == [None, Code.FILE_NAME_INVALID, Code.FILE_NAME_INVALID]


def test_what_nobody_wants_is_passed_over(tmp_path: Path):
    names = ["folder/", "__MACOSX/a.txt", ".DS_Store", "folder/.hidden", ".git/config", "folder/._a.txt", "./kept.txt"]
    entries = expanded(zipped({name: b"" if name.endswith("/") else b"x" for name in names}), tmp_path)
    assert [entry.filename for entry in entries] == ["kept.txt"]


def test_links_and_devices_are_refused(tmp_path: Path):
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    others = [link(f"link {number}", kind) for number, kind in enumerate(kinds)]
    entries = expanded(tarred({"good.txt": b"good"}, "w:gz", *others), tmp_path)
    assert [entry.error_code for entry in entries] == [None] + [Code.FILE_TYPE_NOT_ALLOWED] * len(kinds)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert refusals(expanded(target.getvalue(), tmp_path)) == {"link": Code.FILE_TYPE_NOT_ALLOWED}
    assert list(tmp_path.iterdir()) == []


def test_an_encrypted_entry_is_refused(tmp_path: Path):
    assert refusals(expanded(flagged_encrypted(zipped({"secret.txt": b"x"})), tmp_path)) == {
        "secret.txt": Code.FILE_ENCRYPTED
    }


def test_a_damaged_entry_refuses_no_other(tmp_path: Path):
    data = zipped({"bad.txt": b"BAD" * 100, "good.txt": b"good"}, compression=zipfile.ZIP_STORED)
    entries = expanded(data.replace(b"BADBAD", b"BADBAT", 1), tmp_path)
    assert refusals(entries) == {"bad.txt": Code.FILE_UNREADABLE, "good.txt": None}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_empty_and_large_files_are_refused(tmp_path: Path):
    files = {"empty.txt": b"", "large.txt": random.Random(1).randbytes(2 * MB + 1), "good.txt": b"good"}
    for number, pack in enumerate((zipped, tarred)):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert refusals(expanded(pack(files), folder)) == {
            "empty.txt": Code.FILE_EMPTY,
            "large.txt": Code.FILE_TOO_LARGE,
            "good.txt": None,
        }
        assert [path.name for path in folder.iterdir()] == ["2"]


def test_ten_thousand_empty_entries(tmp_path: Path):
    entries = expanded(zipped({f"{number}.txt": b"" for number in range(10_000)}), tmp_path)
    assert {entry.error_code for entry in entries} == {Code.FILE_EMPTY}
    assert len(entries) == 10_000
    for pack in (zipped, tarred):
        assert whole(pack({f"{number}.txt": b"" for number in range(10_001)}), tmp_path) == Code.FILE_TOO_COMPLEX


def test_real_bytes_count_and_not_declared_ones(tmp_path: Path):
    """A file that claims to be small gives no more than it claims; what is packed a thousandfold is refused."""
    claimed = expanded(understated(b"\0" * 64 * MB, 1000), tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    assert len(claimed) == 1
    wide = ArchiveBounds(entries=10, entry_bytes=64 * MB, total_bytes=64 * MB)
    bomb = zipped({"bomb.txt": b"\0" * 32 * MB})
    assert refusals(expanded(bomb, tmp_path, wide)) == {"bomb.txt": Code.FILE_TOO_COMPLEX}
    assert whole(tarred({"bomb.txt": b"\0" * 32 * MB}), tmp_path, wide) == Code.FILE_TOO_COMPLEX
    assert whole(bz2.compress(tarred({"bomb.txt": b"\0" * 32 * MB}, "w")), tmp_path, wide) == Code.FILE_TOO_COMPLEX


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_all_bytes_together_are_bounded(pack, tmp_path: Path):
    files = {f"{number}.bin": random.Random(number).randbytes(MB) for number in range(9)}
    assert whole(pack(files), tmp_path) == Code.FILE_TOO_COMPLEX


def test_what_is_passed_over_counts_too(tmp_path: Path):
    files = {f".{number}": random.Random(number).randbytes(MB) for number in range(17)}
    assert whole(tarred(files), tmp_path) == Code.FILE_TOO_COMPLEX


def test_entries_that_lie_over_one_another(tmp_path: Path):
    assert whole(overlapping(random.Random(1).randbytes(MB), 100), tmp_path) == Code.FILE_TOO_COMPLEX


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (zipped({"a.txt": b"x" * 5000})[:-30], Code.FILE_UNREADABLE),
        (tarred({"a.txt": random.Random(1).randbytes(50_000)})[:20_000], Code.FILE_UNREADABLE),
        (gzip.compress(b"no archive at all" * 100), Code.FILE_UNREADABLE),
        (b"BZh91AY&SY" + b"garbage" * 50, Code.FILE_UNREADABLE),
        (zipped({}), Code.FILE_EMPTY),
        (zipped({"folder/": b""}), Code.FILE_EMPTY),
    ],
    ids=["cut zip", "cut tar", "gzip of text", "garbage", "empty", "folders only"],
)
def test_what_is_no_archive_is_refused_whole(data: bytes, code: Code, tmp_path: Path):
    assert whole(data, tmp_path) == code


def test_the_kind_is_told_by_the_content():
    for data in (b"%PDF-1.7", b"plain text" * 100, b"", b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c"):
        with pytest.raises(AppError) as raised:
            archive_type(data)
        assert raised.value.code is Code.FILE_TYPE_NOT_ALLOWED
