-- Batches: what one request began for many files, documents or tasks, as one thing that can be watched.

create table batches (
    tenant_id uuid not null references tenants (id),
    id uuid not null,
    user_id uuid not null,
    kind text not null check (kind in ('upload', 'archive', 'retry', 'delete')),
    -- What was asked: what comes with each file, or which tasks or documents are meant.
    request jsonb not null,
    -- The task that does the batch's own work. An upload has none: its files are taken in while they come.
    task_id uuid,
    -- Whether an archive lies among the objects.
    stored boolean not null default false,
    error_code text,
    error_message text,
    created_at timestamptz not null default now(),
    -- Since then every item is known.
    planned_at timestamptz,
    cancelled_at timestamptz,
    -- The relay's: when it looked last, what it told then, and when nothing was left to tell.
    looked_at timestamptz not null default now(),
    told real not null default 0,
    settled_at timestamptz,
    primary key (tenant_id, id),
    check ((kind = 'upload') = (task_id is null))
);
create index batches_own on batches (tenant_id, user_id, id desc);
create index batches_unsettled on batches (looked_at) where settled_at is null;
create index batches_settled on batches (settled_at) where settled_at is not null;

create table batch_items (
    tenant_id uuid not null,
    batch_id uuid not null,
    ordinal integer not null check (ordinal >= 0),
    -- Names of what never became a document, or hasn't yet; a document has its own.
    filename text,
    folder text,
    handled boolean not null default false,
    document_id uuid,
    task_id uuid,
    duplicate boolean not null default false,
    error_code text,
    error_message text,
    primary key (tenant_id, batch_id, ordinal),
    foreign key (tenant_id, batch_id) references batches (tenant_id, id) on delete cascade,
    check (handled or error_code is null)
);
create index batch_items_open on batch_items (tenant_id, batch_id, ordinal) where not handled;

alter table batches enable row level security;
alter table batches force row level security;
create policy owner on batches to dreamhub_app
    using (tenant_id = app_tenant() and user_id = app_user())
    with check (tenant_id = app_tenant() and user_id = app_user());
create policy tenant on batches to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on batches to dreamhub_owner using (true) with check (true);
create policy directory on batches to dreamhub_directory using (true) with check (true);

alter table batch_items enable row level security;
alter table batch_items force row level security;
create policy owner on batch_items to dreamhub_app
    using (tenant_id = app_tenant() and exists (
        select 1 from batches b where b.tenant_id = batch_items.tenant_id and b.id = batch_items.batch_id))
    with check (tenant_id = app_tenant() and exists (
        select 1 from batches b where b.tenant_id = batch_items.tenant_id and b.id = batch_items.batch_id));
create policy tenant on batch_items to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on batch_items to dreamhub_owner using (true) with check (true);
create policy directory on batch_items for select to dreamhub_directory using (true);

grant select, insert on batches to dreamhub_app;
grant update (error_code, error_message, planned_at, cancelled_at, settled_at) on batches to dreamhub_app;
grant select, delete on batches to dreamhub_worker;
grant update (stored, error_code, error_message, planned_at) on batches to dreamhub_worker;
grant select on batches to dreamhub_directory;
grant update (looked_at, told, settled_at) on batches to dreamhub_directory;
grant select, insert, update on batch_items to dreamhub_app, dreamhub_worker;
grant select on batch_items to dreamhub_directory;

-- A worker takes files in and deletes documents, as the server does, on behalf of whoever began a batch.
grant insert on collections, contents, documents to dreamhub_worker;

-- Who may see a batch hears of its end.
drop policy reader on outbox;
create policy reader on outbox to dreamhub_app
    using (tenant_id = app_tenant() and (
        payload ->> 'visibility' = 'tenant'
        or exists (select 1 from tasks t
            where t.tenant_id = outbox.tenant_id and t.id = (outbox.payload ->> 'task_id')::uuid)
        or exists (select 1 from documents d
            where d.tenant_id = outbox.tenant_id and d.id = (outbox.payload ->> 'document_id')::uuid)
        or exists (select 1 from batches b
            where b.tenant_id = outbox.tenant_id and b.id = (outbox.payload ->> 'batch_id')::uuid)))
    with check (tenant_id = app_tenant());

-- The state of each item: what its task's is; before the batch's own work has come to it, what that work's end means.
create function batch_item_states_v1(p_tenant uuid, p_batch uuid)
returns table (ordinal integer, state text, progress real, finished_at timestamptz)
language sql stable set search_path = pg_catalog, public as $$
    select i.ordinal,
        case
            when i.error_code is not null then 'refused'
            when i.handled then case t.status when 'queued' then 'waiting' else coalesce(t.status, 'succeeded') end
            when b.cancelled_at is not null then 'cancelled'
            when w.status in ('failed', 'dead', 'cancelled') then w.status
            else 'waiting' end,
        case when i.handled and t.status = 'running' then t.progress else 0 end,
        case when i.handled then t.finished_at end
    from public.batches b
    join public.batch_items i on i.tenant_id = b.tenant_id and i.batch_id = b.id
    left join public.tasks t on t.tenant_id = i.tenant_id and t.id = i.task_id
    left join public.tasks w on w.tenant_id = b.tenant_id and w.id = b.task_id
    where b.tenant_id = p_tenant and b.id = p_batch
$$;

-- A batch in numbers. It is over when its own work is, every item is known, and none of them waits or runs; an upload
-- whose server died while the files came counts as known after an hour.
create function batch_sums_v1(p_tenant uuid, p_batch uuid) returns table (
    status text, total bigint, waiting bigint, running bigint, succeeded bigint, failed bigint, dead bigint,
    cancelled bigint, refused bigint, progress double precision, finished_at timestamptz
)
language sql stable set search_path = pg_catalog, public as $$
    with counted as (
        select count(*) as total, count(*) filter (where s.state = 'waiting') as waiting,
            count(*) filter (where s.state = 'running') as running,
            count(*) filter (where s.state = 'succeeded') as succeeded,
            count(*) filter (where s.state = 'failed') as failed, count(*) filter (where s.state = 'dead') as dead,
            count(*) filter (where s.state = 'cancelled') as cancelled,
            count(*) filter (where s.state = 'refused') as refused,
            coalesce(sum(s.progress), 0) as moved, max(s.finished_at) as finished_at
        from public.batch_item_states_v1(p_tenant, p_batch) s
    ),
    known as (
        select c.*, b.cancelled_at, b.error_code, b.created_at, w.status as work,
            greatest(c.finished_at, w.finished_at, b.created_at) as ended_at,
            coalesce(w.status not in ('queued', 'running'), true) and c.waiting + c.running = 0 and (
                b.planned_at is not null or w.status is not null
                or b.created_at < clock_timestamp() - interval '1 hour') as over
        from counted c cross join public.batches b
        left join public.tasks w on w.tenant_id = b.tenant_id and w.id = b.task_id
        where b.tenant_id = p_tenant and b.id = p_batch
    )
    select case
            when not k.over and k.total = k.waiting and coalesce(k.work <> 'running', true) then 'queued'
            when not k.over then 'running'
            when k.cancelled_at is not null or k.work = 'cancelled' then 'cancelled'
            when k.error_code is not null or k.work in ('failed', 'dead') or k.failed + k.dead + k.refused > 0
                then 'failed'
            when k.cancelled > 0 then 'cancelled'
            else 'succeeded' end,
        k.total, k.waiting, k.running, k.succeeded, k.failed, k.dead, k.cancelled, k.refused,
        case when k.over then 1 when k.total = 0 then 0
            else (k.total - k.waiting - k.running + k.moved) / k.total end,
        case when k.over then k.ended_at end
    from known k
$$;

-- The caller's own batches in numbers, its invisible tasks too: what became private since still counts.
create function own_batches_v1(p_batches uuid[]) returns table (
    batch_id uuid, status text, total bigint, waiting bigint, running bigint, succeeded bigint, failed bigint,
    dead bigint, cancelled bigint, refused bigint, progress double precision, finished_at timestamptz
)
language sql stable security definer set search_path = pg_catalog, public as $$
    select b.id, s.* from public.batches b cross join lateral public.batch_sums_v1(b.tenant_id, b.id) s
    where b.tenant_id = public.app_tenant() and b.user_id = public.app_user() and b.id = any(p_batches)
$$;

-- Up to p_limit items behind p_after of one of the caller's own batches, in order, with their states.
create function own_batch_items_v1(p_batch uuid, p_states text[], p_after integer, p_limit integer)
returns table (ordinal integer, state text)
language sql stable security definer set search_path = pg_catalog, public as $$
    select s.ordinal, s.state
    from public.batches b cross join lateral public.batch_item_states_v1(b.tenant_id, b.id) s
    where b.tenant_id = public.app_tenant() and b.user_id = public.app_user() and b.id = p_batch
        and s.ordinal > p_after and (p_states is null or s.state = any(p_states))
    order by s.ordinal limit p_limit
$$;

-- How many batches of the caller's tenant are under way, all of its users'. The lock makes those who begin one take
-- turns.
create function open_batches_v1() returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, public as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('batches:' || public.app_tenant()::text, 0));
    return (select count(*) from public.batches b where b.tenant_id = public.app_tenant() and b.settled_at is null);
end $$;
create index batches_open on batches (tenant_id) where settled_at is null;

-- Looks at those unfinished batches that were longest not looked at, and answers which have come further. Of one that is
-- over it tells the outbox, in the shape of BatchFinished in internal/entities/events.py.
create function settle_batches_v1(p_limit integer) returns table (tenant_id uuid, batch_id uuid)
language sql volatile security definer set search_path = pg_catalog, public as $$
    with looked as materialized (
        select b.tenant_id, b.id, b.kind, b.told from public.batches b
        where b.settled_at is null order by b.looked_at limit p_limit
        for update of b skip locked
    ),
    counted as materialized (
        select l.tenant_id, l.id, l.kind, l.told, s.*
        from looked l cross join lateral public.batch_sums_v1(l.tenant_id, l.id) s
    ),
    settled as (
        update public.batches b set looked_at = clock_timestamp(), told = c.progress,
            settled_at = case when c.finished_at is not null then clock_timestamp() end
        from counted c where b.tenant_id = c.tenant_id and b.id = c.id
    ),
    event as (
        insert into public.outbox (tenant_id, id, kind, payload)
        select c.tenant_id, gen_random_uuid(), 'batch.finished', jsonb_build_object(
            'version', 1, 'batch_id', c.id, 'batch_kind', c.kind, 'status', c.status, 'total', c.total,
            'succeeded', c.succeeded, 'failed', c.failed, 'dead', c.dead, 'cancelled', c.cancelled,
            'refused', c.refused)
        from counted c where c.finished_at is not null
    )
    select c.tenant_id, c.id from counted c where c.finished_at is null and c.progress::real <> c.told
$$;

-- Queues a task, with the next of the ids that are given, for each tenant that has batches which ended so long ago, or
-- archives that nobody will expand any more, unless one is under way; answers how many.
create function expire_batches_v1(p_tasks uuid[], p_batches interval, p_archives interval, p_max_retries integer)
returns bigint
language sql volatile security definer set search_path = pg_catalog, public as $$
    with expired as (
        select b.tenant_id, (array_agg(b.user_id order by b.settled_at))[1] as user_id,
            row_number() over () as number
        from public.batches b
        where (b.settled_at < clock_timestamp() - p_batches
            or (b.stored and b.settled_at < clock_timestamp() - p_archives)) and not exists (
            select 1 from public.tasks t
            where t.tenant_id = b.tenant_id and t.kind = 'purge_batches' and t.status in ('queued', 'running'))
        group by b.tenant_id
        limit cardinality(p_tasks)
    ),
    queued as (
        insert into public.tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries)
        select e.tenant_id, p_tasks[e.number], 'purge_batches', 1, 'default', e.user_id, 'member', '', '', p_max_retries
        from expired e
        returning 1
    )
    select count(*) from queued
$$;

revoke execute on function batch_item_states_v1(uuid, uuid) from public;
revoke execute on function batch_sums_v1(uuid, uuid) from public;
grant execute on function batch_item_states_v1(uuid, uuid) to dreamhub_directory;
grant execute on function batch_sums_v1(uuid, uuid) to dreamhub_directory;
revoke execute on function own_batches_v1(uuid[]) from public;
revoke execute on function own_batch_items_v1(uuid, text[], integer, integer) from public;
revoke execute on function open_batches_v1() from public;
revoke execute on function settle_batches_v1(integer) from public;
revoke execute on function expire_batches_v1(uuid[], interval, interval, integer) from public;
grant execute on function own_batches_v1(uuid[]) to dreamhub_app;
grant execute on function own_batch_items_v1(uuid, text[], integer, integer) to dreamhub_app;
grant execute on function open_batches_v1() to dreamhub_app;
grant execute on function settle_batches_v1(integer) to dreamhub_relay;
grant execute on function expire_batches_v1(uuid[], interval, interval, integer) to dreamhub_relay;
grant create on schema public to dreamhub_directory;
alter function own_batches_v1(uuid[]) owner to dreamhub_directory;
alter function own_batch_items_v1(uuid, text[], integer, integer) owner to dreamhub_directory;
alter function open_batches_v1() owner to dreamhub_directory;
alter function settle_batches_v1(integer) owner to dreamhub_directory;
alter function expire_batches_v1(uuid[], interval, interval, integer) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
