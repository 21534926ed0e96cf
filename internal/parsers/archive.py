"""Reads ZIP packages (Office, OpenDocument, EPUB) that may be hostile.

Declared sizes are never believed: every member is inflated in steps and the bytes are counted.
"""

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast
from urllib.parse import unquote
from xml.etree import ElementTree

from pkg.apperr import AppError, Code

MAX_DIRECTORY = 4 << 20  # bytes of the central directory, some 40,000 entries
MAX_ENTRIES = 20_000
MAX_INFLATED = 512 << 20  # bytes, all members that are read
MAX_XML = 96 << 20  # bytes of one XML part that is held as a tree
MAX_RATIO = 300  # inflated to stored, looked at once a member is past RATIO_FROM
RATIO_FROM = 8 << 20
STEP = 1 << 18


class Package:
    """One ZIP file, opened for reading within bounds."""

    def __init__(self, file: BinaryIO) -> None:
        self._zip = open_zip(file)
        self._names = {name.lstrip("/"): name for name in self._zip.namelist()}
        self._inflated = 0

    def names(self) -> list[str]:
        """Names of all members."""
        return list(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str, *, limit: int = MAX_XML) -> bytes:
        """The bytes of a member; FILE_TOO_COMPLEX beyond `limit` real bytes, FILE_UNREADABLE when missing."""
        parts: list[bytes] = []
        size = 0
        for part in self.stream(name):
            size += len(part)
            if size > limit:
                raise too_large_inside()
            parts.append(part)
        return b"".join(parts)

    def stream(self, name: str) -> Iterator[bytes]:
        """A member's bytes in steps of at most 256 KiB."""
        if name not in self._names:
            raise AppError(Code.FILE_UNREADABLE, f"The file is incomplete: its part {name[:80]!r} is missing.")
        info = self._zip.getinfo(self._names[name])
        if info.flag_bits & 1:
            raise AppError(Code.FILE_ENCRYPTED, "The file is encrypted; remove the password and upload it again.")
        size = 0
        try:
            with self._zip.open(info) as member:
                while part := member.read(STEP):
                    size += len(part)
                    self._inflated += len(part)
                    if self._inflated > MAX_INFLATED or size > max(RATIO_FROM, MAX_RATIO * info.compress_size):
                        raise too_large_inside()
                    yield part
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
            raise damaged() from error

    def xml(self, name: str) -> ElementTree.Element:
        """The root of an XML part. Documents that declare entities are refused."""
        try:
            return ElementTree.fromstring(_safe(self.read(name)))  # noqa: S314 (entities are refused, size is bounded)
        except ElementTree.ParseError as error:
            raise damaged() from error

    def rows(self, name: str, tag: str) -> Iterator[ElementTree.Element]:
        """The elements named `tag` (without namespace) of a large XML part, one at a time, forgotten when passed."""
        parser = ElementTree.XMLPullParser(("start", "end"))
        root: ElementTree.Element | None = None
        inside = 0
        tail = b""
        try:
            for part in self.stream(name):
                _safe(tail + part)
                tail = part[-32:]
                parser.feed(part)
                for event, element in cast("Iterator[tuple[str, ElementTree.Element]]", parser.read_events()):
                    if root is None:
                        root = element
                    if local(element) != tag:
                        continue
                    inside += 1 if event == "start" else -1
                    if event == "end" and inside == 0:
                        yield element
                        element.clear()
                if inside == 0:
                    _forget(root)
        except ElementTree.ParseError as error:
            raise damaged() from error

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Relation id → (last word of its type, target's member name) of an Open XML part; '' is the package."""
        folder, name = posixpath.split(part)
        path = posixpath.join(folder, "_rels", name + ".rels")
        if path not in self:
            return {}
        found: dict[str, tuple[str, str]] = {}
        for item in self.xml(path):
            if item.get("TargetMode") == "External":
                continue
            target = posixpath.normpath(posixpath.join("/" + folder, unquote(item.get("Target", ""))))
            found[item.get("Id", "")] = (item.get("Type", "").rsplit("/", 1)[-1], target.lstrip("/"))
        return found


class _Bounded(io.RawIOBase):
    """Passes reads on but refuses large single ones: `zipfile` reads a whole central directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(MAX_DIRECTORY + 1 if size < 0 else min(size, MAX_DIRECTORY + 1))
        if len(data) > MAX_DIRECTORY:
            raise too_large_inside()
        return data


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Opens a ZIP after bounding its directory. Raises FILE_UNREADABLE or FILE_TOO_COMPLEX."""
    try:
        archive = zipfile.ZipFile(_Bounded(file))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, IndexError) as error:
        raise damaged() from error
    if len(archive.infolist()) > MAX_ENTRIES:
        raise too_large_inside()
    return archive


def local(element: ElementTree.Element) -> str:
    """The tag without its namespace: transitional and strict Open XML then read alike."""
    return element.tag.rsplit("}", 1)[-1]


def attribute(element: ElementTree.Element, name: str) -> str | None:
    """An attribute by its name without namespace."""
    for key, value in element.attrib.items():
        if key.rsplit("}", 1)[-1] == name:
            return value
    return None


def find(element: ElementTree.Element, *path: str) -> ElementTree.Element | None:
    """The first descendant along child names without namespaces."""
    current: ElementTree.Element | None = element
    for name in path:
        current = next((child for child in current if local(child) == name), None) if current is not None else None
    return current


def damaged() -> AppError:
    """The error for a package that can't be read."""
    return AppError(Code.FILE_UNREADABLE, "The file is damaged; open it in its program, save it again and upload that.")


def too_large_inside() -> AppError:
    """The error for a package that would become far larger than it is."""
    return AppError(Code.FILE_TOO_COMPLEX, "The file unpacks to more data than is allowed; split it into parts.")


def _safe(data: bytes) -> bytes:
    """Refuses entity declarations, also in UTF-16; Office formats never use them."""
    if b"<!ENTITY" in data or b"<\0!\0E\0N\0T\0I\0T\0Y" in data or b"\0<\0!\0E\0N\0T\0I\0T\0Y" in data:
        raise AppError(Code.FILE_UNREADABLE, "The file declares XML entities, which are not read for safety.")
    return data


def _forget(root: ElementTree.Element | None) -> None:
    """Drops finished children so that memory stays flat."""
    if root is None:
        return
    for child in root:
        for grandchild in list(child)[:-1]:
            child.remove(grandchild)
