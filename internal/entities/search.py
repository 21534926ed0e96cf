"""What is searched for, and what is found."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec

from internal.entities.parsed import Location

TERM_SPACE = 1_000_000_000
"""Terms are numbers from 1 to this, the width of pgvector's widest sparse vector."""
MAX_VECTOR_DIM = 2000
"""pgvector's HNSW limit for `vector`; `halfvec` reaches MAX_INDEXED_DIM, and beyond that a search is exact."""
MAX_INDEXED_DIM = 4000


class Space(msgspec.Struct, frozen=True):
    """What a vector means: model, version and dimension. `id` is 0 until the space is in the database.

    `half` keeps its numbers in half precision though they would be indexed in single precision, too.
    """

    model: str
    version: str
    dim: int
    id: int = 0
    half: bool = False

    @property
    def storage(self) -> str:
        """The column's type."""
        return "halfvec" if self.half or self.dim > MAX_VECTOR_DIM else "vector"

    @property
    def table(self) -> str:
        """Name of the vector table."""
        return f"vectors_{self.id}"

    @property
    def function(self) -> str:
        """Name of the search function, which reads this space's table."""
        return f"search_v3_{self.id}"


class SearchMode(StrEnum):
    """Which lanes look: meaning, words, or both."""

    HYBRID = "hybrid"
    VECTOR = "vector"
    KEYWORD = "keyword"


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Narrows a search to documents that satisfy all of it; empty fields don't narrow.

    A list means any of its values, but all of `tags`. `collections` are names or ids. `created_after` (inclusive)
    and `created_before` bound the upload; `mine` keeps the asker's own documents.
    """

    source_types: list[str] = []
    document_ids: list[UUID] = []
    collections: list[str] = []
    tags: list[str] = []
    created_after: datetime | None = None
    created_before: datetime | None = None
    mine: bool = False


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One search; `k` counts passages, 1 to 100. `diversity` from 0 to 1 is how much a passage must add to others.

    `neighbours` is how many chunks before and after each passage are read with it.
    """

    query: str
    k: int = 10
    diversity: float = 0.0
    mode: SearchMode = SearchMode.HYBRID
    filters: Filters = Filters()
    neighbours: int = 0


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that was found. `score` orders the hits of one answer and means nothing across answers.

    `similarity` is the cosine to the query, `keyword` the BM25 score; None where the mode doesn't compute it.
    `passage` is the text with what stands around it, where that was asked for.
    """

    chunk_id: UUID
    document_id: UUID
    filename: str
    source_type: str
    text: str
    score: float
    location: Location
    similarity: float | None = None
    keyword: float | None = None
    passage: str | None = None


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """Hits, best first. `coverage` is the best BM25 score as a share of the most that the query could reach.

    Not `whole` is one that a part of the search had no share in, because it didn't answer.
    """

    items: list[SearchHit]
    took_ms: float
    cache: str = "miss"
    whole: bool = True
    coverage: float = 0.0


COVERED = 0.7
"""The share of words from which on nothing else decides: docqa_zh loses two of 321 hits at five otherwise."""


def share_of_words(coverage: float) -> float:
    """From 0 to 1: how much words tell of a query, by how much of it the best passage covers. 0 across languages.

    The search function counts words half as much as this beside the vectors.
    """
    return min(max((coverage - 0.05) / 0.15, 0.0), 1.0)


class ChunkTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The keyword side of a passage: term numbers, rising, with their counts; `length` is the sum of all counts."""

    chunk_id: UUID
    terms: list[int]
    counts: list[int]
    length: int


class QueryTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The keyword side of a query: term numbers and their counts."""

    terms: list[int]
    counts: list[int]
