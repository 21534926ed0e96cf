-- What each tenant's model calls took: written in the transaction that keeps their result, never changed.

create table usage_entries (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    created_at timestamptz not null default now(),
    user_id uuid not null,
    purpose text not null check (purpose in ('chat', 'embedding')),
    model text not null,
    -- The task or conversation that it was for; it may be gone, what it cost isn't.
    source_id uuid not null,
    prompt_tokens bigint not null check (prompt_tokens >= 0),
    completion_tokens bigint not null check (completion_tokens >= 0),
    cost_usd numeric(20, 10) not null check (cost_usd >= 0),
    -- The endpoint didn't tell the tokens; they were counted approximately.
    estimated boolean not null,
    primary key (tenant_id, id)
);
create index usage_entries_newest on usage_entries (tenant_id, created_at);

alter table usage_entries enable row level security;
alter table usage_entries force row level security;
create policy tenant on usage_entries to dreamhub_app
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant() and user_id = app_user());
create policy tenant_worker on usage_entries to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on usage_entries to dreamhub_owner using (true) with check (true);

grant select, insert on usage_entries to dreamhub_app, dreamhub_worker;
