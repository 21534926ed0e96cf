"""Expands archives that may be hostile: what runs inside the sandbox's child.

Nothing in an archive names a file here: each entry is written as its number into an empty folder. Declared sizes are
never believed, bytes are counted while they come. What is wrong with one entry refuses that entry; what is wrong with
the archive refuses it whole, before anything was made of it.
"""

import bz2
import errno
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from internal.entities.archives import ArchiveBounds, ArchiveEntry
from internal.parsers.archive import MAX_RATIO, RATIO_FROM, STEP, damaged, open_zip
from internal.parsers.entries import archive_type, check_path, decoded, is_passed_over, named, named_for_show
from internal.parsers.media_types import GZIP, TAR_BZ2, TAR_XZ, ZIP
from pkg.apperr import AppError, Code

HEAD = 512
ENCRYPTED = 0x1
UTF8 = 0x800
DOS_FOLDER = 0x10
BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError,
    RuntimeError,
)  # fmt: skip
"""What the standard library raises for an archive or entry that it can't read."""


class WholeError(AppError):
    """The archive as a whole is refused."""


def expand(file: BinaryIO, *, workdir: Path, bounds: ArchiveBounds) -> list[ArchiveEntry]:
    """Writes each readable file of the archive to `workdir`, named by its number.

    Raises FILE_UNREADABLE, FILE_TOO_COMPLEX or FILE_EMPTY for the archive, BLOB_UNAVAILABLE where the disk is full.
    """
    kind = archive_type(file.read(HEAD))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    expansion = _Expansion(workdir, bounds)
    try:
        if kind == ZIP:
            _expand_zip(file, size, expansion)
        else:
            _expand_tar(file, kind, size, expansion)
    except OSError as error:
        raise _full() if error.errno in (errno.ENOSPC, errno.EDQUOT) else damaged() from error
    except BROKEN as error:
        raise damaged() from error
    if not expansion.entries:
        raise AppError(Code.FILE_EMPTY, "There is no file in the archive.")
    return expansion.entries


class _Expansion:
    """What has been found so far, and the bytes that were written."""

    def __init__(self, workdir: Path, bounds: ArchiveBounds) -> None:
        self.entries: list[ArchiveEntry] = []
        self.bounds = bounds
        self._workdir = workdir
        self._seen: set[str] = set()
        self._written = 0

    def add(self, ordinal: int, path: str, blocks: Iterator[bytes], problem: AppError | None) -> None:
        """Takes a file in, or notes why it is refused. Raises WholeError."""
        try:
            plain = check_path(path, self._seen)
            self._seen.add(plain)
            if problem is not None:
                raise problem
            size = self._write(ordinal, blocks)
        except WholeError:
            raise
        except AppError as error:
            self.entries.append(_refused(ordinal, path, error))
        else:
            name = named(plain)
            self.entries.append(ArchiveEntry(ordinal=ordinal, filename=name.filename, folder=name.folder, size=size))

    def _write(self, ordinal: int, blocks: Iterator[bytes]) -> int:
        """Raises FILE_EMPTY, FILE_TOO_LARGE, FILE_UNREADABLE; leaves no file then."""
        path, size = self._workdir / str(ordinal), 0
        try:
            with path.open("xb") as target:
                for block in blocks:
                    size += len(block)
                    self._written += len(block)
                    if self._written > self.bounds.total_bytes:
                        raise _too_much(f"more than {self.bounds.total_bytes >> 20} MB")
                    if size > self.bounds.entry_bytes:
                        raise AppError(
                            Code.FILE_TOO_LARGE, f"The file is larger than {self.bounds.entry_bytes >> 20} MB."
                        )
                    target.write(block)
            if size == 0:
                raise AppError(Code.FILE_EMPTY, "The file is empty.")
        except AppError:
            path.unlink()
            raise
        return size


def _expand_zip(file: BinaryIO, size: int, expansion: _Expansion) -> None:
    archive = open_zip(file)
    infos = archive.infolist()
    if len(infos) > expansion.bounds.entries:
        raise _too_much(f"more than {expansion.bounds.entries} entries")
    if sum(info.compress_size for info in infos) > size:
        raise _too_much("entries that lie over one another")
    for ordinal, info in enumerate(infos):
        raw = info.orig_filename
        path = raw if info.flag_bits & UTF8 else decoded(raw.encode("cp437"))
        if info.is_dir() or info.external_attr & DOS_FOLDER or is_passed_over(path):
            continue
        expansion.add(ordinal, path, _member(archive, info), _problem_of(info))


def _problem_of(info: zipfile.ZipInfo) -> AppError | None:
    mode = info.external_attr >> 16
    if info.flag_bits & ENCRYPTED:
        return AppError(Code.FILE_ENCRYPTED, "The file has a password; archive it without one.")
    if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
        return _no_file()
    return None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """A file's bytes in steps. Raises FILE_TOO_COMPLEX, FILE_UNREADABLE."""
    size = 0
    try:
        with archive.open(info) as member:
            while block := member.read(STEP):
                size += len(block)
                if size > max(RATIO_FROM, MAX_RATIO * info.compress_size):
                    raise AppError(Code.FILE_TOO_COMPLEX, "The file unpacks to far more data than it is stored in.")
                yield block
    except (*BROKEN, OSError) as error:
        raise AppError(
            Code.FILE_UNREADABLE, "The file is damaged in the archive, or stored in an unknown way."
        ) from error


def _expand_tar(file: BinaryIO, kind: str, size: int, expansion: _Expansion) -> None:
    stream = _Counted(_inflated(file, kind), max(RATIO_FROM, MAX_RATIO * size), expansion.bounds.total_bytes)
    with tarfile.open(fileobj=cast("BinaryIO", stream), mode="r|", bufsize=STEP) as archive:
        for ordinal, info in enumerate(archive):
            if ordinal >= expansion.bounds.entries:
                raise _too_much(f"more than {expansion.bounds.entries} entries")
            path = decoded(info.name.encode("utf-8", "surrogateescape"))
            if info.isdir() or is_passed_over(path):
                continue
            problem = None if info.isreg() and not info.issparse() else _no_file()
            expansion.add(ordinal, path, _blocks(archive, info), problem)


def _inflated(file: BinaryIO, kind: str) -> BinaryIO:
    if kind == GZIP:
        return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))
    if kind == TAR_BZ2:
        return cast("BinaryIO", bz2.BZ2File(file))
    if kind == TAR_XZ:
        return cast("BinaryIO", lzma.LZMAFile(file))
    return file


def _blocks(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    member = archive.extractfile(info)
    while member is not None and (block := member.read(STEP)):
        yield block


class _Counted:
    """An inflated stream, whose every byte counts: also those of entries that are passed over."""

    def __init__(self, stream: BinaryIO, by_ratio: int, total: int) -> None:
        self._stream = stream
        self._by_ratio = by_ratio
        self._total = total
        self._size = 0

    def read(self, size: int) -> bytes:
        """Raises FILE_TOO_COMPLEX past the bounds."""
        data = self._stream.read(size)
        self._size += len(data)
        if self._size > self._by_ratio:
            raise _too_much("far more data than it is stored in")
        # Headers and padding come on top of the files.
        if self._size > 2 * self._total:
            raise _too_much(f"more than {self._total >> 20} MB")
        return data


def _refused(ordinal: int, path: str, error: AppError) -> ArchiveEntry:
    name = named_for_show(path)
    return ArchiveEntry(
        ordinal=ordinal,
        filename=name.filename,
        folder=name.folder,
        error_code=error.code.value,
        error_message=error.detail,
    )


def _no_file() -> AppError:
    return AppError(Code.FILE_TYPE_NOT_ALLOWED, "The entry is a link or a device, which isn't read.")


def _too_much(what: str) -> WholeError:
    return WholeError(Code.FILE_TOO_COMPLEX, f"The archive holds {what}; split it into parts.")


def _full() -> AppError:
    return AppError(Code.BLOB_UNAVAILABLE, "The worker's disk is full; try again later.", retry_after=60)
