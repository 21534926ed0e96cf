-- The ledger: tasks with leases and fencing, their attempts, and the outbox of events.

create table tasks (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    kind text not null,
    version integer not null,
    queue text not null check (queue in ('high_priority', 'default', 'batch', 'learning')),
    priority smallint not null default 0,
    status text not null default 'queued'
        check (status in ('queued', 'running', 'succeeded', 'failed', 'dead', 'cancelled')),
    stage text not null default 'queued',
    progress real not null default 0 check (progress between 0 and 1),
    user_id uuid not null,
    role text not null,
    request_id text not null,
    trace_id text not null,
    document_id uuid,
    content_id uuid,
    payload jsonb not null default '{}',
    result jsonb,
    error_code text,
    error_message text,
    attempts integer not null default 0,
    retry_count integer not null default 0,
    max_retries integer not null,
    lost_leases integer not null default 0,
    fence bigint not null default 0,
    worker text,
    lease_until timestamptz,
    due_at timestamptz not null default now(),
    -- Set while the task lies in Redis or runs; `dispatches` makes each wake-up's job id a new one.
    dispatched_at timestamptz,
    dispatches integer not null default 0,
    cancel_requested_at timestamptz,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz,
    primary key (tenant_id, id),
    check ((status = 'running') = (lease_until is not null))
);
create index tasks_by_id on tasks (id);
create index tasks_waiting on tasks (queue, tenant_id, priority desc, due_at, id)
    where status = 'queued' and dispatched_at is null;
create index tasks_dispatched on tasks (queue, tenant_id, dispatched_at)
    where status = 'queued' and dispatched_at is not null;
create index tasks_running on tasks (queue, tenant_id, lease_until) where status = 'running';
create index tasks_document on tasks (tenant_id, document_id, created_at desc);
create index tasks_unfinished on tasks (tenant_id, queue) where status in ('queued', 'running');

create table task_attempts (
    tenant_id uuid not null,
    task_id uuid not null,
    number integer not null,
    worker text not null,
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    outcome text check (outcome in ('succeeded', 'failed', 'retried', 'held', 'released', 'lost', 'cancelled')),
    error_code text,
    error_message text,
    primary key (tenant_id, task_id, number),
    foreign key (tenant_id, task_id) references tasks (tenant_id, id) on delete cascade
);

create table outbox (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    kind text not null,
    payload jsonb not null default '{}',
    position bigint,
    created_at timestamptz not null default now(),
    published_at timestamptz,
    primary key (tenant_id, id)
);
create index outbox_unpublished on outbox (created_at) where published_at is null;
create unique index outbox_position on outbox (tenant_id, position) where position is not null;

create table outbox_positions (
    tenant_id uuid primary key references tenants (id),
    position bigint not null default 0
);

alter table tasks enable row level security;
alter table tasks force row level security;
-- A task is its user's; others of the tenant see it through a document that they may see.
create policy reader on tasks to dreamhub_app
    using (tenant_id = app_tenant() and (user_id = app_user() or exists (
        select 1 from documents d where d.tenant_id = tasks.tenant_id and d.id = tasks.document_id)))
    with check (tenant_id = app_tenant());
create policy tenant on tasks to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on tasks to dreamhub_owner using (true) with check (true);
create policy directory on tasks to dreamhub_directory using (true) with check (true);

alter table task_attempts enable row level security;
alter table task_attempts force row level security;
create policy reader on task_attempts for select to dreamhub_app
    using (tenant_id = app_tenant() and exists (
        select 1 from tasks t where t.tenant_id = task_attempts.tenant_id and t.id = task_attempts.task_id));
create policy tenant on task_attempts to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on task_attempts to dreamhub_owner using (true) with check (true);
create policy directory on task_attempts to dreamhub_directory using (true) with check (true);

alter table outbox enable row level security;
alter table outbox force row level security;
create policy tenant on outbox to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on outbox to dreamhub_owner using (true) with check (true);
create policy directory on outbox to dreamhub_directory using (true) with check (true);

alter table outbox_positions enable row level security;
alter table outbox_positions force row level security;
create policy migrator on outbox_positions to dreamhub_owner using (true) with check (true);
create policy directory on outbox_positions to dreamhub_directory using (true) with check (true);

grant select, insert, update on tasks to dreamhub_app;
grant select, insert, update on tasks to dreamhub_worker;
grant select on task_attempts to dreamhub_app;
grant select, insert, update on task_attempts to dreamhub_worker;
grant select, insert on outbox to dreamhub_app, dreamhub_worker;
grant select, update on tasks to dreamhub_directory;
grant select, insert, update on task_attempts to dreamhub_directory;
grant select, insert, update, delete on outbox to dreamhub_directory;
grant select, insert, update on outbox_positions to dreamhub_directory;
