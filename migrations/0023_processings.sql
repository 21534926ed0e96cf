-- A new way of reading beside the old one: tried on a share of the work, taken over, taken back.

-- One row, for all tenants: which version of the processing reads, which did before, and which is tried.
create table processing (
    single boolean primary key default true check (single),
    current text not null default '1',
    previous text,
    -- Since when `current` reads; what `previous` read is kept from then on for a while.
    promoted_at timestamptz,
    candidate text,
    share real not null default 0 check (share between 0 and 1),
    check (candidate is distinct from current)
);
insert into processing default values;

alter table processing enable row level security;
alter table processing force row level security;
create policy everyone on processing for select to dreamhub_worker using (true);
create policy migrator on processing to dreamhub_owner using (true) with check (true);
grant select on processing to dreamhub_worker;

-- `ready`: whole, read by a version that is tried. `kept`: replaced, but one may go back to it until `kept_until`.
alter table generations drop constraint generations_status_check;
alter table generations add constraint generations_status_check
    check (status in ('building', 'ready', 'published', 'kept', 'retired'));
alter table generations add column kept_until timestamptz check (kept_until is null or status = 'kept');
-- What a purge looks for; most generations are published.
create index generations_unpublished on generations (tenant_id, status) where status <> 'published';

-- What a version that is tried made of a content that another one had read. Figures, never text.
create table shadow_comparisons (
    tenant_id uuid not null references tenants (id),
    content_id uuid not null,
    version text not null,
    against text not null,
    compared_at timestamptz not null default now(),
    -- Of reading, in seconds.
    seconds double precision not null,
    -- Why the version that is tried could not read it; then the rest is null.
    error_code text,
    chunks_before integer,
    chunks_after integer,
    tokens_before bigint,
    tokens_after bigint,
    -- Shares of distinct sentences: of the old reading that the new one has too, of the new one that are new.
    text_kept double precision,
    text_added double precision,
    -- Share of the old passages that are passages of the new reading, word by word.
    chunks_same double precision,
    -- How near the old passages' vectors are to the nearest of the new reading: cosine, the mean and the lowest.
    vectors_mean double precision,
    vectors_least double precision,
    primary key (tenant_id, content_id, version),
    foreign key (tenant_id, content_id) references contents (tenant_id, id) on delete cascade
);

alter table shadow_comparisons enable row level security;
alter table shadow_comparisons force row level security;
create policy tenant on shadow_comparisons to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on shadow_comparisons to dreamhub_owner using (true) with check (true);
grant select, insert, update on shadow_comparisons to dreamhub_worker;

-- Reading once more is the operator's doing; it must stand apart in what a tenant used.
alter table usage_entries drop constraint usage_entries_purpose_check;
alter table usage_entries add constraint usage_entries_purpose_check
    check (purpose in ('chat', 'embedding', 'reprocessing'));
