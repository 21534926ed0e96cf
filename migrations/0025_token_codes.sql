-- What late interaction compares: a bit for each dimension of each rarer token of a passage, 2 to 15 kB of them. Apart
-- from text and vectors, because only searches whose words find little read them.
create table token_codes (
    tenant_id uuid not null,
    chunk_id uuid not null,
    codes bytea not null,
    primary key (tenant_id, chunk_id)
);
-- Random bits: compressing them costs time and saves nothing.
alter table token_codes alter column codes set storage external;

alter table token_codes enable row level security;
alter table token_codes force row level security;
create policy tenant on token_codes to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = (select app_tenant()));
create policy migrator on token_codes to dreamhub_owner using (true) with check (true);
grant select on token_codes to dreamhub_app;
grant select, insert, delete on token_codes to dreamhub_worker;

-- In place of a foreign key, as for vectors: written in the transaction that writes the chunks, and gone with them.
create function token_codes_follow() returns trigger language plpgsql set search_path = pg_catalog, public as $$
begin
    delete from token_codes t using gone g where t.tenant_id = g.tenant_id and t.chunk_id = g.id;
    return null;
end $$;
create trigger token_codes_follow after delete on chunks referencing old table as gone
    for each statement execute function token_codes_follow();
