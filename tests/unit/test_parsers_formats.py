"""What each parser reads: text, structure and places, on files made here."""

import io
from pathlib import Path

import pytest

from internal.entities.parsed import Block, Location, Parsed
from internal.parsers import media_types as media
from internal.parsers.read import read
from pkg.apperr import AppError, Code
from tests.fixtures.files import build


def parse(data: bytes, media_type: str, workdir: Path = Path("/nonexistent"), max_bytes: int = 1 << 20) -> Parsed:
    return read(io.BytesIO(data), media_type=media_type, workdir=workdir, max_bytes=max_bytes, megapixels=1)


def shape(parsed: Parsed) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in parsed.blocks]


def code_of(data: bytes, media_type: str, workdir: Path = Path("/nonexistent")) -> Code:
    with pytest.raises(AppError) as caught:
        parse(data, media_type, workdir)
    return caught.value.code


def test_docx_keeps_headings_lists_tables_and_pages() -> None:
    body = (
        build.paragraph("Guide", "H1")
        + "<w:p><w:r><w:t>One</w:t></w:r><w:r><w:tab/><w:t>two</w:t></w:r>"
        + "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>"
        + build.paragraph("Inner", "H2")
        + build.paragraph("an item", "List")
        + '<w:p><w:r><w:br w:type="page"/><w:t>next page</w:t></w:r></w:p>'
        + build.word_table(("City", "People"), ("Bern", "1"), ("Oslo", "2"))
    )
    parsed = parse(build.docx(body), media.DOCX)
    assert shape(parsed) == [
        ("heading", "Guide"),
        ("paragraph", "One two"),
        ("heading", "Inner"),
        ("list_item", "an item"),
        ("paragraph", "next page"),
        ("table_row", "City | People"),
        ("table_row", "Bern | 1"),
        ("table_row", "Oslo | 2"),
    ]
    assert [block.level for block in parsed.blocks if block.kind == "heading"] == [1, 2]
    assert parsed.blocks[4].location == Location(page=2, heading="Guide > Inner")
    assert [block.header for block in parsed.blocks[5:]] == [None, "City | People", "City | People"]


def test_docx_reads_text_boxes_notes_headers_and_comments_once() -> None:
    box = (
        "<w:p><w:r><mc:AlternateContent xmlns:mc='m'><mc:Choice><w:txbxContent>"
        + build.paragraph("in a box")
        + "</w:txbxContent></mc:Choice><mc:Fallback><w:txbxContent>"
        + build.paragraph("in a box")
        + "</w:txbxContent></mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    parts: dict[str, str | bytes] = {
        "word/head.xml": f"<w:hdr {build.W}>{build.paragraph('letterhead')}</w:hdr>",
        "word/notes.xml": f"<w:footnotes {build.W}><w:footnote>{build.paragraph('a note')}</w:footnote></w:footnotes>",
        "word/comments.xml": f"<w:comments {build.W}><w:comment>{build.paragraph('remark')}</w:comment></w:comments>",
    }
    targets = (("header", "head.xml"), ("footnotes", "notes.xml"), ("comments", "comments.xml"))
    texts = [block.text for block in parse(build.docx(box, parts, *targets), media.DOCX).blocks]
    assert texts == ["letterhead", "in a box", "a note", "remark"]


def test_pptx_slides_are_pages_with_notes() -> None:
    parsed = parse(build.pptx(("First", "Hello", "Say hello"), ("Second", "Bye", "")), media.PPTX)
    assert [(block.location.page, block.kind, block.text) for block in parsed.blocks] == [
        (1, "heading", "First"),
        (1, "paragraph", "Hello"),
        (1, "paragraph", "Say hello"),
        (2, "heading", "Second"),
        (2, "paragraph", "Bye"),
    ]


def test_xlsx_tables_dates_and_titles() -> None:
    rows = (
        '<row r="1"><c r="A1" t="s"><v>0</v></c></row>'
        '<row r="2"><c r="A2" t="inlineStr"><is><t>Day</t></is></c>'
        '<c r="B2" t="inlineStr"><is><t>Sum</t></is></c></row>'
        '<row r="3"><c r="A3" s="1"><v>45292</v></c><c r="B3"><v>0.30000000000000004</v></c></row>'
        '<row r="4"><c r="B4" t="b"><v>1</v></c></row>'
        '<row r="9"><c r="C9"><v>7</v></c><c r="D9" t="str"><v>seven</v></c></row>'
    )
    parsed = parse(build.xlsx(rows, ("Report",), name="账目"), media.XLSX)
    assert shape(parsed) == [
        ("heading", "账目"),
        ("paragraph", "Report"),
        ("table_row", "Day | Sum"),
        ("table_row", "2024-01-01 | 0.3"),
        ("table_row", "| TRUE"),
        ("table_row", "7 | seven"),
    ]
    assert parsed.blocks[3].header == "Day | Sum"
    assert parsed.blocks[5].header is None


def test_odt_and_epub() -> None:
    body = (
        '<text:h text:outline-level="2">Part</text:h><text:p>one<text:s text:c="2"/>two<text:tab/>three</text:p>'
        "<text:list><text:list-item><text:p>item</text:p></text:list-item></text:list>"
    )
    parsed = parse(build.odt(body), media.ODT)
    assert shape(parsed) == [("heading", "Part"), ("paragraph", "one two three"), ("list_item", "item")]
    assert parsed.metadata["title"] == "An ODT"
    assert code_of(build.odt("", encrypted=True), media.ODT) is Code.FILE_ENCRYPTED
    book = parse(build.epub("<h1>One</h1><p>first</p>", "<h1>Two</h1><p>second</p>"), media.EPUB)
    assert [block.location.heading for block in book.blocks] == ["One", "One", "Two", "Two"]
    assert book.metadata["title"] == "A Book"


def test_html_drops_scripts_and_keeps_structure() -> None:
    page = (
        "<html lang=zh><head><title>标题</title><style>p{}</style><script>alert(1)</script></head><body>"
        "<h1>一</h1><p>第一段<br>第二行</p><ul><li>甲<li>乙</ul><table><caption>表</caption>"
        "<tr><th>a<th>b<tr><td>1<td>2</table><pre>x\n  y</pre><p>last"
    )
    data = page.replace("<head>", "<head><meta charset=gb2312>").encode("gb18030")
    parsed = parse(data, media.HTML)
    assert shape(parsed) == [
        ("heading", "一"),
        ("paragraph", "第一段\n第二行"),
        ("list_item", "甲"),
        ("list_item", "乙"),
        ("caption", "表"),
        ("table_row", "a | b"),
        ("table_row", "1 | 2"),
        ("code", "x\n  y"),
        ("paragraph", "last"),
    ]
    assert parsed.metadata["title"] == "标题"
    assert parsed.metadata["language"] == "zh"


def test_markdown() -> None:
    text = (
        "---\ntitle: Notes\n---\n# One *two*\n\nA [link](http://x) and `a_b_c`,\nsnake_case_name.\n\n"
        "Setext\n------\n- item\n  more\n1. first\n\n| a | b |\n|---|---|\n| 1 | **2** |\n\n```\n# code\n```\n"
        "<table><tr><td>x<td>y<tr><td>1<td>2</table>\n"
    )
    parsed = parse(text.encode(), media.MARKDOWN)
    assert shape(parsed) == [
        ("heading", "One two"),
        ("paragraph", "A link and a_b_c,\nsnake_case_name."),
        ("heading", "Setext"),
        ("list_item", "item\nmore"),
        ("list_item", "first"),
        ("table_row", "a | b"),
        ("table_row", "1 | 2"),
        ("code", "# code"),
        ("table_row", "x | y"),
        ("table_row", "1 | 2"),
    ]
    assert parsed.metadata["title"] == "Notes"


def test_csv_json_and_text() -> None:
    table = parse('姓名;城市\n小明;北京\n"a\nb";c\n'.encode("gb18030"), media.CSV)
    assert shape(table) == [("table_row", "姓名 | 城市"), ("table_row", "小明 | 北京"), ("table_row", "a b | c")]
    assert table.blocks[1].header == "姓名 | 城市"
    values = parse(b'{"a": {"b": [1, 2]}, "c": [{"d": "x"}], "e": null}', media.JSON)
    assert [block.text for block in values.blocks] == ["a.b: 1, 2", "c.0.d: x"]
    assert [block.text for block in parse(b'{"a": 1}\n{"a": 2}\n', media.JSON).blocks] == ["0.a: 1", "1.a: 2"]
    assert "not well-formed" in parse(b'{"a": ', media.JSON).warnings[0]
    assert code_of(b'{"a":' * 500 + b"1" + b"}" * 500, media.JSON) is Code.FILE_TOO_COMPLEX
    assert code_of(b"[" * 200_000, media.JSON) is Code.FILE_TOO_COMPLEX
    plain = parse("first\r\n\r\nsecond\nline\r\n".encode("utf-16"), media.PLAIN)
    assert [block.text for block in plain.blocks] == ["first", "second\nline"]


def test_mail_with_parts_and_attachments() -> None:
    mail = (
        "From: =?gb2312?B?{name}?= <a@example.com>\r\nTo: b@example.com\r\nSubject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\r\n"
        "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=X\r\n\r\n--X\r\n"
        "Content-Type: multipart/alternative; boundary=Y\r\n\r\n--Y\r\nContent-Type: text/plain\r\n\r\nplain\r\n--Y\r\n"
        "Content-Type: text/html; charset=utf-8\r\n\r\n<p>rich</p>\r\n--Y--\r\n--X\r\nContent-Type: application/pdf\r\n"
        'Content-Disposition: attachment; filename="plan.pdf"\r\n\r\nxxxx\r\n--X--\r\n'
    ).replace("{name}", "1cXI/Q==")
    parsed = parse(mail.encode(), media.EML)
    assert [block.text for block in parsed.blocks] == [
        "Grüße",
        "From: 张三 <a@example.com>",
        "To: b@example.com",
        "rich",
        "Attachments: plan.pdf",
    ]


def test_pdf_headings_paragraphs_and_places() -> None:
    page = "\n".join(
        (
            build.show((72, 760, 24, "Annual Report")),
            build.show(
                (72, 700, 11, "This paragraph is wrapped over two lines, as para-"),
                (72, 686, 11, "graphs in printed documents nearly always are, and"),
                (72, 672, 11, "it ends here."),
            ),
            build.show((72, 620, 11, "Details of the year"), font="F2"),
            build.show((72, 590, 11, "Another paragraph stands further down on the page.")),
            build.show((72, 540, 11, "Revenue 1,200 1,100")),
        )
    )
    parsed = parse(build.pdf(page), media.PDF)
    assert shape(parsed) == [
        ("heading", "Annual Report"),
        (
            "paragraph",
            "This paragraph is wrapped over two lines, as paragraphs in printed documents nearly always are,"
            " and it ends here.",
        ),
        ("heading", "Details of the year"),
        ("paragraph", "Another paragraph stands further down on the page."),
        ("table_row", "Revenue 1,200 1,100"),
    ]
    place = parsed.blocks[1].location
    assert (place.page, place.heading) == (1, "Annual Report")
    assert place.box is not None
    x0, y0, x1, y1 = place.box
    assert 0.11 < x0 < 0.13 < x1 < 0.9
    assert 0.14 < y0 < y1 < 0.22
    assert parsed.metadata["title"] == "A small PDF"


def test_pdf_running_heads_and_page_numbers_are_left_out() -> None:
    pages = [
        build.show(
            (72, 810, 9, "The Company Handbook"), (72, 500, 11, f"Content of page {word}."), (300, 30, 9, f"{number}")
        )
        for number, word in enumerate(("one", "two", "three", "four", "five"), 1)
    ]
    parsed = parse(build.pdf(*pages), media.PDF)
    assert [(block.location.page, block.text) for block in parsed.blocks] == [
        (number, f"Content of page {word}.") for number, word in enumerate(("one", "two", "three", "four", "five"), 1)
    ]


def test_a_sentence_that_flows_over_a_page_stays_whole() -> None:
    first = build.show((72, 100, 11, "This sentence begins on the first page and"))
    second = build.show((72, 760, 11, "ends on the second one."), (72, 600, 11, "A new paragraph."))
    parsed = parse(build.pdf(first, second), media.PDF)
    assert [(block.location.page, block.text) for block in parsed.blocks] == [
        (1, "This sentence begins on the first page and ends on the second one."),
        (2, "A new paragraph."),
    ]


def test_a_scanned_page_becomes_an_image(tmp_path: Path) -> None:
    parsed = parse(build.scanned_pdf(), media.PDF, tmp_path)
    (image,) = parsed.page_images
    assert (image.page, image.path) == (1, "page-00001.jpg")
    assert (tmp_path / image.path).stat().st_size > 1000
    assert image.width > 1600
    assert parsed.blocks == ()


def test_a_blank_page_is_neither_text_nor_image(tmp_path: Path) -> None:
    parsed = parse(build.pdf(""), media.PDF, tmp_path)
    assert parsed.blocks == ()
    assert parsed.page_images == ()


def test_broken_and_encrypted_pdf() -> None:
    assert code_of(build.encrypted_pdf(), media.PDF) is Code.FILE_ENCRYPTED
    assert code_of(b"%PDF-1.4 nothing more", media.PDF) is Code.FILE_UNREADABLE


def test_photos_are_turned_and_described(tmp_path: Path) -> None:
    from PIL import ExifTags, Image

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Maker\0"
    parsed = parse(build.picture("JPEG", (40, 20), exif=exif), media.JPEG, tmp_path)
    (image,) = parsed.page_images
    assert (image.width, image.height) == (20, 40)
    assert parsed.metadata["camera_make"] == "Maker"


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    assert code_of(build.picture("PNG", (2000, 2000)), media.PNG, tmp_path) is Code.FILE_TOO_COMPLEX
    assert code_of(build.picture("PNG")[:60], media.PNG, tmp_path) is Code.FILE_UNREADABLE


def test_bombs_in_packages_are_refused() -> None:
    bomb = build.docx("", {"word/document.xml": b"<w>" + b" " * (64 << 20)})
    assert code_of(bomb, media.DOCX) is Code.FILE_TOO_COMPLEX
    entities = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>'
    assert code_of(build.docx("", {"word/document.xml": entities}), media.DOCX) is Code.FILE_UNREADABLE
    wide = entities.decode().encode("utf-16")
    assert code_of(build.docx("", {"word/document.xml": wide}), media.DOCX) is Code.FILE_UNREADABLE
    assert code_of(build.archive({f"{number}": "" for number in range(20_001)}), media.DOCX) is Code.FILE_TOO_COMPLEX


def test_text_beyond_the_bound_is_refused() -> None:
    with pytest.raises(AppError) as caught:
        parse(b"word " * 1000, media.PLAIN, max_bytes=1000)
    assert caught.value.code is Code.FILE_TOO_COMPLEX


def test_recognised_pages_take_their_places() -> None:
    parsed = Parsed(
        blocks=tuple(Block(kind="paragraph", text=f"p{page}", location=Location(page=page)) for page in (1, 3))
    )
    merged = parsed.with_pages({2: [Block(kind="paragraph", text="p2", location=Location(page=2))]})
    assert [block.text for block in merged.blocks] == ["p1", "p2", "p3"]
