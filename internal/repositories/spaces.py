"""Embedding spaces: one partitioned vector table for each (model, version, dimension, precision)."""

import asyncpg
import msgspec

from internal.entities.search import MAX_INDEXED_DIM, Space
from internal.repositories.rows import sure
from internal.repositories.search_function import function_sql

PARTITIONS = 64


async def create_space(conn: asyncpg.Connection, space: Space) -> Space:
    """Registers the space and creates its table, partitions, indexes, policy and rights, once. Run by the owner."""
    async with conn.transaction():
        await conn.execute("lock table embedding_spaces in share row exclusive mode")
        found = await find_space(conn, space)
        if found is None:
            found = await _register(conn, space)
        for known in await conn.fetch("select id, model, version, dim, storage from embedding_spaces"):
            half = known["storage"] == "halfvec"
            await _ensure_function(conn, Space(known["model"], known["version"], known["dim"], known["id"], half))
        return found


async def _register(conn: asyncpg.Connection, space: Space) -> Space:
    number = sure(await conn.fetchval("select coalesce(max(id), 0)::int + 1 from embedding_spaces"))
    made = msgspec.structs.replace(space, id=number)
    await conn.execute(
        "insert into embedding_spaces (id, model, version, dim, storage) values ($1, $2, $3, $4, $5)",
        made.id,
        made.model,
        made.version,
        made.dim,
        made.storage,
    )
    await conn.execute(_table_sql(made))
    for part in range(PARTITIONS):
        await conn.execute(_partition_sql(made, part, maintain=conn.get_server_version().major >= 17))
    return made


async def _ensure_function(conn: asyncpg.Connection, space: Space) -> None:
    """Creates this version's search function unless it is there; it is never replaced."""
    if not await conn.fetchval("select true from pg_proc where proname = $1", space.function):
        for statement in function_sql(space):
            await conn.execute(statement)


async def find_space(conn: asyncpg.Connection, space: Space) -> Space | None:
    """The registered space with this model, version, dimension and precision, or None."""
    number = await conn.fetchval(
        "select id from embedding_spaces where model = $1 and version = $2 and dim = $3 and storage = $4",
        space.model,
        space.version,
        space.dim,
        space.storage,
    )
    return None if number is None else msgspec.structs.replace(space, id=number)


def _table_sql(space: Space) -> str:
    """Text stays out of this table: 1.2 kB a row makes an exact scan four times slower."""
    table = space.table
    # Beside the row a vector costs another look-up; only what fits into a page can stand in it.
    place = "plain" if space.dim <= MAX_INDEXED_DIM else "external"
    return f"""
        create table {table} (
            tenant_id uuid not null,
            chunk_id uuid not null,
            generation_id uuid not null,
            source_type text not null,
            embedding {space.storage}({space.dim}) not null,
            primary key (tenant_id, chunk_id)
        ) partition by hash (tenant_id);
        alter table {table} alter column embedding set storage {place};
        alter table {table} enable row level security;
        alter table {table} force row level security;
        -- The check is asked for each row that is written: as a subquery the setting is read once for all of them.
        create policy tenant on {table} to dreamhub_app, dreamhub_worker
            using (tenant_id = app_tenant()) with check (tenant_id = (select app_tenant()));
        create policy migrator on {table} to dreamhub_owner using (true) with check (true);
        grant select on {table} to dreamhub_app;
        grant select, insert, delete on {table} to dreamhub_worker;

        -- In place of a foreign key, whose look-up for each row takes a third of the time of a bulk write: vectors are
        -- written in the transaction that writes their chunks, and go with them.
        create function {table}_follow() returns trigger language plpgsql set search_path = pg_catalog, public as $$
        begin
            delete from {table} v using gone g where v.tenant_id = g.tenant_id and v.chunk_id = g.id;
            return null;
        end $$;
        create trigger {table}_follow after delete on chunks referencing old table as gone
            for each statement execute function {table}_follow();
    """


def _partition_sql(space: Space, part: int, *, maintain: bool) -> str:
    """No right but ANALYZE on a partition: the parent's policy doesn't cover a query that names a partition."""
    name = f"{space.table}_{part}"
    statements = [
        f"create table {name} partition of {space.table} for values with (modulus {PARTITIONS}, remainder {part})",
        f"alter table {name} enable row level security",
        f"alter table {name} force row level security",
        f"create policy migrator on {name} to dreamhub_owner using (true) with check (true)",
        # Nothing plans by the values of a vector; ANALYZE takes a tenth of the time without them.
        f"alter table {name} alter column embedding set statistics 0",
    ]
    if space.dim <= MAX_INDEXED_DIM:
        kind = "vector_cosine_ops" if space.storage == "vector" else "halfvec_cosine_ops"
        statements.append(f"create index {name}_hnsw on {name} using hnsw (embedding {kind})")
    if maintain:
        statements.append(f"grant maintain on {name} to dreamhub_worker")
    return ";\n".join(statements)
