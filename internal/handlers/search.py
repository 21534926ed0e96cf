"""/api/v1/search"""

from typing import Annotated, Literal
from uuid import UUID

import msgspec
from litestar import post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from internal.entities.parsed import Location
from internal.entities.search import Filters, SearchHit, SearchMode, SearchRequest
from internal.handlers.auth import access
from internal.handlers.documents import SourceType
from internal.handlers.requests import Moment, utc
from internal.services.search import SearchService
from pkg.ctxutil import Context, Role

MAX_QUERY = 2000
MAX_HITS = 100
MAX_NAMED = 1000
MAX_NEIGHBOURS = 3

Text = Annotated[str, msgspec.Meta(max_length=200)]
Ids = Annotated[list[UUID], msgspec.Meta(max_length=MAX_NAMED)]
Names = Annotated[list[Text], msgspec.Meta(max_length=100)]


class FiltersIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Narrows a search: any of the source types, documents and collections, all of the tags."""

    source_types: Annotated[list[SourceType], msgspec.Meta(max_length=20)] = msgspec.field(default_factory=list)
    document_ids: Ids = msgspec.field(default_factory=list)
    collections: Names = msgspec.field(default_factory=list)
    tags: Names = msgspec.field(default_factory=list)
    created_after: Moment | None = None
    created_before: Moment | None = None
    mine: bool = False


class SearchIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to look for; `k` is how many passages at most.

    With `diversity` above 0, passages that say what those before them say come later; at 1 nothing else counts. With
    `neighbours`, each is told once more as `passage`, with as many before and after it in one text.
    """

    query: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_QUERY)]
    k: Annotated[int, msgspec.Meta(ge=1, le=MAX_HITS)] = 10
    mode: SearchMode = SearchMode.HYBRID
    diversity: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    filters: FiltersIn = msgspec.field(default_factory=FiltersIn)
    neighbours: Annotated[int, msgspec.Meta(ge=0, le=MAX_NEIGHBOURS)] = 0


class HitOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """A passage that was found. `score` orders this answer and means nothing beyond it."""

    chunk_id: UUID
    document_id: UUID
    filename: str
    source_type: str
    text: str
    score: float
    location: Location
    passage: str | None = None


class SearchOut(msgspec.Struct, frozen=True):
    """Passages, best first."""

    items: list[HitOut]
    took_ms: float
    cache: Literal["hit", "miss"]


@post("/api/v1/search", opt=access(Role.VIEWER), status_code=200)
async def search(
    ctx: NamedDependency[Context], searches: NamedDependency[SearchService], data: JSONBody[SearchIn]
) -> SearchOut:
    """Finds passages by meaning, by words, or by both."""
    wanted = data.filters
    filters = Filters(
        source_types=list(wanted.source_types),
        document_ids=wanted.document_ids,
        collections=wanted.collections,
        tags=wanted.tags,
        created_after=utc(wanted.created_after, "filters.created_after"),
        created_before=utc(wanted.created_before, "filters.created_before"),
        mine=wanted.mine,
    )
    request = SearchRequest(
        query=data.query,
        k=data.k,
        mode=data.mode,
        diversity=data.diversity,
        filters=filters,
        neighbours=data.neighbours,
    )
    found = await searches.search(ctx, request)
    return SearchOut([_hit_out(item) for item in found.items], found.took_ms, "hit" if found.cache == "hit" else "miss")


def _hit_out(hit: SearchHit) -> HitOut:
    return HitOut(
        hit.chunk_id, hit.document_id, hit.filename, hit.source_type, hit.text, hit.score, hit.location, hit.passage
    )
