-- The keyword side of search: terms of each passage, and how often each term occurs in a tenant's published passages.
-- Terms are hashes that the tenant's id goes into (internal/services/terms.py): no posting list is shared by tenants.
-- docs/adr/0003-keyword-search.md has the reasons and the figures.

create table chunk_terms (
    tenant_id uuid not null,
    chunk_id uuid not null,
    generation_id uuid not null,
    -- The different terms, for the index alone; read again only when a generation is counted.
    terms integer[] not null,
    -- The passage's side of BM25, so that a score is one inner product with the query's side.
    weights sparsevec(1000000000) not null,
    primary key (tenant_id, chunk_id),
    foreign key (tenant_id, chunk_id) references chunks (tenant_id, id) on delete cascade
);
-- A score reads `weights` of many rows and `terms` of none.
alter table chunk_terms alter column weights set storage main;
alter table chunk_terms alter column terms set storage external;
-- Statistics on hashes help no plan and cost seconds to take.
alter table chunk_terms alter column terms set statistics 0, alter column weights set statistics 0;
-- Without the pending list, which every tenant's search would have to read through.
create index chunk_terms_terms on chunk_terms using gin (terms) with (fastupdate = off);
-- `include`, lest the planner skip through all generations to find passages by id.
create index chunk_terms_generation on chunk_terms (tenant_id, generation_id) include (chunk_id);

create table term_frequencies (
    tenant_id uuid not null references tenants (id),
    term integer not null,
    chunks integer not null,
    primary key (tenant_id, term)
) with (fillfactor = 80);

create table tenant_statistics (
    tenant_id uuid primary key references tenants (id),
    chunks bigint not null default 0,
    -- Rises with whatever may change an answer: caches hold it in their keys.
    data_version bigint not null default 0
) with (fillfactor = 50);

-- Which generations are in the counts above, so that none is counted or taken away twice.
create table counted_generations (
    tenant_id uuid not null,
    generation_id uuid not null,
    chunks integer not null,
    primary key (tenant_id, generation_id),
    foreign key (tenant_id, generation_id) references generations (tenant_id, id) on delete cascade
);

alter table chunk_terms enable row level security;
alter table chunk_terms force row level security;
create policy tenant on chunk_terms to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on chunk_terms to dreamhub_owner using (true) with check (true);
create policy directory on chunk_terms for select to dreamhub_directory using (true);

alter table term_frequencies enable row level security;
alter table term_frequencies force row level security;
create policy tenant on term_frequencies to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on term_frequencies to dreamhub_owner using (true) with check (true);

alter table tenant_statistics enable row level security;
alter table tenant_statistics force row level security;
create policy tenant on tenant_statistics to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on tenant_statistics to dreamhub_owner using (true) with check (true);

alter table counted_generations enable row level security;
alter table counted_generations force row level security;
create policy tenant on counted_generations to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on counted_generations to dreamhub_owner using (true) with check (true);

grant select on chunk_terms, term_frequencies, tenant_statistics to dreamhub_app;
grant insert, update on tenant_statistics to dreamhub_app;
grant select, insert, delete on chunk_terms, counted_generations to dreamhub_worker;
grant select, insert, update, delete on term_frequencies to dreamhub_worker;
grant select, insert, update on tenant_statistics to dreamhub_worker;
grant select on chunk_terms to dreamhub_directory;

-- Passages that hold one of the terms, with their scores. `&&` isn't leakproof, so under the tenant's policy the index
-- would not be used; the definer's policy is constant and leaves it usable. What comes out are ids and scores of the
-- tenant that is set, and nothing when none is set. The comparison with the tenant is written so that only the GIN
-- index can serve the query: with many terms the planner thinks a scan of every tenant's rows cheaper, and is wrong.
create function keyword_candidates_v1(p_terms integer[], p_query sparsevec)
returns table (chunk_id uuid, generation_id uuid, score real)
language sql stable security definer rows 1000 set search_path = pg_catalog, public set enable_seqscan = off as $$
    select c.chunk_id, c.generation_id, (-(c.weights operator(public.<#>) p_query))::real
    from public.chunk_terms c
    where c.terms && p_terms and c.tenant_id is not distinct from public.app_tenant()
$$;
grant execute on function keyword_candidates_v1(integer[], sparsevec) to dreamhub_app;
grant create on schema public to dreamhub_directory;
alter function keyword_candidates_v1(integer[], sparsevec) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
