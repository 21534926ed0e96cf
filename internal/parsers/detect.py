"""What a file is, by its content; the name is only a hint among kinds of text.

Runs in the API server on hostile bytes: nothing here inflates more than a few hundred kilobytes, follows an entity,
or looks beyond the head of the file and a ZIP's directory.

Decisions: macro-enabled and template variants of Office files are read like their plain ones (nothing in them is ever
run). Source code is text. A script that a system would run by itself ("#!", batch files) is refused like a program.
"""

import json
import re
from email.parser import HeaderParser
from pathlib import Path
from typing import Literal

# First, so that python-magic finds the library that it brings.
import pylibmagic  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import magic
import msgspec

from internal.parsers import media_types as media
from internal.parsers.archive import Package
from internal.parsers.decode import few_controls, sniff
from pkg.apperr import AppError, Code

HEAD = 1 << 18  # bytes that callers should pass as `head`
MAGIC_HEAD = 1 << 16
MAX_CONTENT_TYPES = 1 << 18
MAX_JSON = 1 << 18
MAX_COMMENTS = 20

_MACH_O = (b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_PROGRAMS = (b"MZ", b"\x7fELF", *_MACH_O, b"dex\n", b"\0asm", b"#!", b"\xef\xbb\xbf#!")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_OFFICE = "EncryptedPackage".encode("utf-16-le")
_PHOTOS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), media.PNG),
    (re.compile(rb"\xff\xd8\xff"), media.JPEG),
    (re.compile(rb"RIFF.{4}WEBP", re.S), media.WEBP),
    (re.compile(rb"GIF8[79]a"), media.GIF),
    (re.compile(rb"II\*\0|MM\0\*"), media.TIFF),
)
_OFFICE = ((b"wordprocessingml", media.DOCX), (b"ms-word.", media.DOCX), (b"presentationml", media.PPTX),
           (b"ms-powerpoint.", media.PPTX), (b"spreadsheetml", media.XLSX), (b"ms-excel.", media.XLSX))  # fmt: skip
_MAIN_PART = re.compile(rb'ContentType\s*=\s*"([^"]{1,200}\.main\+xml)"')
_PROLOGUE = re.compile(r"\s*<\?xml[^>]{0,200}\?>")
_HTML = re.compile(r"<(?:!doctype\s+html|html|head|body)\b", re.I)
_HTML_TAG = re.compile(r"</(?:p|div|h[1-6]|a|li|td|span|table|title)\s*>", re.I)
_XML = re.compile(r"\s*(?:<\?xml\b|<!doctype\s+(?!html)|<svg\b)", re.I)
_REFUSED_TEXT = (
    ("{\\rtf", "RTF"),
    ("%!PS", "PostScript"),
    ("@echo off", "a batch script"),
    ("(This file must be converted with BinHex", "a file in BinHex (unpack it and upload what is in it)"),
)
# A page's own link to a program that it carries: base64 of "MZ" and of "\x7fELF". Parameters and case are the link's.
_CARRIED_PROGRAM = re.compile(r"(?i:data:[^,<>]{0,200};\s{0,10}base64\s{0,10},)\s{0,10}(?:TV[opqr]|f0VMR)")
_HEADER_LINE = re.compile(r"(?:From |[A-Za-z][A-Za-z0-9-]{1,60}:[ \t]?)")
_MAIL_HEADERS = frozenset(
    ("from", "to", "subject", "date", "message-id", "received", "return-path", "mime-version", "delivered-to")
)
_MARKDOWN = re.compile(r"^(?:#{1,6} \S|```|\|.{1,500}\|[ \t]*\n\|[ :|-]{3,200}$|(?:[-*+]|\d+\.) \[.{1,200}\]\()", re.M)
_BY_NAME = {
    ".md": media.MARKDOWN,
    ".markdown": media.MARKDOWN,
    ".csv": media.CSV,
    ".tsv": media.CSV,
    ".txt": media.PLAIN,
    ".text": media.PLAIN,
    ".log": media.PLAIN,
}


class Detected(msgspec.Struct, frozen=True):
    """The media type of a file and the kind of source it is."""

    media_type: str
    source_type: Literal["document", "photo", "email"]


def detect(head: bytes, path: Path, filename: str) -> Detected:
    """Tells the type of the file at `path`, whose first bytes are `head` (256 KiB are enough).

    Raises FILE_EMPTY, FILE_TYPE_NOT_ALLOWED (naming what was found), FILE_ENCRYPTED, or for broken packages
    FILE_UNREADABLE and FILE_TOO_COMPLEX.
    """
    if not head:
        raise AppError(Code.FILE_EMPTY, "The file is empty.")
    head = head[:HEAD]
    for signature, media_type in _PHOTOS:
        if signature.match(head):
            return Detected(media_type, "photo")
    media_type = _document(head, path, filename)
    return Detected(media_type, "email" if media_type == media.EML else "document")


def _document(head: bytes, path: Path, filename: str) -> str:
    if head.startswith(_PROGRAMS) and _is_program(head):
        raise _refused("a program or script")
    if head.startswith(b"%PDF-"):
        return media.PDF
    if head.startswith(b"PK\x03\x04"):
        return _package(path)
    if head.startswith(_OLE):
        if _ENCRYPTED_OFFICE in head:
            raise AppError(Code.FILE_ENCRYPTED, "The document has a password; save it without one and upload it again.")
        raise _refused("an old Office or Outlook file (save it as DOCX, XLSX, PPTX or EML)")
    found = magic.from_buffer(head[:MAGIC_HEAD], mime=True)
    text = _text(head, path, found)
    if text is not None:
        return _kind_of_text(text, found, filename, whole=len(head) < HEAD)
    # Some writers put a few bytes before a PDF; its readers accept that.
    if b"%PDF-" in head[:1024]:
        return media.PDF
    raise _refused("of an unknown kind" if found == "application/octet-stream" else found)


def _is_program(head: bytes) -> bool:
    """Two letters are not enough: a text may begin with "MZ"."""
    return not head.startswith(b"MZ") or b"\0" in head[:1024]


def _refused(found: str) -> AppError:
    return AppError(Code.FILE_TYPE_NOT_ALLOWED, f"The file is {found}, which can't be read. Allowed: {media.ALLOWED}.")


def _package(path: Path) -> str:
    """The kind of a ZIP file by the parts that only that kind has."""
    with path.open("rb") as file:
        package = Package(file)
        if "[Content_Types].xml" in package:
            types = package.read("[Content_Types].xml", limit=MAX_CONTENT_TYPES)
            for main in _MAIN_PART.findall(types):
                for mark, media_type in _OFFICE:
                    if mark in main:
                        return media_type
            raise _refused("an Office package of another kind")
        if "mimetype" in package:
            declared = package.read("mimetype", limit=1024).strip().decode("ascii", "replace")
            if declared in (media.ODT, media.EPUB):
                return declared
            if declared == media.ODT + "-template":
                return media.ODT
            raise _refused(declared[:80] if declared.isprintable() else "a package of another kind")
    raise _refused("a ZIP archive (unpack it, or upload it as a batch)")


def _text(head: bytes, path: Path, found: str) -> str | None:
    """The decoded head when the file is text, else None."""
    whole = len(head) >= path.stat().st_size
    encoding = sniff(head, complete=whole)
    if encoding is not None:
        return head.decode(encoding, errors="replace")
    # A rarer encoding: libmagic must agree that it is text, and it must have no control characters.
    if found.startswith("text/") and few_controls(head):
        return head.decode("cp1252", errors="replace")
    return None


def _kind_of_text(text: str, found: str, filename: str, *, whole: bool) -> str:
    """HTML, JSON and mail show by their content; Markdown, CSV and plain text also by the name."""
    text = text.lstrip("\ufeff")
    for start, name in _REFUSED_TEXT:
        if text[:200].lstrip().lower().startswith(start.lower()):
            raise _refused(name)
    hint = _BY_NAME.get(Path(filename).suffix.lower())
    looks_like_html = found == media.HTML or _named(filename, ".html", ".htm", ".xhtml")
    if _starts_as_html(text) or (hint is None and looks_like_html and _HTML_TAG.search(text[:65536])):
        if _CARRIED_PROGRAM.search(text):
            raise _refused("a web page that carries a program")
        return media.HTML
    if _XML.match(text[:1024]):
        raise _refused("XML or SVG")
    if _is_mail(text[:16384]):
        return media.EML
    if hint != media.MARKDOWN and _is_json(text, whole=whole, named=_named(filename, ".json", ".jsonl", ".ndjson")):
        return media.JSON
    if hint is not None:
        return hint
    if found == media.CSV:
        return media.CSV
    return media.MARKDOWN if len(_MARKDOWN.findall(text[:65536])) >= 2 else media.PLAIN


def _starts_as_html(text: str) -> bool:
    """True when the first markup after XML declaration and comments is that of a page."""
    if prologue := _PROLOGUE.match(text):
        text = text[prologue.end() :]
    text = text.lstrip()
    for _ in range(MAX_COMMENTS):
        if not text.startswith("<!--"):
            break
        text = text[text.find("-->") + 3 :].lstrip() if "-->" in text else ""
    return _HTML.match(text) is not None


def _named(filename: str, *suffixes: str) -> bool:
    return filename.lower().endswith(suffixes)


def _is_mail(text: str) -> bool:
    """A block of header lines at the very start, two of which every mail has."""
    if not _HEADER_LINE.match(text):
        return False
    block = text.replace("\r\n", "\n").split("\n\n", 1)[0]
    lines = block.split("\n")
    if not all(_HEADER_LINE.match(line) or line[:1] in (" ", "\t") for line in lines if line):
        return False
    names = {name.lower() for name in HeaderParser().parsestr(block).keys()}  # noqa: SIM118 (a Message isn't a dict)
    return len(names & _MAIL_HEADERS) >= 3 or ("from" in names and len(names & _MAIL_HEADERS) >= 2)


def _is_json(text: str, *, whole: bool, named: bool) -> bool:
    start = text[:1024].lstrip()[:1]
    if start not in ("{", "["):
        return False
    if not whole or len(text) > MAX_JSON:
        return named or bool(re.match(r'\s*(?:\{\s*"|\[\s*[\[{"\d-])', text[:1024]))
    lines = [text] if not named else [text, text.strip().split("\n", 1)[0]]
    for candidate in lines:
        try:
            json.loads(candidate)
            return True
        except RecursionError:
            return True
        except ValueError:
            continue
    # One value a line, without a name that says so.
    first, _, second = text.strip().partition("\n")
    return first.startswith("{") and second.startswith("{") and _is_json(first, whole=True, named=False)
