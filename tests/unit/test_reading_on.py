"""Passages that are put together from neighbouring chunks."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.entities.documents import Chunk, Neighbourhood
from internal.entities.ids import new_id
from internal.entities.parsed import Location, Part
from internal.entities.search import SearchHit
from internal.providers.llm_wire import estimate_tokens
from internal.services.passages import joined, readable, with_neighbours

GENERATION = new_id()


def chunk(ordinal: int, text: str, page: int = 1) -> Chunk:
    return Chunk(
        id=new_id(),
        ordinal=ordinal,
        hash=b"",
        text_hash=b"",
        text=text,
        tokens=1,
        location=Location(page=page),
        parts=(Part(start=0, location=Location(page=page)), Part(start=3, location=Location(page=page + 1))),
    )


def hit(found: Chunk, score: float = 1.0) -> SearchHit:
    return SearchHit(
        chunk_id=found.id,
        document_id=new_id(),
        filename="a.txt",
        source_type="document",
        text=found.text,
        score=score,
        location=found.location,
    )


def around(chunks: list[Chunk], *, generation: UUID = GENERATION) -> dict[UUID, Neighbourhood]:
    """Each with the one before and the one after it."""
    return {
        found.id: Neighbourhood(
            generation_id=generation,
            chunk=found,
            around=tuple(other for other in chunks if abs(other.ordinal - found.ordinal) == 1),
        )
        for found in chunks
    }


BOOK = [
    "Chapter one. It begins here, in the morning.",
    "It begins here, in the morning. Then it rains.",
    "Then it rains. Nobody knows why.",
    "A table | of numbers",
    "The end of it.",
]


def test_what_chunks_repeat_stands_once() -> None:
    chunks = [chunk(number, text) for number, text in enumerate(BOOK)]
    text, pieces = joined(chunks)
    assert text == (
        "Chapter one. It begins here, in the morning. Then it rains. Nobody knows why.\n"
        "A table | of numbers\nThe end of it."
    )
    assert [text[piece.start : piece.end] for piece in pieces] == BOOK
    assert [piece.chunk_id for piece in pieces] == [one.id for one in chunks]


@given(
    st.text("ab \n。", max_size=60), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=6)
)
def test_every_chunk_stands_whole_in_what_is_joined(source: str, cuts: list[tuple[int, int]]) -> None:
    chunks = [chunk(number, source[start : start + length] or "x") for number, (start, length) in enumerate(cuts)]
    text, pieces = joined(chunks)
    assert [text[piece.start : piece.end] for piece in pieces] == [one.text for one in chunks]


def test_hits_side_by_side_are_one_passage_in_the_better_ones_place() -> None:
    chunks = [chunk(number, text) for number, text in enumerate(BOOK)]
    other = chunk(7, "Another file.")
    known = around(chunks) | around([other], generation=new_id())
    room = sum(estimate_tokens(text) for text in (BOOK[1], BOOK[2], other.text))
    found = readable([hit(other), hit(chunks[2], 0.9), hit(chunks[1], 0.8)], known, tokens=room)
    assert [(item.number, item.text) for item in found] == [
        (1, "Another file."),
        (2, "It begins here, in the morning. Then it rains. Nobody knows why."),
    ]
    assert found[0].parts == other.parts
    assert found[0].pieces == ()
    assert [piece.chunk_id for piece in found[1].pieces] == [chunks[1].id, chunks[2].id]
    assert found[1].chunk_id == chunks[2].id
    assert found[1].location == chunks[1].location


def test_room_that_is_left_goes_to_what_follows_and_precedes_the_best() -> None:
    chunks = [chunk(number, text) for number, text in enumerate(BOOK)]
    known = around(chunks)
    room = sum(estimate_tokens(text) for text in BOOK)
    best = readable([hit(chunks[1]), hit(chunks[4], 0.1)], known, tokens=room)
    assert [item.text for item in best] == [joined(chunks[:3])[0], joined(chunks[3:])[0]]
    assert readable([hit(chunks[1])], known, tokens=0)[0].text == BOOK[1]


def test_of_hits_that_do_not_fit_the_best_stay() -> None:
    chunks = [chunk(number * 10, text * 5) for number, text in enumerate(BOOK)]
    found = readable([hit(one) for one in chunks], around(chunks), tokens=2 * estimate_tokens(BOOK[0] * 5))
    assert [item.chunk_id for item in found] == [one.id for one in chunks[: len(found)]]
    assert 0 < len(found) < 5


def test_a_hit_that_was_removed_meanwhile_stands_alone() -> None:
    gone = chunk(0, "Gone.")
    (found,) = readable([hit(gone)], {}, tokens=100)
    assert (found.text, found.chunk_id, found.pieces) == ("Gone.", gone.id, ())


@pytest.mark.parametrize(
    ("quote", "place"), [("Chapter one", 0), ("Then it rains", 1), ("Nobody knows", 2), ("A table", 3)]
)
def test_a_quote_belongs_to_the_chunk_that_holds_it(quote: str, place: int) -> None:
    chunks = [chunk(number, text, page=number) for number, text in enumerate(BOOK)]
    room = sum(estimate_tokens(text) for text in BOOK)
    (passage,) = readable(
        [hit(one) for one in (chunks[1], chunks[2], chunks[3], chunks[0])], around(chunks), tokens=room
    )
    start = passage.text.index(quote)
    piece = passage.piece(start, start + len(quote))
    assert piece.chunk_id == chunks[place].id
    assert piece.location.page == place
    assert quote in chunks[place].text


def test_neighbours_are_read_in_the_order_of_the_text() -> None:
    chunks = [chunk(number, text) for number, text in enumerate(BOOK[:3])]
    assert with_neighbours(around(chunks)[chunks[1].id]) == joined(chunks)[0]
