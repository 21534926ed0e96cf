"""Reads what is there at the end: the database as its superuser, the object store, and what the API answers."""

from pathlib import Path
from typing import Any

import asyncpg

from internal.entities.search import Space
from internal.repositories.spaces import find_space
from tests.chaos.clients import Clients, Tenant
from tests.chaos.endpoint import DIMENSION
from tests.chaos.history import (
    Answer,
    AttemptRow,
    ContentRow,
    DocumentRow,
    GenerationRow,
    History,
    TaskRow,
)
from tests.chaos.plan import Script
from tests.chaos.stage import MODEL

TASKS = (
    "select tenant_id::text as tenant, id::text, kind, status, coalesce(document_id::text, '') as document,"
    " coalesce(content_id::text, '') as content, coalesce(error_code, '') as error, attempts, fence from tasks"
)
ATTEMPTS = (
    "select tenant_id::text as tenant, task_id::text as task, number, split_part(worker, ':', 2)::int as pid,"
    " extract(epoch from started_at)::float8 as started,"
    " coalesce(extract(epoch from finished_at), 0)::float8 as finished, coalesce(outcome, '') as outcome"
    " from task_attempts"
)
CONTENTS = (
    "select tenant_id::text as tenant, id::text, encode(sha256, 'hex') as sha256, blob_key as key,"
    " coalesce(generation_id::text, '') as generation from contents"
)
DOCUMENTS = (
    "select tenant_id::text as tenant, id::text, content_id::text as content,"
    " coalesce(generation_id::text, '') as generation from documents"
)
VERSIONS = "select distinct content_id::text from document_versions"
UNSETTLED = "select count(*) from batches where settled_at is null and (planned_at is not null or task_id is not null)"
"""Batches that don't end. One whose server was cut off while its files came has neither; nobody was told of it, and it
counts as over after an hour."""
GENERATIONS = (
    "select g.tenant_id::text as tenant, g.id::text, g.content_id::text as content, g.status, g.chunk_count as chunks,"
    " coalesce((select array_agg(encode(c.text_hash, 'hex') order by c.ordinal) from chunks c"
    " where c.tenant_id = g.tenant_id and c.generation_id = g.id), array[]::text[]) as texts,"
    " (select count(*) from {vectors} v where v.tenant_id = g.tenant_id and v.generation_id = g.id) as vectors,"
    " (select count(*) from chunk_terms t where t.tenant_id = g.tenant_id and t.generation_id = g.id) as terms"
    " from generations g"
)
GAPS = (
    "select coalesce(sum(last - n), 0)::int from"
    " (select max(position) as last, count(position) as n from outbox group by tenant_id) as tenants"
)


async def read_rows(history: History, superuser_dsn: str, blobs: Path) -> None:
    """Fills in what lies in the database and in the object store."""
    conn = await asyncpg.connect(superuser_dsn)
    try:
        space = await find_space(conn, Space(MODEL, "1", DIMENSION))
        assert space is not None
        history.tasks = [TaskRow(**row) for row in await conn.fetch(TASKS)]
        history.attempts = [AttemptRow(**row) for row in await conn.fetch(ATTEMPTS)]
        history.contents = [ContentRow(**row) for row in await conn.fetch(CONTENTS)]
        history.documents = [DocumentRow(**row) for row in await conn.fetch(DOCUMENTS)]
        history.versions = [row["content_id"] for row in await conn.fetch(VERSIONS)]
        history.unsettled = await conn.fetchval(UNSETTLED)
        rows = await conn.fetch(GENERATIONS.format(vectors=space.table))
        history.generations = [GenerationRow(**row) for row in rows]
        history.unpublished = await conn.fetchval("select count(*) from outbox where published_at is null")
        history.gaps = await conn.fetchval(GAPS)
        counted = await conn.fetch("select tenant_id::text as tenant, chunks from tenant_statistics")
        history.statistics = {row["tenant"]: row["chunks"] for row in counted}
    finally:
        await conn.close()
    history.objects = [str(file.relative_to(blobs)) for file in blobs.rglob("*") if file.is_file()]


async def ask(history: History, tenants: list[Tenant], clients: Clients, scripts: list[Script]) -> None:
    """Fills in what the API answers for each file: the document in the list, and a search for its mark."""
    nowhere = {"id": "", "status": "", "chunk_count": 0}
    for number, tenant in enumerate(tenants):
        listed = {item["sha256"]: item for item in await _list(tenant)}
        shas = {wanted.file: wanted.sha256 for wanted in history.wanted if wanted.tenant == tenant.id}
        for script in (each for whole in scripts if whole.tenant == number for each in whole.files()):
            item = listed.get(shas[script.file.name], nowhere)
            history.answers.append(
                Answer(
                    tenant=tenant.id,
                    file=script.file.name,
                    document=item["id"],
                    status=item["status"],
                    chunks=item["chunk_count"],
                    found=await clients.search(script) or {},
                )
            )


async def _list(tenant: Tenant) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        more = {"cursor": cursor} if cursor else {}
        page = (await tenant.http.get("/api/v1/documents", params={"limit": 100, **more})).raise_for_status().json()
        items += page["items"]
        cursor = page["next_cursor"]
        if not cursor:
            return items
