"""The identity of a passage."""

import msgspec

from internal.entities.documents import Content, Generation
from internal.entities.ids import new_id
from internal.entities.parsed import Location
from internal.services import chunking
from internal.services.ingest import passage_of

CONTENT = Content(
    id=new_id(),
    sha256=bytes(32),
    size=1,
    media_type="text/plain",
    source_type="document",
    blob_key="",
    generation_id=None,
    metadata={},
)
GENERATION = Generation(id=new_id(), content_id=CONTENT.id, version="1", space_id=1, status="building", chunk_count=0)
PIECE = chunking.Chunk(text="text", tokens=1, location=Location(), ordinal=0)


def test_the_same_chunk_of_a_generation_is_the_same_whoever_reads_it() -> None:
    assert passage_of(CONTENT, GENERATION, PIECE) == passage_of(CONTENT, GENERATION, PIECE)


def test_bytes_that_came_again_before_the_earlier_ones_were_purged_have_chunks_of_their_own() -> None:
    again = msgspec.structs.replace(CONTENT, id=new_id())
    generation = msgspec.structs.replace(GENERATION, id=new_id(), content_id=again.id)
    first, second = passage_of(CONTENT, GENERATION, PIECE).chunk, passage_of(again, generation, PIECE).chunk
    assert first.hash != second.hash
    assert first.text_hash == second.text_hash
