-- What was uploaded (contents), who holds it (documents), what was read from it (generations, chunks).

create table embedding_spaces (
    id smallint primary key,
    model text not null,
    version text not null,
    dim integer not null check (dim between 8 and 16000),
    storage text not null check (storage in ('vector', 'halfvec')),
    created_at timestamptz not null default now(),
    unique (model, version, dim)
);

create table collections (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    name text not null check (length(name) between 1 and 200),
    created_at timestamptz not null default now(),
    primary key (tenant_id, id),
    unique (tenant_id, name)
);

create table contents (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    sha256 bytea not null check (length(sha256) = 32),
    size bigint not null check (size > 0),
    media_type text not null,
    source_type text not null check (source_type in ('document', 'photo', 'audio', 'video', 'web', 'email', 'calendar')),
    blob_key text not null,
    generation_id uuid,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    purged_at timestamptz,
    primary key (tenant_id, id)
);
-- A content that is being purged no longer answers for its bytes: the same file uploaded meanwhile is a new content.
create unique index contents_sha256 on contents (tenant_id, sha256) where purged_at is null;

create table generations (
    tenant_id uuid not null,
    id uuid not null,
    content_id uuid not null,
    version text not null,
    space_id smallint not null references embedding_spaces (id),
    status text not null default 'building' check (status in ('building', 'published', 'retired')),
    chunk_count integer not null default 0,
    created_at timestamptz not null default now(),
    published_at timestamptz,
    primary key (tenant_id, id),
    unique (tenant_id, content_id, version, space_id),
    foreign key (tenant_id, content_id) references contents (tenant_id, id) on delete cascade
);
alter table contents add foreign key (tenant_id, generation_id) references generations (tenant_id, id)
    deferrable initially deferred;

create table documents (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    content_id uuid not null,
    owner_id uuid not null,
    -- The content's published generation, repeated here so that one index decides what a search may show.
    generation_id uuid,
    filename text not null check (length(filename) between 1 and 500),
    visibility text not null default 'tenant' check (visibility in ('tenant', 'private')),
    collection_id uuid,
    tags text[] not null default '{}',
    metadata jsonb not null default '{}',
    source_type text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, id),
    unique (tenant_id, owner_id, content_id),
    foreign key (tenant_id, content_id) references contents (tenant_id, id),
    foreign key (tenant_id, collection_id) references collections (tenant_id, id) on delete set null (collection_id)
);
create index documents_content on documents (tenant_id, content_id);
create index documents_generation on documents (tenant_id, generation_id);
create index documents_newest on documents (tenant_id, created_at desc, id desc);
create index documents_collection on documents (tenant_id, collection_id) where collection_id is not null;

create table chunks (
    tenant_id uuid not null,
    id uuid not null,
    content_id uuid not null,
    generation_id uuid not null,
    ordinal integer not null,
    hash bytea not null check (length(hash) = 32),
    -- Hash of what was embedded: the same text of another file finds its vector here instead of computing it again.
    text_hash bytea not null check (length(text_hash) = 32),
    text text not null,
    tokens integer not null,
    page integer,
    heading text,
    start_ms integer,
    end_ms integer,
    box real[],
    primary key (tenant_id, id),
    unique (tenant_id, hash),
    foreign key (tenant_id, generation_id) references generations (tenant_id, id) on delete cascade
);
create index chunks_generation on chunks (tenant_id, generation_id, ordinal);
create index chunks_text_hash on chunks (tenant_id, text_hash);

alter table embedding_spaces enable row level security;
alter table embedding_spaces force row level security;
create policy everyone on embedding_spaces for select to dreamhub_app, dreamhub_worker, dreamhub_relay using (true);
create policy migrator on embedding_spaces to dreamhub_owner using (true) with check (true);

alter table collections enable row level security;
alter table collections force row level security;
create policy tenant on collections to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on collections to dreamhub_owner using (true) with check (true);

alter table contents enable row level security;
alter table contents force row level security;
create policy tenant on contents to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on contents to dreamhub_owner using (true) with check (true);

alter table generations enable row level security;
alter table generations force row level security;
create policy tenant on generations to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on generations to dreamhub_owner using (true) with check (true);

-- A private document exists for its owner alone; the worker, which acts for nobody, sees its tenant's.
alter table documents enable row level security;
alter table documents force row level security;
create policy reader on documents to dreamhub_app
    using (tenant_id = app_tenant() and (visibility = 'tenant' or owner_id = app_user()))
    with check (tenant_id = app_tenant() and (visibility = 'tenant' or owner_id = app_user()));
create policy tenant on documents to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on documents to dreamhub_owner using (true) with check (true);

-- Text is visible through a published document that the reader may see.
alter table chunks enable row level security;
alter table chunks force row level security;
create policy reader on chunks for select to dreamhub_app
    using (tenant_id = app_tenant() and exists (
        select 1 from documents d where d.tenant_id = chunks.tenant_id and d.generation_id = chunks.generation_id));
create policy tenant on chunks to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on chunks to dreamhub_owner using (true) with check (true);

grant select on embedding_spaces to dreamhub_app, dreamhub_worker, dreamhub_relay;
grant select, insert, update, delete on collections to dreamhub_app;
grant select on collections to dreamhub_worker;
grant select, insert on contents to dreamhub_app;
grant update (purged_at) on contents to dreamhub_app;
grant select, update, delete on contents to dreamhub_worker;
grant select on generations to dreamhub_app;
grant select, insert, update, delete on generations to dreamhub_worker;
grant select, insert, update, delete on documents to dreamhub_app;
grant select, update, delete on documents to dreamhub_worker;
grant select on chunks to dreamhub_app;
grant select, insert, delete on chunks to dreamhub_worker;
