"""The type of a file is told by its content; everything that isn't on the list is refused by name."""

from base64 import b64encode
from pathlib import Path

import pytest

from internal.parsers import media_types as media
from internal.parsers.detect import detect
from pkg.apperr import AppError, Code
from tests.fixtures.files import build

CHINESE = "在多租户系统中，我们把每一个文件都存放在自己的目录里。\n没有人可以看到别人的内容。\n"
MAIL = (
    b"From: a@example.com\r\nTo: b@example.com\r\nSubject: hi\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\n\r\nHello\r\n"
)

ALLOWED: list[tuple[bytes, str, str]] = [
    (build.pdf(build.show((72, 700, 12, "hello"))), "x.bin", media.PDF),
    (b"\n\n\x80junk\n" + build.pdf("") + b"\x00", "x.pdf", media.PDF),
    (build.docx(build.paragraph("x")), "x.zip", media.DOCX),
    (build.pptx(("a", "b", "c")), "x", media.PPTX),
    (build.xlsx("<row/>"), "x.docx", media.XLSX),
    (build.odt("<text:p>x</text:p>"), "x", media.ODT),
    (build.epub("<p>x</p>"), "x", media.EPUB),
    (b"<!DOCTYPE html><html><body>hi</body></html>", "x.txt", media.HTML),
    (b"<!-- a --><!-- b --><HTML><p>hi</p></HTML>", "x", media.HTML),
    (b"<p>a fragment</p><p>of a page</p>", "x.html", media.HTML),
    (b"<html><img src='data:image/png;base64,iVBORw0KGgo='></html>", "x", media.HTML),
    (b"<html><p>A program begins with TVqQ in data:text/plain;base64,AAAA</p></html>", "x", media.HTML),
    (b"begin 644 notes\n#86)C\n`\nend\n", "x.txt", media.PLAIN),
    (b"How to unpack:\n(This file must be converted with BinHex 4.0)\n", "x.txt", media.PLAIN),
    (b"# Title\n\nSome *text*.\n", "notes.md", media.MARKDOWN),
    (b"# Title\n\n## Part\n\n- [a](b)\n", "notes", media.MARKDOWN),
    (b"Just a note.\n", "note.txt", media.PLAIN),
    (b"a,b\n1,2\n", "table.csv", media.CSV),
    (b'{"a": [1, 2, {"b": null}]}', "x.txt", media.JSON),
    (b'{"a": 1}\n{"a": 2}\n', "x", media.JSON),
    (b"[a link](http://example.com) in a text\n", "x.txt", media.PLAIN),
    (b"Note: this is a note\nTo: nobody\n", "x.txt", media.PLAIN),
    (MAIL, "x", media.EML),
    (b"def main():\n    return 1\n", "main.py", media.PLAIN),
    (b"MZ is how this sentence begins.\n", "x.txt", media.PLAIN),
    (CHINESE.encode(), "x", media.PLAIN),
    (CHINESE.encode("utf-16"), "x", media.PLAIN),
    (CHINESE.encode("utf-16-le"), "x.txt", media.PLAIN),
    (CHINESE.encode("utf-16-be"), "x.txt", media.PLAIN),
    (CHINESE.encode("gb18030"), "x", media.PLAIN),
    ("這是一個關於資料的檔案，我們在這裡說明一切。".encode("big5"), "x", media.PLAIN),
    ("姓名,年龄\n王小明,三十\n李四,二十\n".encode("gb18030"), "表.csv", media.CSV),
    (build.picture("PNG"), "x.exe", media.PNG),
    (build.picture("JPEG"), "x", media.JPEG),
    (build.picture("WEBP"), "x", media.WEBP),
    (build.picture("GIF"), "x", media.GIF),
    (build.picture("TIFF"), "x", media.TIFF),
]
REFUSED: list[tuple[bytes, str]] = [
    (b"\x7fELF\x02\x01\x01" + bytes(200), "a program"),
    (b"MZ\x90\0" + bytes(200), "a program"),
    (b"#!/bin/sh\nrm -rf /\n", "script"),
    (b"@echo off\r\ndel *\r\n", "script"),
    (b"(This file must be converted with BinHex 4.0)\r\n:#'0XB@dZCAKP!\r\n", "BinHex"),
    *(
        (b"<html><a href='data:application/octet-stream;base64," + b64encode(start + bytes(60)) + b"'>x</a>", "carries")
        for start in (b"MZ\x90\0", b"MZP\0", b"\x7fELF\x02")
    ),
    *(
        (b"<html><a href='data:application/octet-stream" + link + b"TVqQAAMAAAA'>x</a>", "carries")
        for link in (
            b";name=a.exe;base64,",
            b";charset=utf-8;base64,",
            b";BASE64,",
            b"; base64,",
            b'; name="a b.exe"; base64 ,\n',
        )
    ),
    (b"<html><a href='DATA:;Base64,f0VMRgIBAQ'>x</a>", "carries"),
    (build.archive({"a.txt": "x"}), "ZIP"),
    (build.archive({"inner.zip": build.archive({"a": "b"})}), "ZIP"),
    (build.archive({"[Content_Types].xml": "<Types/>"}), "Office package"),
    (build.archive({"mimetype": "application/vnd.oasis.opendocument.spreadsheet"}), "spreadsheet"),
    (b"\x1f\x8b\x08" + bytes(100), "gzip"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "old Office"),
    (b"{\\rtf1 hello}", "RTF"),
    (b"<?xml version='1.0'?><svg/>", "SVG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    (b"%!PS-Adobe-3.0\n", "PostScript"),
    (b"RIFF\x24\x08\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0" + bytes(300), "audio"),
    (b"\x93\x01\xfe\0\x11" * 80, "unknown"),
]


def kind_of(data: bytes, name: str, tmp_path: Path) -> str:
    path = tmp_path / "upload"
    path.write_bytes(data)
    return detect(data[: 1 << 18], path, name).media_type


@pytest.mark.parametrize(("data", "name", "expected"), ALLOWED, ids=range(len(ALLOWED)))
def test_allowed(data: bytes, name: str, expected: str, tmp_path: Path) -> None:
    assert kind_of(data, name, tmp_path) == expected


@pytest.mark.parametrize(("data", "told"), REFUSED, ids=range(len(REFUSED)))
def test_refused_by_name_whatever_it_is_called(data: bytes, told: str, tmp_path: Path) -> None:
    for name in ("x.pdf", "x.txt", "x"):
        with pytest.raises(AppError) as caught:
            kind_of(data, name, tmp_path)
        assert caught.value.code is Code.FILE_TYPE_NOT_ALLOWED
        assert told in caught.value.detail
        assert "PDF" in caught.value.detail


def test_photos_are_photos(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(build.picture("PNG"))
    assert detect(path.read_bytes(), path, "x").source_type == "photo"


def test_empty_and_encrypted_and_broken(tmp_path: Path) -> None:
    office = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500) + "EncryptedPackage".encode("utf-16-le")
    cases = ((b"", Code.FILE_EMPTY), (office, Code.FILE_ENCRYPTED), (b"PK\x03\x04 torn", Code.FILE_UNREADABLE))
    for data, code in cases:
        with pytest.raises(AppError) as caught:
            kind_of(data, "x.docx", tmp_path)
        assert caught.value.code is code


def test_a_bomb_costs_the_server_nothing(tmp_path: Path) -> None:
    """The parts that are looked at are read up to a bound, the others not at all."""
    huge = b" " * (64 << 20)
    with pytest.raises(AppError) as caught:
        kind_of(build.archive({"[Content_Types].xml": huge}), "x.docx", tmp_path)
    assert caught.value.code is Code.FILE_TOO_COMPLEX
    deep = b"[" * 200_000
    assert kind_of(deep, "x.json", tmp_path) == media.JSON
    comments = b"<!---->" * 30_000
    assert kind_of(comments, "x.txt", tmp_path) == media.PLAIN
