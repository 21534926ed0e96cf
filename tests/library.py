"""Tenants with published passages, written as an ingest would write them; embeddings follow from the text."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec
import numpy as np
import numpy.typing as npt

from internal.entities.ids import new_id
from internal.entities.search import Filters, QueryTerms, SearchHit, Space
from internal.repositories.search import Found
from internal.repositories.store import Store, open_store
from internal.services.terms import TermAnalyser
from pkg.ctxutil import Context, Role
from tests.fakes.openai_server import vector_of
from tests.servers import Database

SPACE = Space("multilingual-e5-small", "2", 384, 1)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A document that was added, with its passages' ids."""

    document: UUID
    content: UUID
    generation: UUID
    chunks: list[UUID]


class Library:
    """Adds what a test wants to find. The owner's connection makes rows, the worker's store vectors and terms."""

    def __init__(self, owner: asyncpg.Connection, app: Store, worker: Store) -> None:
        self.owner = owner
        self.app = app
        self.worker = worker
        self.analyser = TermAnalyser()

    @classmethod
    async def open(cls, database: Database) -> "Library":
        return cls(
            await asyncpg.connect(database.owner),
            await open_store(database.app, pool_max=4),
            await open_store(database.worker, pool_max=8),
        )

    async def close(self) -> None:
        await self.owner.close()
        await self.app.close()
        await self.worker.close()

    async def tenant(self) -> Context:
        """A new tenant and its owner."""
        tenant = new_id()
        await self.owner.execute("insert into tenants (id, name) values ($1, 'library')", tenant)
        return await self.member(tenant)

    async def member(self, tenant: UUID) -> Context:
        """Another user of the tenant."""
        user = new_id()
        await self.owner.execute("insert into users (id, email) values ($1, $2)", user, f"{user}@example.com")
        await self.owner.execute(
            "insert into memberships (tenant_id, user_id, role) values ($1, $2, 'member')", tenant, user
        )
        return Context(tenant_id=tenant, user_id=user, role=Role.MEMBER, request_id="test", trace_id="0" * 32)

    async def add(
        self,
        ctx: Context,
        texts: Sequence[str],
        *,
        name: str = "file.txt",
        visibility: str = "tenant",
        tags: Sequence[str] = (),
        source_type: str = "document",
        collection: UUID | None = None,
        created_at: datetime | None = None,
        published: bool = True,
        space: Space = SPACE,
        embeddings: npt.NDArray[np.float32] | None = None,
    ) -> Entry:
        """A document of the context's user with one passage for each text."""
        entry = Entry(document=new_id(), content=new_id(), generation=new_id(), chunks=[new_id() for _ in texts])
        await self._rows(ctx, entry, texts, space)
        await self.owner.execute(
            "insert into documents (tenant_id, id, content_id, owner_id, generation_id, filename, visibility, tags,"
            " source_type, collection_id, created_at)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, coalesce($11, now()))",
            ctx.tenant_id,
            entry.document,
            entry.content,
            ctx.user_id,
            entry.generation if published else None,
            name,
            visibility,
            list(tags),
            source_type,
            collection,
            created_at,
        )
        vectors = (
            embeddings
            if embeddings is not None
            else np.array([embed(text, space.dim) for text in texts], np.float32).reshape(len(texts), space.dim)
        )
        bags = [self.analyser.passage(ctx.tenant_id, c, t) for c, t in zip(entry.chunks, texts, strict=True)]
        async with self.worker.tenant(ctx) as tx:
            await tx.vectors.add(space, entry.generation, source_type, entry.chunks, vectors)
            await tx.lexicon.add(entry.generation, bags)
            if published:
                await tx.lexicon.publish(entry.generation)
        return entry

    async def hold(self, ctx: Context, entry: Entry, *, name: str) -> UUID:
        """Another user's document on the same content."""
        document = new_id()
        await self.owner.execute(
            "insert into documents (tenant_id, id, content_id, owner_id, generation_id, filename, source_type)"
            " values ($1, $2, $3, $4, $5, $6, 'document')",
            ctx.tenant_id,
            document,
            entry.content,
            ctx.user_id,
            entry.generation,
            name,
        )
        return document

    async def search(
        self,
        ctx: Context,
        query: str,
        *,
        mode: str = "hybrid",
        k: int = 10,
        filters: Filters | None = None,
        space: Space = SPACE,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> list[SearchHit]:
        """What the application finds for the context's user."""
        return (await self.find(ctx, query, mode=mode, k=k, filters=filters, space=space, embedding=embedding)).hits

    async def find(
        self,
        ctx: Context,
        query: str,
        *,
        mode: str = "hybrid",
        k: int = 10,
        filters: Filters | None = None,
        space: Space = SPACE,
        embedding: npt.NDArray[np.float32] | None = None,
    ) -> Found:
        vector = embed(query, space.dim) if embedding is None else embedding
        terms: QueryTerms = self.analyser.query(ctx.tenant_id, query)
        return await self.app.search(
            ctx,
            space,
            embedding=None if mode == "keyword" else vector,
            terms=None if mode == "vector" else terms,
            filters=filters or Filters(),
            k=k,
        )

    async def _rows(self, ctx: Context, entry: Entry, texts: Sequence[str], space: Space) -> None:
        await self.owner.execute(
            "insert into contents (tenant_id, id, sha256, size, media_type, source_type, blob_key)"
            " values ($1, $2, sha256($3), 1, 'text/plain', 'document', $4)",
            ctx.tenant_id,
            entry.content,
            entry.content.bytes,
            str(entry.content),
        )
        await self.owner.execute(
            "insert into generations (tenant_id, id, content_id, version, space_id, status, chunk_count)"
            " values ($1, $2, $3, '1', $4, 'published', $5)",
            ctx.tenant_id,
            entry.generation,
            entry.content,
            space.id,
            len(texts),
        )
        await self.owner.execute(
            "insert into chunks (tenant_id, id, content_id, generation_id, ordinal, hash, text_hash, text, tokens,"
            " page)"
            " select $1, c.id, $2, $3, c.n, sha256(c.id::text::bytea), c.hash, c.text, 1, 1"
            " from unnest($4::uuid[], $5::text[], $6::bytea[]) with ordinality as c (id, text, hash, n)",
            ctx.tenant_id,
            entry.content,
            entry.generation,
            entry.chunks,
            list(texts),
            [text_hash(text) for text in texts],
        )


def embed(text: str, dim: int = SPACE.dim) -> npt.NDArray[np.float32]:
    """A unit vector that texts with common words share something of; the fake endpoint's."""
    return vector_of(text, dim)


def text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
