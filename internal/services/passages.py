"""Passages to read: hits with what stands before and after them, put together without what chunks repeat."""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from internal.entities.conversations import Passage, Piece
from internal.entities.documents import Chunk, Neighbourhood
from internal.entities.parsed import Part
from internal.entities.search import SearchHit
from internal.providers.llm_wire import estimate_tokens

REPEATED = 1000
"""Characters of a chunk's end that the next one may begin with."""
LEAST_REPEATED = 8
"""Fewer characters in common are chance."""


def joined(chunks: Sequence[Chunk]) -> tuple[str, tuple[Piece, ...]]:
    """One text of chunks that follow one another, and where each of them stands in it, whole."""
    text = ""
    pieces: list[Piece] = []
    for chunk in chunks:
        common = _repeated(text, chunk.text)
        if text and not common:
            text += "\n"
        start = len(text) - common
        text += chunk.text[common:]
        pieces.append(
            Piece(chunk_id=chunk.id, start=start, end=len(text), location=chunk.location, parts=tuple(chunk.parts))
        )
    return text, tuple(pieces)


def with_neighbours(known: Neighbourhood) -> str:
    """A chunk and what stands around it in one text."""
    return joined(sorted((known.chunk, *known.around), key=lambda chunk: chunk.ordinal))[0]


def as_found(hits: Sequence[SearchHit], parts: Mapping[UUID, tuple[Part, ...]]) -> list[Passage]:
    """A passage for each hit, numbered from 1."""
    return [
        Passage(
            number=number,
            chunk_id=hit.chunk_id,
            document_id=hit.document_id,
            filename=hit.filename,
            text=hit.text,
            score=hit.score,
            location=hit.location,
            parts=parts.get(hit.chunk_id, ()),
        )
        for number, hit in enumerate(hits, 1)
    ]


def readable(hits: Sequence[SearchHit], known: Mapping[UUID, Neighbourhood], *, tokens: int) -> list[Passage]:
    """Passages of at most `tokens` in all, at least one, best first, numbered from 1.

    Hits that stand side by side are one passage, in the better one's place. What room is left goes to the chunks before
    and after, to the best first.
    """
    spans = _spans(hits, known, tokens)
    found: list[Passage] = []
    for number, (hit, chunks) in enumerate(spans, 1):
        text, pieces = joined(chunks)
        found.append(
            Passage(
                number=number,
                chunk_id=hit.chunk_id,
                document_id=hit.document_id,
                filename=hit.filename,
                text=text,
                score=hit.score,
                location=chunks[0].location,
                parts=tuple(chunks[0].parts) if len(chunks) == 1 else (),
                pieces=pieces if len(chunks) > 1 else (),
            )
        )
    return found


def _spans(
    hits: Sequence[SearchHit], known: Mapping[UUID, Neighbourhood], tokens: int
) -> list[tuple[SearchHit, list[Chunk]]]:
    """For each passage its best hit and its chunks in the order of the text; a chunk is in one passage only."""
    left = tokens
    own: dict[tuple[UUID, int], tuple[SearchHit, Chunk]] = {}
    for hit in hits:
        here = known.get(hit.chunk_id) or _alone(hit)
        left -= estimate_tokens(here.chunk.text)
        if own and left < 0:
            break
        own[here.generation_id, here.chunk.ordinal] = hit, here.chunk
    owner = dict.fromkeys(own)
    spans: dict[tuple[UUID, int], list[Chunk]] = {}
    for place, (_, chunk) in own.items():
        if owner[place] is None:
            spans[place] = [chunk]
            owner[place] = place
            for step in (-1, 1):
                beside = place[0], place[1] + step
                while beside in own and owner[beside] is None:
                    owner[beside] = place
                    spans[place].append(own[beside][1])
                    beside = beside[0], beside[1] + step
    for place, chunks in spans.items():
        for chunk in _beside(known, own[place][0], chunks):
            cost = estimate_tokens(chunk.text)
            if (place[0], chunk.ordinal) not in owner and cost <= left:
                left -= cost
                owner[place[0], chunk.ordinal] = place
                chunks.append(chunk)
    return [(own[place][0], sorted(chunks, key=lambda chunk: chunk.ordinal)) for place, chunks in spans.items()]


def _alone(hit: SearchHit) -> Neighbourhood:
    """Of a hit whose chunk is no longer there."""
    chunk = Chunk(id=hit.chunk_id, ordinal=0, hash=b"", text_hash=b"", text=hit.text, tokens=0, location=hit.location)
    return Neighbourhood(generation_id=hit.chunk_id, chunk=chunk, around=())


def _beside(known: Mapping[UUID, Neighbourhood], hit: SearchHit, chunks: Sequence[Chunk]) -> Iterable[Chunk]:
    """What stands next to these chunks; what follows first, for a text is read on sooner than back."""
    around = {
        chunk.ordinal: chunk
        for inside in (hit.chunk_id, *(chunk.id for chunk in chunks))
        if inside in known
        for chunk in known[inside].around
    }
    inside = [chunk.ordinal for chunk in chunks]
    return [around[ordinal] for ordinal in (max(inside) + 1, min(inside) - 1) if ordinal in around]


def _repeated(before: str, after: str) -> int:
    """How many characters at the end of one text begin the other, too; 0 where it may be chance."""
    longest = min(len(before), len(after), REPEATED)
    return next(
        (length for length in range(longest, LEAST_REPEATED - 1, -1) if before.endswith(after[:length])),
        0,
    )
