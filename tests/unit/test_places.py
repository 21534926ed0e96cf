"""Parts of chunks keep their places: sections, pages, rows, lines of pictures, times; and a quote finds its own."""

from itertools import groupby

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internal.entities.conversations import Citation, Passage
from internal.entities.ids import new_id
from internal.entities.ocr import OcrLine, OcrPage
from internal.entities.parsed import Block, Location, Parsed, Part
from internal.parsers import media_types as media
from internal.services.chunking import Chunk, assemble, units
from internal.services.chunking_sentences import sentences
from internal.services.citations import AnswerText
from internal.services.ingest import recognise
from internal.services.places import likeliest, place
from internal.services.prompts import build
from internal.services.quotes import Quoter
from internal.services.terms import TermAnalyser
from pkg.ctxutil import Context, Role
from tests.fixtures.files import build as files
from tests.unit.test_chunking import block, chunk, documents, visible
from tests.unit.test_extractive import Words
from tests.unit.test_parsers_formats import parse

CTX = Context(tenant_id=new_id(), user_id=new_id(), role=Role.MEMBER, request_id="r", trace_id="t")
SECTIONS = (("Alpha", "Apples are red."), ("Beta", "Bananas are yellow."), ("Gamma", "Grapes are blue."))


def sections() -> Parsed:
    """Three short sections, each on a page of its own."""
    blocks: list[Block] = []
    for page, (name, text) in enumerate(SECTIONS, 1):
        blocks += [block(name, "heading", page=page, heading=name, level=1), block(text, page=page, heading=name)]
    return Parsed(blocks=tuple(blocks))


def told(item: Chunk) -> list[tuple[str, Location]]:
    """The text of each part, and its place."""
    parts = item.parts or (Part(start=0, location=item.location),)
    ends = [part.start for part in parts[1:]] + [len(item.text)]
    return [(item.text[part.start : end], part.location) for part, end in zip(parts, ends, strict=True)]


def where(item: Chunk, words: str) -> Location:
    start = item.text.index(words)
    return place(item.parts, item.location, start, start + len(words))


def test_each_section_of_a_chunk_keeps_its_page_and_heading() -> None:
    (item,) = chunk(sections())
    assert item.location == Location(page=1, heading="Alpha")
    assert told(item) == [
        (f"{name}\n\n{text}" + "\n\n" * (page < 3), Location(page=page, heading=name))
        for page, (name, text) in enumerate(SECTIONS, 1)
    ]
    assert where(item, "Grapes are blue.") == Location(page=3, heading="Gamma")


def test_one_place_needs_no_parts() -> None:
    (item,) = chunk(Parsed(blocks=(block("One. Two.", page=4), block("Three.", page=4))))
    assert item.parts == ()
    assert where(item, "Two.") == Location(page=4)


@settings(max_examples=100, deadline=None)
@given(documents, st.integers(0, 40))
def test_every_part_is_text_of_its_page(parsed: Parsed, overlap: int) -> None:
    written = [item for item in parsed.blocks if item.text.strip()]
    runs = [
        (page, visible("".join(item.text for item in run)))
        for page, run in groupby(written, lambda item: item.location.page)
    ]
    for item in chunk(parsed, target_tokens=60, max_tokens=100, overlap_tokens=overlap):
        for text, location in told(item):
            assert any(page == location.page and visible(text) in run for page, run in runs)
        assert item.parts == () or item.parts[0].start == 0
        assert len(item.parts) != 1


def test_repeated_sentences_keep_their_place() -> None:
    pages = [" ".join(f"Page {page} has sentence {number} of many." for number in range(40)) for page in (1, 2)]
    chunks = chunk(Parsed(blocks=tuple(block(text, page=page) for page, text in enumerate(pages, 1))))
    for item in chunks:
        for text, location in told(item):
            assert text.count(f"Page {location.page} has") == text.count("Page ")
    (mixed,) = [item for item in chunks if item.parts]
    assert [part.location.page for part in mixed.parts] == [1, 2]


def test_rows_over_pages_keep_theirs_and_the_repeated_header_its_own() -> None:
    header = "City | Population | Country"
    rows = [block(header, "table_row", page=1)]
    rows += [
        block(f"City {number} | {number * 1000} | Far away", "table_row", page=1 + number // 40, header=header)
        for number in range(160)
    ]
    chunks = chunk(Parsed(blocks=tuple(rows)))
    assert len(chunks) > 2
    assert [where(item, header).page for item in chunks] == [1] * len(chunks)
    for number in range(160):
        row = f"City {number} | "
        (item,) = [item for item in chunks if row in item.text]
        assert where(item, row).page == 1 + number // 40


def test_a_header_is_that_of_its_own_table() -> None:
    header = "Item | Price"
    blocks: list[Block] = []
    for page in (1, 5):
        blocks.append(block(header, "table_row", page=page))
        blocks += [
            block(f"Thing {number} | {number}", "table_row", page=page + 1, header=header) for number in range(150)
        ]
    for item in chunk(Parsed(blocks=tuple(blocks))):
        assert where(item, header).page in (1, 5)
        assert where(item, "Thing").page == where(item, header).page + 1  # pyright: ignore[reportOptionalOperand]


def test_a_sentence_behind_a_page_break_inside_its_paragraph() -> None:
    first = files.show((72, 100, 11, "This sentence begins on the first page and"))
    second = files.show((72, 760, 11, "ends on the second one. Here follows another."), (72, 600, 11, "Apart."))
    (item,) = chunk(parse(files.pdf(first, second), media.PDF))
    assert where(item, "This sentence begins").page == 1
    assert where(item, "Here follows another.").page == 2
    box = where(item, "Here follows another.").box
    assert box is not None
    assert box[1] < 0.2
    assert where(item, "Apart.").page == 2


def test_chinese_sections_count_characters() -> None:
    blocks = (
        block("请假", "heading", page=1, heading="请假", level=1),
        block("员工年假为十五天👨‍👩‍👧‍👦。", page=1, heading="请假"),
        block("报销", "heading", page=2, heading="报销", level=1),
        block("报销单据应在四周内提交。", page=2, heading="报销"),
    )
    (item,) = chunk(Parsed(blocks=blocks))
    assert where(item, "员工年假") == Location(page=1, heading="请假")
    assert where(item, "报销单据") == Location(page=2, heading="报销")


def test_lines_of_a_picture_keep_their_boxes() -> None:
    lines = [OcrLine(f"第{n}行：检查灭火器。", (100, 100 * n, 900, 100 * n + 50), 0.9) for n in range(1, 4)]
    (read,) = recognise(OcrPage(1000, 2000, lines), number=7)
    (item,) = chunk(Parsed(blocks=(read,)))
    assert item.location == Location(page=7, box=(0.1, 0.05, 0.9, 0.175))
    assert where(item, lines[1].text) == Location(page=7, box=(0.1, 0.1, 0.9, 0.125))


@pytest.mark.parametrize(
    ("start", "end", "begins", "ends"), [(0, 4, 0, 1000), (0, 6, 0, 2000), (5, 9, 1000, 2000), (6, 14, 1000, 3000)]
)
def test_a_stretch_has_the_times_that_it_covers(start: int, end: int, begins: int, ends: int) -> None:
    parts = [Part(start=5 * n, location=Location(start_ms=1000 * n, end_ms=1000 * (n + 1))) for n in range(3)]
    assert place(parts, Location(), start, end) == Location(start_ms=begins, end_ms=ends)


def passage(parsed: Parsed) -> Passage:
    pieces = units(parsed)
    (item,) = assemble(pieces, [8] * len(pieces))
    return Passage(
        number=1,
        chunk_id=new_id(),
        document_id=new_id(),
        filename="f.pdf",
        text=item.text,
        score=1.0,
        location=item.location,
        parts=item.parts,
    )


async def cite(source: Passage, said: str) -> Citation:
    answer = AnswerText([source])
    answer.feed(said)
    answer.finish()
    (citation,) = (await Quoter(Words(), sentences).check(CTX, answer)).citations
    return citation


async def test_a_citation_has_the_place_of_its_quote() -> None:
    source = passage(sections())
    for page, (name, text) in enumerate(SECTIONS, 1):
        citation = await cite(source, f"{text[:-1]} [1].")
        assert (citation.quote, citation.location) == (text, Location(page=page, heading=name))
    both = await cite(source, "Grapes are blue [1]. Bananas are yellow [1].")
    assert both.quote == source.text[source.text.index("Bananas") :]
    assert both.location == Location(page=2, heading="Beta")


@pytest.mark.parametrize("quote", ["List item 1.1", "Cell 2 item 1", "List item 1", "See [1] and [2].", "项目一"])
async def test_what_is_said_word_for_word_is_quoted_alone(quote: str) -> None:
    lines = ("List item 1", "List item 1.1", "Cell 1 item 2", "Cell 2 item 1", "See [2] and [1].", "See [1] and [2].")
    source = passage(Parsed(blocks=tuple(block(text, "list_item") for text in (*lines, "项目二", "项目一"))))
    said = quote.replace("[", "(").replace("]", ")")
    assert (await cite(source, f"From your documents:\n\n{said} [1]")).quote == quote


def test_the_model_is_told_all_pages_of_a_passage() -> None:
    source = passage(sections())
    assert "[1] f.pdf, pages 1 to 3\n" in build("q", "q", [source], []).messages[-1].content
    alone = msgspec.structs.replace(source, parts=())
    assert "[1] f.pdf, page 1\n" in build("q", "q", [alone], []).messages[-1].content


def test_of_several_pages_the_one_with_the_wanted_words_is_meant() -> None:
    text = "Notes. Balance sheet: inventories, receivables. More of the sheet. Cash flows."
    starts = [0, text.index("Balance"), text.index("More"), text.index("Cash")]
    second = Location(page=2, heading="Balance sheet")
    pages = [Location(page=1), second, Location(page=2, heading="More"), Location(page=3)]
    parts = [Part(start=start, location=place) for start, place in zip(starts, pages, strict=True)]
    analyser = TermAnalyser()
    for wanted, page in (("inventories of the sheet", second), ("cash flow", pages[3]), ("absent", second)):
        assert likeliest(parts, text, frozenset(analyser.terms(wanted)), analyser) == page
