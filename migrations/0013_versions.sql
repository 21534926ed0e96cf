-- What a document's content was, is, and will be once it has been read.

-- The version that answers. Its content is the document's.
alter table documents add column version integer not null default 1 check (version > 0);
-- A document that was replaced may come to hold the same bytes as another one of its owner: to refuse that would tell
-- whoever replaced it what the owner holds.
alter table documents drop constraint documents_tenant_id_owner_id_content_id_key;
create unique index documents_own_content on documents (tenant_id, owner_id, content_id) where version = 1;
create index documents_owner_content on documents (tenant_id, owner_id, content_id);

-- Begins with the first replacement; before that a document is its own only version.
create table document_versions (
    tenant_id uuid not null,
    document_id uuid not null,
    number integer not null check (number > 0),
    content_id uuid not null,
    filename text not null check (length(filename) between 1 and 500),
    created_by uuid not null,
    created_at timestamptz not null,
    task_id uuid,
    primary key (tenant_id, document_id, number),
    foreign key (tenant_id, document_id) references documents (tenant_id, id) on delete cascade,
    foreign key (tenant_id, content_id) references contents (tenant_id, id)
);
create index document_versions_content on document_versions (tenant_id, content_id);

alter table document_versions enable row level security;
alter table document_versions force row level security;
create policy reader on document_versions to dreamhub_app
    using (tenant_id = app_tenant() and exists (
        select 1 from documents d
        where d.tenant_id = document_versions.tenant_id and d.id = document_versions.document_id));
create policy tenant on document_versions for select to dreamhub_worker using (tenant_id = app_tenant());
create policy migrator on document_versions to dreamhub_owner using (true) with check (true);

grant select, insert, delete on document_versions to dreamhub_app;
grant select on document_versions to dreamhub_worker;
