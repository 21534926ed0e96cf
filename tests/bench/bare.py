"""The limit of a search over HTTP: one Litestar handler that calls the product's search and does nothing else.

`python -m tests.bench.bare TENANT USER PORT`, with the product's DB__DSN and MODELS__URL. It decodes the same request
and answers the same fields as /api/v1/search, without authentication, limits, log lines, metrics and headers.
"""

import argparse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

import uvicorn
from litestar import Litestar, post
from litestar.params import JSONBody

from internal.entities.search import SearchRequest
from internal.handlers.search import HitOut, SearchIn, SearchOut
from internal.providers.embeddings import LocalEmbeddings
from internal.repositories.store import open_store
from internal.services.embedder import Embedder
from internal.services.search import SearchService
from internal.services.terms import TermAnalyser
from internal.wiring import space_of
from pkg import config, logger
from pkg.ctxutil import Context, Role


def create_app(settings: config.Settings, ctx: Context) -> Litestar:
    """Pool, model and search service are opened as in the product."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        store = await open_store(
            settings.db.dsn.get_secret_value(), pool_min=settings.db.pool_min, pool_max=settings.db.pool_max
        )
        space = await store.find_space(space_of(settings))
        assert space is not None
        provider = LocalEmbeddings(settings.models.url, space)
        app.state.searches = SearchService(store, Embedder(provider), TermAnalyser())
        yield
        await provider.close()
        await store.close()

    @post("/api/v1/search", status_code=200)
    async def search(data: JSONBody[SearchIn]) -> SearchOut:
        found = await app.state.searches.search(ctx, SearchRequest(query=data.query, k=data.k, mode=data.mode))
        return SearchOut(
            [
                HitOut(hit.chunk_id, hit.document_id, hit.filename, hit.source_type, hit.text, hit.score, hit.location)
                for hit in found.items
            ],
            found.took_ms,
            "miss",
        )

    app = Litestar([search], lifespan=[lifespan], openapi_config=None, logging_config=None)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tenant", type=UUID)
    parser.add_argument("user", type=UUID)
    parser.add_argument("port", type=int)
    flags = parser.parse_args()
    ctx = Context(tenant_id=flags.tenant, user_id=flags.user, role=Role.OWNER, request_id="bench", trace_id="0" * 32)
    logger.configure(log_format="json", level="warning", process="bare")
    uvicorn.run(
        create_app(config.load(), ctx), port=flags.port, http="httptools", ws="none", log_config=None, access_log=False
    )


if __name__ == "__main__":
    main()
