-- What is remembered of conversations: summaries that grow with them, and single memories with the message they come
-- from. Both belong to the conversation's user; they go with the conversation.

create table conversation_memories (
    tenant_id uuid not null,
    conversation_id uuid not null,
    user_id uuid not null,
    -- The summary: [{"text", "source_id", "importance", "document_ids"}], oldest first.
    lines jsonb not null default '[]',
    -- The last message that was digested; null before the first.
    digested_at timestamptz,
    digested_id uuid,
    -- Since when a digestion is on its way; null when none is.
    requested_at timestamptz,
    primary key (tenant_id, conversation_id),
    foreign key (tenant_id, conversation_id) references conversations (tenant_id, id) on delete cascade,
    check ((digested_at is null) = (digested_id is null))
);

create table memories (
    tenant_id uuid not null,
    id uuid not null,
    user_id uuid not null,
    conversation_id uuid not null,
    -- turn: a question with its answer, for recall alone; the others are shown.
    kind text not null check (kind in ('fact', 'preference', 'turn')),
    -- What it is about, folded; a later memory on the same subject supersedes it. Null where nothing can.
    subject text check (length(subject) between 1 and 200),
    text text not null check (length(text) between 1 and 2000),
    importance real not null check (importance between 0 and 1),
    -- The user's message that it comes from.
    source_id uuid,
    -- The documents that the answer cites: who doesn't see all of them any more isn't told of it.
    document_ids uuid[] not null default '{}',
    terms integer[] not null,
    -- Of the embedding model and version in `space`; float16, little-endian.
    vector bytea not null,
    space text not null,
    created_at timestamptz not null,
    superseded_at timestamptz,
    primary key (tenant_id, id),
    foreign key (tenant_id, conversation_id) references conversations (tenant_id, id) on delete cascade,
    foreign key (tenant_id, source_id) references messages (tenant_id, id) on delete cascade
);
create index memories_of_user on memories (tenant_id, user_id, conversation_id, created_at);
create index memories_of_message on memories (tenant_id, source_id);
create index memories_of_conversation on memories (tenant_id, conversation_id);

create table memory_settings (
    tenant_id uuid not null references tenants (id),
    user_id uuid not null,
    across_conversations boolean not null,
    primary key (tenant_id, user_id)
);

alter table conversation_memories enable row level security;
alter table conversation_memories force row level security;
create policy owner on conversation_memories to dreamhub_app
    using (tenant_id = app_tenant() and user_id = app_user())
    with check (tenant_id = app_tenant() and user_id = app_user());
create policy tenant on conversation_memories to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on conversation_memories to dreamhub_owner using (true) with check (true);

alter table memories enable row level security;
alter table memories force row level security;
create policy owner on memories to dreamhub_app
    using (tenant_id = app_tenant() and user_id = app_user())
    with check (tenant_id = app_tenant() and user_id = app_user());
create policy tenant on memories to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on memories to dreamhub_owner using (true) with check (true);

alter table memory_settings enable row level security;
alter table memory_settings force row level security;
create policy owner on memory_settings to dreamhub_app
    using (tenant_id = app_tenant() and user_id = app_user())
    with check (tenant_id = app_tenant() and user_id = app_user());
create policy migrator on memory_settings to dreamhub_owner using (true) with check (true);

grant select, insert, update on conversation_memories to dreamhub_app, dreamhub_worker;
grant select, update, delete on memories to dreamhub_app;
grant select, insert, update on memories to dreamhub_worker;
grant select, insert, update on memory_settings to dreamhub_app;

alter table usage_entries drop constraint usage_entries_purpose_check;
alter table usage_entries add constraint usage_entries_purpose_check
    check (purpose in ('chat', 'embedding', 'reprocessing', 'memory'));
