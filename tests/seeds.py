"""One row of everything for each of two tenants, written past row-level security."""

import secrets
from uuid import UUID

import asyncpg
import msgspec

from internal.entities.ids import new_id


class Seeded(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant with an owner, a member, a shared document (of the owner) and a private one (of the owner)."""

    tenant: UUID
    owner: UUID
    member: UUID
    shared: UUID
    private: UUID
    canary: str


async def seed(conn: asyncpg.Connection) -> Seeded:
    """Every table of the schema gets at least one row of the new tenant; `canary` stands in every text."""
    canary = f"canary-{secrets.token_hex(8)}"
    tenant, owner, member = new_id(), new_id(), new_id()
    await conn.execute("insert into tenants (id, name) values ($1, $2)", tenant, canary)
    for user, role in ((owner, "owner"), (member, "member")):
        await conn.execute("insert into users (id, email) values ($1, $2)", user, f"{user}@{canary}.example")
        await conn.execute("insert into memberships (tenant_id, user_id, role) values ($1, $2, $3)", tenant, user, role)
    await _seed_identity(conn, tenant, owner, canary)
    collection = new_id()
    await conn.execute("insert into collections (tenant_id, id, name) values ($1, $2, $3)", tenant, collection, canary)
    shared = await _seed_document(conn, tenant, owner, collection, "tenant", canary)
    private = await _seed_document(conn, tenant, owner, collection, "private", canary)
    await _seed_ledger(conn, tenant, owner, shared, canary)
    await _seed_ledger(conn, tenant, owner, private, canary)
    await conn.execute("insert into outbox_positions (tenant_id, position) values ($1, 2)", tenant)
    await conn.execute("insert into object_sweeps (tenant_id, removed) values ($1, 1)", tenant)
    await conn.execute(
        "insert into alerts (tenant_id, name, severity) values ($1, 'tenant.near_cap', 'warning')", tenant
    )
    await conn.execute("insert into tenant_statistics (tenant_id, chunks) values ($1, 2)", tenant)
    await conn.execute("insert into term_frequencies (tenant_id, term, chunks) values ($1, 7, 2)", tenant)
    await _seed_conversation(conn, tenant, owner, canary)
    await _seed_upload(conn, tenant, owner, canary)
    await conn.execute(
        "insert into usage_entries (tenant_id, id, user_id, purpose, model, source_id, prompt_tokens,"
        " completion_tokens, cost_usd, estimated) values ($1, $2, $3, 'chat', $4, $2, 1, 1, 0, false)",
        tenant,
        new_id(),
        owner,
        canary,
    )
    await _seed_batch(conn, tenant, owner, shared, canary)
    return Seeded(tenant=tenant, owner=owner, member=member, shared=shared, private=private, canary=canary)


async def _seed_identity(conn: asyncpg.Connection, tenant: UUID, owner: UUID, canary: str) -> None:
    await conn.execute(
        "insert into api_keys (tenant_id, id, user_id, name, role, hash, prefix)"
        " values ($1, $2, $3, $4, 'owner', $5, 'dh_')",
        tenant,
        new_id(),
        owner,
        canary,
        secrets.token_bytes(32),
    )
    await conn.execute(
        "insert into refresh_tokens (tenant_id, id, user_id, family, hash, expires_at)"
        " values ($1, $2, $3, $2, $4, now() + interval '1 day')",
        tenant,
        new_id(),
        owner,
        secrets.token_bytes(32),
    )
    await conn.execute(
        "insert into idempotency_keys (tenant_id, user_id, key, request_hash) values ($1, $2, $3, $4)",
        tenant,
        owner,
        canary,
        secrets.token_bytes(32),
    )


async def _seed_document(
    conn: asyncpg.Connection, tenant: UUID, owner: UUID, collection: UUID, visibility: str, canary: str
) -> UUID:
    content, generation, chunk, document = (new_id() for _ in range(4))
    text = f"{canary} {visibility}"
    await conn.execute(
        "insert into contents (tenant_id, id, sha256, size, media_type, source_type, blob_key)"
        " values ($1, $2, $3, 1, 'text/plain', 'document', $4)",
        tenant,
        content,
        secrets.token_bytes(32),
        f"{tenant}/{content}",
    )
    await conn.execute(
        "insert into generations (tenant_id, id, content_id, version, space_id, status, chunk_count)"
        " values ($1, $2, $3, '1', 1, 'published', 1)",
        tenant,
        generation,
        content,
    )
    await conn.execute(
        "update contents set generation_id = $3 where tenant_id = $1 and id = $2", tenant, content, generation
    )
    await conn.execute(
        "insert into documents (tenant_id, id, content_id, owner_id, generation_id, filename, visibility,"
        " collection_id, source_type) values ($1, $2, $3, $4, $5, $6, $7, $8, 'document')",
        tenant,
        document,
        content,
        owner,
        generation,
        f"{text}.txt",
        visibility,
        collection,
    )
    await conn.execute(
        "insert into document_versions (tenant_id, document_id, number, content_id, filename, created_by, created_at)"
        " values ($1, $2, 1, $3, $4, $5, now())",
        tenant,
        document,
        content,
        f"{text}.txt",
        owner,
    )
    await conn.execute(
        "insert into chunks (tenant_id, id, content_id, generation_id, ordinal, hash, text_hash, text, tokens,"
        " parts) values ($1, $2, $3, $4, 0, $5, $5, $6, 2, '[[0, {\"page\": 1}]]')",
        tenant,
        chunk,
        content,
        generation,
        secrets.token_bytes(32),
        text,
    )
    await conn.execute(
        "insert into vectors_1 (tenant_id, chunk_id, generation_id, source_type, embedding)"
        " values ($1, $2, $3, 'document', array_fill(0.05::real, array[384])::vector)",
        tenant,
        chunk,
        generation,
    )
    await conn.execute("insert into token_codes (tenant_id, chunk_id, codes) values ($1, $2, '\\x00')", tenant, chunk)
    await conn.execute(
        "insert into chunk_terms (tenant_id, chunk_id, generation_id, terms, weights)"
        " values ($1, $2, $3, array[7], '{7:1}/1000000000')",
        tenant,
        chunk,
        generation,
    )
    await conn.execute(
        "insert into counted_generations (tenant_id, generation_id, chunks) values ($1, $2, 1)", tenant, generation
    )
    await conn.execute(
        "insert into shadow_comparisons (tenant_id, content_id, version, against, seconds)"
        " values ($1, $2, '2', '1', 1)",
        tenant,
        content,
    )
    return document


async def _seed_ledger(conn: asyncpg.Connection, tenant: UUID, owner: UUID, document: UUID, canary: str) -> None:
    task = new_id()
    await conn.execute(
        "insert into tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, document_id,"
        " max_retries, error_message) values ($1, $2, 'ingest_content', 1, 'default', $3, 'owner', '', '', $4, 5, $5)",
        tenant,
        task,
        owner,
        document,
        canary,
    )
    await conn.execute(
        "insert into task_attempts (tenant_id, task_id, number, worker) values ($1, $2, 1, $3)", tenant, task, canary
    )
    await conn.execute(
        "insert into outbox (tenant_id, id, kind, payload, position) values ($1, $2, $3, jsonb_build_object("
        "'task_id', $4::uuid, 'document_id', $5::uuid), 1 + (select count(*) from outbox where tenant_id = $1))",
        tenant,
        new_id(),
        canary,
        task,
        document,
    )


async def _seed_conversation(conn: asyncpg.Connection, tenant: UUID, owner: UUID, canary: str) -> None:
    conversation, message = new_id(), new_id()
    await conn.execute(
        "insert into conversations (tenant_id, id, user_id, title) values ($1, $2, $3, $4)",
        tenant,
        conversation,
        owner,
        canary,
    )
    await conn.execute(
        "insert into messages (tenant_id, id, conversation_id, role, content) values ($1, $2, $3, 'user', $4)",
        tenant,
        message,
        conversation,
        canary,
    )
    await conn.execute(
        "insert into messages (tenant_id, id, conversation_id, parent_id, role, content)"
        " values ($1, $2, $3, $4, 'user', $5)",
        tenant,
        new_id(),
        conversation,
        message,
        canary,
    )
    await conn.execute(
        "insert into message_feedback (tenant_id, message_id, user_id, rating) values ($1, $2, $3, 1)",
        tenant,
        message,
        owner,
    )
    await conn.execute(
        "insert into conversation_memories (tenant_id, conversation_id, user_id, lines, requested_at)"
        " values ($1, $2, $3, jsonb_build_array(jsonb_build_object('text', $4::text)), now())",
        tenant,
        conversation,
        owner,
        canary,
    )
    for kind in ("fact", "turn"):
        await conn.execute(
            "insert into memories (tenant_id, id, user_id, conversation_id, kind, text, importance, source_id, terms,"
            " vector, space, created_at) values ($1, $2, $3, $4, $7, $5, 1, $6, '{1}', '', 'none', now())",
            tenant,
            new_id(),
            owner,
            conversation,
            canary,
            message,
            kind,
        )
    await conn.execute(
        "insert into memory_settings (tenant_id, user_id, across_conversations) values ($1, $2, true)", tenant, owner
    )


async def _seed_upload(conn: asyncpg.Connection, tenant: UUID, owner: UUID, canary: str) -> None:
    upload = new_id()
    await conn.execute(
        "insert into uploads (tenant_id, id, user_id, length, metadata, request, expires_at, holder, held_until)"
        " values ($1, $2, $3, 2, $4, '{}', now() + interval '1 day', $2, now() - interval '1 hour')",
        tenant,
        upload,
        owner,
        canary,
    )
    await conn.execute(
        "insert into upload_parts (tenant_id, id, upload_id, start) values ($1, $2, $3, 0)", tenant, new_id(), upload
    )


async def _seed_batch(conn: asyncpg.Connection, tenant: UUID, owner: UUID, document: UUID, canary: str) -> None:
    batch = new_id()
    await conn.execute(
        "insert into batches (tenant_id, id, user_id, kind, request, task_id, stored, error_message, settled_at)"
        " values ($1, $2, $3, 'archive', '{}', $4, true, $5, now() - interval '1 year')",
        tenant,
        batch,
        owner,
        new_id(),
        canary,
    )
    await conn.execute(
        "insert into batch_items (tenant_id, batch_id, ordinal, filename, handled, document_id, task_id)"
        " values ($1, $2, 0, $3, true, $4, $5), ($1, $2, 1, $3, false, $4, null)",
        tenant,
        batch,
        canary,
        document,
        new_id(),
    )
