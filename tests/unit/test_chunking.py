"""Chunks lose nothing, stay within bounds, follow the structure and never tear a grapheme."""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internal.entities.parsed import Block, BlockKind, Location, Parsed
from internal.services.chunking import Chunk, assemble, embedding_text, sentences, units
from internal.services.chunking_sentences import can_cut

FAMILY = "👨‍👩‍👧‍👦"
FLAGS = "🇨🇳🇩🇪"


def count(texts: list[str]) -> list[int]:
    """A stand-in for the tokenizer: a token for each Chinese character, one for four other ones."""
    return [max(1, sum(4 if char >= "\u2e80" else 1 for char in text) // 4) for text in texts]


def chunk(parsed: Parsed, **options: int) -> list[Chunk]:
    pieces = units(parsed)
    return assemble(pieces, count([piece.text for piece in pieces]), title=parsed.metadata.get("title"), **options)


def block(text: str, kind: BlockKind = "paragraph", *, page: int | None = None, heading: str | None = None,
          level: int = 0, header: str | None = None) -> Block:  # fmt: skip
    return Block(kind=kind, text=text, location=Location(page=page, heading=heading), level=level, header=header)


def visible(text: str) -> str:
    return "".join(text.split())


kinds = st.sampled_from(["paragraph", "list_item", "code", "caption"])
characters = st.one_of(
    st.characters(exclude_categories=["Cs", "Cc"]),
    st.sampled_from(
        ["。", "！", ". ", "? ", "，", " ", "\n", "中", "文", "word ", FAMILY, FLAGS, "e\u0301", "ก็", "각"]
    ),
)
texts = st.lists(characters, min_size=1, max_size=400).map("".join)
documents = st.lists(st.tuples(kinds, texts, st.integers(1, 5)), max_size=12).map(
    lambda items: Parsed(blocks=tuple(block(text, kind, page=page) for kind, text, page in items))
)


@settings(max_examples=150, deadline=None)
@given(documents, st.integers(0, 40))
def test_nothing_is_lost_and_nothing_changes_its_order(parsed: Parsed, overlap: int) -> None:
    """Every visible character of the source stands in some chunk, in order (overlaps come twice)."""
    chunks = chunk(parsed, target_tokens=60, max_tokens=100, overlap_tokens=overlap)
    source = visible("".join(item.text for item in parsed.blocks))
    position = 0
    for item in chunks:
        text = visible(item.text)
        # The longest beginning of the chunk that repeats what was there already.
        start = next(at for at in range(position, -1, -1) if source.startswith(text, at))
        assert start <= position
        position = max(position, start + len(text))
    assert position == len(source)


@settings(max_examples=100, deadline=None)
@given(documents)
def test_bounds_hold(parsed: Parsed) -> None:
    chunks = chunk(parsed, target_tokens=60, max_tokens=100, overlap_tokens=20)
    assert all(0 < item.tokens <= 100 for item in chunks)
    assert [item.ordinal for item in chunks] == list(range(len(chunks)))
    assert all(item.text.strip() for item in chunks)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.sampled_from([FAMILY, "🇨🇳", "e\u0301\u0323", "👍🏽", "각"]))
def test_no_grapheme_is_torn(times: int, grapheme: str) -> None:
    pieces = units(Parsed(blocks=(block(grapheme * times),)))
    assert "".join(piece.text for piece in pieces) == grapheme * times
    assert all(len(piece.text) % len(grapheme) == 0 for piece in pieces)
    chunks = assemble(pieces, [700] * len(pieces))
    assert all(len(item.text) % len(grapheme) == 0 for item in chunks)
    assert all(item.tokens <= 480 for item in chunks)


@given(st.text(max_size=60), st.integers(0, 60))
def test_a_cut_never_leaves_a_combining_mark_alone(text: str, index: int) -> None:
    if 0 < index < len(text) and can_cut(text, index):
        assert unicodedata.category(text[index]) not in ("Mn", "Me", "Mc")
        assert text[index - 1] != "\u200d"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气很好。我们去公园吧！你来吗？", ["今天天气很好。", "我们去公园吧！", "你来吗？"]),
        ("他说：“好的。”然后走了。", ["他说：“好的。”", "然后走了。"]),
        ("真的吗？！是的……再见", ["真的吗？！", "是的……", "再见"]),
        ("It works. It is fast! Is it?", ["It works.", "It is fast!", "Is it?"]),
        ("Dr. Smith paid $3.50 to J. Doe, e.g. for tea. Done.",
         ["Dr. Smith paid $3.50 to J. Doe, e.g. for tea.", "Done."]),
        ("The U.S. economy grew. See Fig. 3 for more.", ["The U.S. economy grew.", "See Fig. 3 for more."]),
        ('She said "Stop." Then she left.', ['She said "Stop."', "Then she left."]),
        ("Visit example.com today. Yes", ["Visit example.com today.", "Yes"]),
        ("使用 Python 3.11 运行。版本是 v1.2。", ["使用 Python 3.11 运行。", "版本是 v1.2。"]),
        ("one line\nanother line", ["one line", "another line"]),
        ("and so on... but not here", ["and so on... but not here"]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_a_short_document_is_one_chunk_with_its_exact_text() -> None:
    text = "DreamHub keeps every tenant apart. 每个租户的数据都是隔离的。"
    chunks = chunk(Parsed(blocks=(block(text, page=3),), metadata={"title": "Guide"}))
    assert [item.text for item in chunks] == [text]
    assert chunks[0].location.page == 3
    assert embedding_text(chunks[0]) == "Guide\n" + text


def test_an_empty_document_has_no_chunks() -> None:
    assert chunk(Parsed()) == []
    assert chunk(Parsed(blocks=(block("  \n"),))) == []


def test_sections_are_not_mixed_and_headings_stay_with_their_text() -> None:
    blocks: list[Block] = []
    for name in ("Alpha", "Beta", "Gamma"):
        blocks.append(block(name, "heading", heading=name, level=1))
        blocks += [
            block(f"{name} sentence number {number} says something useful.", heading=name) for number in range(12)
        ]
    chunks = chunk(Parsed(blocks=tuple(blocks)))
    assert len(chunks) == 3
    for item, name in zip(chunks, ("Alpha", "Beta", "Gamma"), strict=True):
        assert item.text.startswith(f"{name}\n\n{name} sentence number 0")
        assert item.location.heading == name
        assert all(other not in item.text for other in {"Alpha", "Beta", "Gamma"} - {name})


def test_a_heading_never_ends_a_chunk() -> None:
    body = "Some words that fill the section with text. " * 9
    blocks = [block("Part", "heading", level=1, heading="Part"), block("Other", "heading", level=1, heading="Other")]
    for number in range(6):
        path = f"Part > §{number}"
        blocks += [block(f"§{number}", "heading", level=3, heading=path), block(body.strip(), heading=path)]
    for item in chunk(Parsed(blocks=tuple(blocks))):
        assert not item.text.rsplit("\n", 1)[-1].startswith("§")


def test_table_rows_repeat_their_header_in_every_chunk() -> None:
    header = "City | Population | Country"
    rows = [block(header, "table_row")]
    rows += [
        block(f"City {number} | {number * 1000} | Somewhere far away", "table_row", header=header)
        for number in range(160)
    ]
    chunks = chunk(Parsed(blocks=tuple(rows)))
    assert len(chunks) > 2
    for item in chunks:
        assert item.text.startswith(header + "\n")
        assert item.text.count(header) == 1
    assert all(f"City {number} |" in "\n".join(item.text for item in chunks) for number in range(160))


def test_overlap_repeats_whole_sentences_within_a_section_only() -> None:
    text = " ".join(f"This is sentence number {number} of a long paragraph." for number in range(120))
    chunks = chunk(Parsed(blocks=(block(text),)))
    assert len(chunks) > 2
    for before, after in pairwise(chunks):
        repeated = sentences(before.text)[-1]
        assert after.text.startswith("This is sentence")
        assert repeated in after.text
    assert all(item.tokens <= 480 for item in chunks)


def test_the_context_names_the_nearest_heading_that_the_text_lacks() -> None:
    path = "Operations > Backup"
    text = " ".join(f"Backup step {number} copies one more table to the store." for number in range(90))
    parsed = Parsed(
        blocks=(block("Backup", "heading", level=2, heading=path), block(text, heading=path)),
        metadata={"title": "Manual"},
    )
    first, second, *_ = chunk(parsed)
    assert first.context == "Manual > Operations"
    assert second.context == "Manual > Operations > Backup"
    assert not second.text.startswith("Backup\n")


def test_the_page_is_that_of_the_first_sentence() -> None:
    blocks = tuple(
        block(f"Page {page} holds these words and a few more of them. " * 9, page=page) for page in range(1, 9)
    )
    for item in chunk(Parsed(blocks=blocks), overlap_tokens=0):
        assert f"Page {item.location.page} holds" == item.text[:12]


def test_code_keeps_its_indentation() -> None:
    code = "def f():\n    if x:\n        return 1\n    return 2"
    assert chunk(Parsed(blocks=(block(code, "code"),)))[0].text == code


def test_a_text_without_any_break_is_divided_and_kept() -> None:
    text = "a" * 20_000
    chunks = chunk(Parsed(blocks=(block(text),)), overlap_tokens=0)
    assert "".join(item.text for item in chunks) == text
    assert max(item.tokens for item in chunks) <= 480


def test_counts_must_match_units() -> None:
    with pytest.raises(ValueError, match="units"):
        assemble(units(Parsed(blocks=(block("a"),))), [])
