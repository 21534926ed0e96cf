-- Files that come in pieces: what was announced, how much of it is stored, and in which objects.

create table uploads (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    user_id uuid not null,
    length bigint not null check (length > 0),
    -- Bytes that are stored for good. The last ones count only together with the document that they complete.
    received bigint not null default 0 check (received between 0 and length),
    -- As the client sent it, and what was understood.
    metadata text not null,
    request jsonb not null,
    status text not null default 'open' check (status in ('open', 'finished', 'refused', 'ended')),
    document_id uuid,
    task_id uuid,
    error_code text,
    error_message text,
    -- The request that writes now. Its right runs out with its server.
    holder uuid,
    held_until timestamptz,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    primary key (tenant_id, id),
    check (status <> 'open' or received < length),
    check ((holder is null) = (held_until is null))
);
create index uploads_expired on uploads (expires_at);

-- A part is written down before its object is stored, so that no crash leaves an object that nobody knows. It has no
-- place until it counts.
create table upload_parts (
    tenant_id uuid not null,
    id uuid not null,
    upload_id uuid not null,
    start bigint,
    primary key (tenant_id, id),
    unique (tenant_id, upload_id, start),
    foreign key (tenant_id, upload_id) references uploads (tenant_id, id) on delete cascade
);

alter table uploads enable row level security;
alter table uploads force row level security;
create policy owner on uploads to dreamhub_app
    using (tenant_id = app_tenant() and user_id = app_user())
    with check (tenant_id = app_tenant() and user_id = app_user());
create policy tenant on uploads to dreamhub_worker using (tenant_id = app_tenant());
create policy migrator on uploads to dreamhub_owner using (true) with check (true);
create policy directory on uploads for select to dreamhub_directory using (true);

alter table upload_parts enable row level security;
alter table upload_parts force row level security;
create policy owner on upload_parts to dreamhub_app
    using (tenant_id = app_tenant() and exists (
        select 1 from uploads u where u.tenant_id = upload_parts.tenant_id and u.id = upload_parts.upload_id));
create policy tenant on upload_parts for select to dreamhub_worker using (tenant_id = app_tenant());
create policy migrator on upload_parts to dreamhub_owner using (true) with check (true);

grant select, insert, update, delete on uploads to dreamhub_app;
grant select, delete on uploads to dreamhub_worker;
grant update (status, holder, held_until) on uploads to dreamhub_worker;
grant select on uploads to dreamhub_directory;
grant select, insert, update, delete on upload_parts to dreamhub_app;
grant select on upload_parts to dreamhub_worker;
grant insert on tasks to dreamhub_directory;

-- The caller's tenant alone, but all of its users: how many uploads are under way, and how many bytes they announced.
-- The lock makes those who begin one take turns, so that together they don't pass the bound.
create function open_uploads_v1() returns table (uploads bigint, bytes bigint)
language plpgsql volatile security definer set search_path = pg_catalog, public as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('uploads:' || public.app_tenant()::text, 0));
    return query
        select count(*), coalesce(sum(u.length), 0)::bigint from public.uploads u
        where u.tenant_id = public.app_tenant() and u.status = 'open' and u.expires_at > clock_timestamp();
end $$;

-- Queues a task, with the next of the ids that are given, for each tenant that has uploads whose time is over, unless
-- one is under way; answers how many.
create function expire_uploads_v1(p_tasks uuid[], p_max_retries integer) returns bigint
language sql volatile security definer set search_path = pg_catalog, public as $$
    with expired as (
        select u.tenant_id, (array_agg(u.user_id order by u.expires_at))[1] as user_id, row_number() over () as number
        from public.uploads u
        where u.expires_at < clock_timestamp() and not exists (
            select 1 from public.tasks t
            where t.tenant_id = u.tenant_id and t.kind = 'purge_uploads' and t.status in ('queued', 'running'))
        group by u.tenant_id
        limit cardinality(p_tasks)
    ),
    queued as (
        insert into public.tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries)
        select e.tenant_id, p_tasks[e.number], 'purge_uploads', 1, 'default', e.user_id, 'member', '', '', p_max_retries
        from expired e
        returning 1
    )
    select count(*) from queued
$$;

grant execute on function open_uploads_v1() to dreamhub_app;
grant execute on function expire_uploads_v1(uuid[], integer) to dreamhub_relay;
grant create on schema public to dreamhub_directory;
alter function open_uploads_v1() owner to dreamhub_directory;
alter function expire_uploads_v1(uuid[], integer) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
