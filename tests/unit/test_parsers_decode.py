"""Text in every encoding that the product promises, told apart from binary."""

import os

import pytest

from internal.parsers.clean import clean, flow, join_lines
from internal.parsers.decode import declared_charset, decode, sniff

SIMPLIFIED = "在多租户系统中，我们把每一个文件都存放在自己的目录里。这样做的好处是，没有人可以看到别人的内容。"
TRADITIONAL = "在多租戶系統中，我們把每一個檔案都存放在自己的目錄裡。這樣做的好處是，沒有人可以看到別人的內容。"
ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody minds.\n"


@pytest.mark.parametrize("text", [SIMPLIFIED, TRADITIONAL, ENGLISH * 3, ENGLISH + SIMPLIFIED, "ok", "年度报告"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_recognised_with_and_without_mark(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)).text.lstrip("\ufeff") == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (SIMPLIFIED, "gb18030"),
        (SIMPLIFIED, "gbk"),
        (ENGLISH + SIMPLIFIED, "gb2312"),
        (TRADITIONAL, "big5"),
        (TRADITIONAL, "gb18030"),
        (ENGLISH + TRADITIONAL, "big5"),
        ("年度报告", "gb18030"),
    ],
)
def test_chinese_encodings_are_recognised(text: str, encoding: str) -> None:
    data = text.encode(encoding)
    assert sniff(data, complete=True) is not None
    assert decode(data).text == text


def test_a_sample_may_end_within_a_character() -> None:
    for encoding in ("utf-8", "gb18030", "big5", "utf-16"):
        text = TRADITIONAL * 20
        assert sniff(text.encode(encoding)[:-1], complete=False) is not None, encoding


@pytest.mark.parametrize("text", ["Größe und Süße für Ärzte, über Öl.", "Où êtes-vous ? À côté de la forêt."])
def test_western_text_is_not_taken_for_chinese(text: str) -> None:
    assert decode((text * 5).encode("cp1252")).text == text * 5


def test_random_bytes_are_not_text() -> None:
    for length in (64, 1000, 65536):
        assert sniff(os.urandom(length), complete=True) is None
    assert sniff(b"\x7fELF\x02\x01\x01" + bytes(100), complete=True) is None


def test_a_declared_charset_is_believed_only_when_it_fits() -> None:
    assert decode("été".encode("cp1252"), declared="iso-8859-1").text == "été"
    assert decode("文件".encode(), declared="ascii").text == "文件"
    assert decode(b"plain", declared="zip").text == "plain"
    assert declared_charset(b'<meta charset="gb2312">') == "gb2312"
    assert declared_charset(b"<p>none</p>") is None


def test_cleaning_removes_what_must_not_be_stored() -> None:
    assert clean("a\x00b\ud800c\x07d\ufeff\u00ad\u202ee\r\nf\rg\u2028h\ti") == "abcde\nf\ng\nh\ti"
    assert clean("e\u0301") == "é"
    # Compatibility forms stay: a quote must look like its source.
    assert clean("ﬁ①Ａ") == "ﬁ①Ａ"
    assert flow("  a \u3000 b \n\n\n\n c ") == "a b\n\nc"


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("an exam-", "ple", "an example"),
        ("an exam\x02", "ple", "an example"),
        ("COVID-", "19", "COVID-19"),
        ("Jean-", "Luc", "Jean-Luc"),
        ("two", "words", "two words"),
        ("中文的", "句子", "中文的句子"),
        ("使用", "Python", "使用 Python"),
        ("", "x", "x"),
    ],
)
def test_lines_of_a_paragraph_are_joined(first: str, second: str, joined: str) -> None:
    assert join_lines(first, second) == joined
