"""EPUB: the chapters of the spine, in order."""

import posixpath
from typing import BinaryIO
from urllib.parse import unquote

from internal.parsers.archive import Package, attribute, damaged, find, local
from internal.parsers.decode import declared_charset, decode
from internal.parsers.html import write_html
from internal.parsers.outline import Outline
from pkg.apperr import AppError, Code

MAX_CHAPTER = 32 << 20
_META = {"title": "title", "creator": "author", "language": "language", "publisher": "publisher", "date": "created"}


def read_epub(file: BinaryIO, outline: Outline) -> None:
    """Reads an e-book. A book whose text is encrypted (DRM) raises FILE_ENCRYPTED."""
    package = Package(file)
    encryption = "META-INF/encryption.xml"
    if encryption in package and b"xmlenc#aes" in package.read(encryption):
        raise AppError(Code.FILE_ENCRYPTED, "The book is copy-protected; upload one without protection.")
    book = _book(package)
    root = package.xml(book)
    metadata, manifest, spine = (find(root, name) for name in ("metadata", "manifest", "spine"))
    if manifest is None or spine is None:
        raise damaged()
    for item in metadata if metadata is not None else ():
        if local(item) in _META:
            outline.note(_META[local(item)], item.text)
    folder = posixpath.dirname(book)
    paths = {
        item.get("id", ""): posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in manifest
    }
    for item in spine:
        path = paths.get(item.get("idref", ""), "")
        if path in package:
            data = package.read(path, limit=MAX_CHAPTER)
            outline.leave_sections()
            write_html(decode(data, declared=declared_charset(data)).text, outline)


def _book(package: Package) -> str:
    """The member name of the package document."""
    for item in package.xml("META-INF/container.xml").iter():
        path = attribute(item, "full-path")
        if local(item) == "rootfile" and path and path in package:
            return path
    raise damaged()
