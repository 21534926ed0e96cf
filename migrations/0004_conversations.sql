-- Conversations belong to one user of a tenant; nobody else of the tenant reads them.

create table conversations (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    user_id uuid not null,
    title text not null default '' check (length(title) <= 200),
    document_ids uuid[] not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant_id, id)
);
create index conversations_newest on conversations (tenant_id, user_id, updated_at desc, id desc);

create table messages (
    tenant_id uuid not null,
    id uuid not null,
    conversation_id uuid not null,
    role text not null check (role in ('user', 'assistant')),
    content text not null,
    citations jsonb not null default '[]',
    model text,
    prompt_tokens integer not null default 0,
    completion_tokens integer not null default 0,
    cost_usd numeric(20, 10) not null default 0,
    -- The endpoint didn't tell the tokens; they were counted approximately.
    usage_estimated boolean not null default false,
    -- complete: all of it was sent; cut: the reader went away; failed: the model broke off.
    status text not null default 'complete' check (status in ('complete', 'cut', 'failed')),
    answered boolean not null default true,
    created_at timestamptz not null default now(),
    primary key (tenant_id, id),
    foreign key (tenant_id, conversation_id) references conversations (tenant_id, id) on delete cascade
);
create index messages_oldest on messages (tenant_id, conversation_id, created_at, id);

create table message_feedback (
    tenant_id uuid not null,
    message_id uuid not null,
    user_id uuid not null,
    rating smallint not null check (rating in (-1, 1)),
    comment text check (length(comment) <= 4000),
    created_at timestamptz not null default now(),
    primary key (tenant_id, message_id, user_id),
    foreign key (tenant_id, message_id) references messages (tenant_id, id) on delete cascade
);

create table idempotency_keys (
    tenant_id uuid not null references tenants (id),
    user_id uuid not null,
    key text not null check (length(key) between 1 and 255),
    request_hash bytea not null,
    status smallint,
    body bytea,
    created_at timestamptz not null default now(),
    primary key (tenant_id, user_id, key)
);
create index idempotency_keys_oldest on idempotency_keys (created_at);

alter table conversations enable row level security;
alter table conversations force row level security;
create policy owner on conversations to dreamhub_app
    using (tenant_id = app_tenant() and user_id = app_user())
    with check (tenant_id = app_tenant() and user_id = app_user());
create policy tenant on conversations to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on conversations to dreamhub_owner using (true) with check (true);

alter table messages enable row level security;
alter table messages force row level security;
create policy owner on messages to dreamhub_app
    using (tenant_id = app_tenant() and exists (
        select 1 from conversations c where c.tenant_id = messages.tenant_id and c.id = messages.conversation_id))
    with check (tenant_id = app_tenant() and exists (
        select 1 from conversations c where c.tenant_id = messages.tenant_id and c.id = messages.conversation_id));
create policy tenant on messages to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on messages to dreamhub_owner using (true) with check (true);

alter table message_feedback enable row level security;
alter table message_feedback force row level security;
create policy owner on message_feedback to dreamhub_app
    using (tenant_id = app_tenant() and user_id = app_user())
    with check (tenant_id = app_tenant() and user_id = app_user() and exists (
        select 1 from messages m where m.tenant_id = message_feedback.tenant_id and m.id = message_feedback.message_id));
create policy migrator on message_feedback to dreamhub_owner using (true) with check (true);

alter table idempotency_keys enable row level security;
alter table idempotency_keys force row level security;
create policy owner on idempotency_keys to dreamhub_app
    using (tenant_id = app_tenant() and user_id = app_user())
    with check (tenant_id = app_tenant() and user_id = app_user());
create policy migrator on idempotency_keys to dreamhub_owner using (true) with check (true);
create policy directory on idempotency_keys to dreamhub_directory using (true);

grant select, insert, update, delete on conversations to dreamhub_app;
grant select, insert, update, delete on messages to dreamhub_app;
grant select, insert, update, delete on message_feedback to dreamhub_app;
grant select, insert, update, delete on idempotency_keys to dreamhub_app;
grant select on conversations, messages to dreamhub_worker;
grant select, delete on idempotency_keys to dreamhub_directory;
