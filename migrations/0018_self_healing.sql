-- What the product finds out about itself: objects that nobody holds, rows whose object is gone, queues that don't move.

-- When the content's object was found to be gone; null while it is there.
alter table contents add column missing_at timestamptz;
create index contents_missing on contents (tenant_id, id) where missing_at is not null;

-- How fast work ends. With the queue, so that the table isn't read for it.
create index tasks_finished on tasks (finished_at, queue) where finished_at is not null;

-- When a tenant's objects were last compared with its rows, how many there were, and how many were ever removed.
create table object_sweeps (
    tenant_id uuid primary key references tenants (id),
    queued_at timestamptz not null default now(),
    finished_at timestamptz,
    objects bigint not null default 0,
    removed bigint not null default 0
);

-- What a tenant was told of and hasn't been told to be over, so that nobody is told twice.
create table alerts (
    tenant_id uuid not null references tenants (id),
    name text not null,
    severity text not null check (severity in ('info', 'warning', 'critical')),
    raised_at timestamptz not null default now(),
    primary key (tenant_id, name)
);

-- One row: what the relays have seen of late, whichever of them looked. Counts, names of states, and ids of tenants.
create table watch (
    single boolean primary key default true check (single),
    state jsonb not null default '{}',
    watched_at timestamptz
);
insert into watch default values;

alter table object_sweeps enable row level security;
alter table object_sweeps force row level security;
create policy tenant on object_sweeps to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on object_sweeps to dreamhub_owner using (true) with check (true);
create policy directory on object_sweeps to dreamhub_directory using (true) with check (true);

alter table alerts enable row level security;
alter table alerts force row level security;
create policy migrator on alerts to dreamhub_owner using (true) with check (true);
create policy directory on alerts to dreamhub_directory using (true) with check (true);

alter table watch enable row level security;
alter table watch force row level security;
create policy migrator on watch to dreamhub_owner using (true) with check (true);
create policy directory on watch to dreamhub_directory using (true) with check (true);

create policy directory on contents for select to dreamhub_directory using (true);

grant select (tenant_id, id, missing_at) on contents to dreamhub_directory;
grant select, insert on object_sweeps to dreamhub_worker;
grant update (finished_at, objects, removed) on object_sweeps to dreamhub_worker;
grant select, insert, update on object_sweeps to dreamhub_directory;
grant select, insert, delete on alerts to dreamhub_directory;
grant select, update on watch to dreamhub_directory;

-- Queues a sweep, with the next of the ids that are given, for each tenant whose last one was queued longer than p_every
-- ago, unless one is under way; answers how many. Whoever raises queued_at queues it, so two relays queue one. A
-- tenant's own id stands for the product as the task's user: it is nobody's, and none of its people sees the task.
create function queue_sweeps_v1(p_tasks uuid[], p_every interval, p_max_retries integer) returns bigint
language sql volatile security definer set search_path = pg_catalog, public as $$
    with due as (
        select o.id from public.tenants o
        left join public.object_sweeps s on s.tenant_id = o.id
        where o.status = 'active' and coalesce(s.queued_at, o.created_at) < clock_timestamp() - p_every
            and not exists (
                select 1 from public.tasks t
                where t.tenant_id = o.id and t.kind = 'sweep_objects' and t.status in ('queued', 'running'))
        order by coalesce(s.queued_at, o.created_at)
        limit cardinality(p_tasks)
    ),
    taken as (
        insert into public.object_sweeps as s (tenant_id) select d.id from due d
        on conflict on constraint object_sweeps_pkey do update set queued_at = clock_timestamp()
            where s.queued_at < clock_timestamp() - p_every
        returning s.tenant_id
    ),
    queued as (
        insert into public.tasks (tenant_id, id, kind, version, queue, user_id, role, request_id, trace_id, max_retries)
        select k.tenant_id, p_tasks[row_number() over ()], 'sweep_objects', 1, 'batch', k.tenant_id, 'member', '', '',
            p_max_retries
        from taken k
        returning 1
    )
    select count(*) from queued
$$;

-- What was seen last, and the time, for whoever looks next. Nothing when somebody looked within p_seconds, or does so now.
create function begin_watch_v1(p_seconds double precision) returns table (state text, at double precision)
language sql volatile security definer set search_path = pg_catalog, public as $$
    select w.state::text, extract(epoch from clock_timestamp())::double precision from public.watch w
    where w.watched_at is null or w.watched_at < clock_timestamp() - make_interval(secs => p_seconds)
    for update skip locked
$$;

create function end_watch_v1(p_state text) returns void
language sql volatile security definer set search_path = pg_catalog, public as $$
    update public.watch set state = p_state::jsonb, watched_at = clock_timestamp()
$$;

-- Of each queue: what is due, what waits for a later time, what runs, how many seconds the oldest due task has waited,
-- and how many tasks ended within the last p_seconds.
create function queue_loads_v1(p_seconds double precision) returns table (
    queue text, due bigint, later bigint, running bigint, oldest_seconds double precision, ended bigint
)
language sql stable security definer set search_path = pg_catalog, public as $$
    select q.queue, coalesce(u.due, 0), coalesce(u.later, 0), coalesce(u.running, 0),
        coalesce(greatest(0, u.oldest), 0)::double precision, coalesce(e.ended, 0)
    from unnest(array['high_priority', 'default', 'batch', 'learning']) as q (queue)
    left join (
        select t.queue,
            count(*) filter (where t.status = 'queued' and t.due_at <= clock_timestamp()) as due,
            count(*) filter (where t.status = 'queued' and t.due_at > clock_timestamp()) as later,
            count(*) filter (where t.status = 'running') as running,
            extract(epoch from clock_timestamp() - min(t.due_at) filter (where t.status = 'queued')) as oldest
        from public.tasks t where t.status in ('queued', 'running') group by t.queue
    ) u on u.queue = q.queue
    left join (
        select t.queue, count(*) as ended from public.tasks t
        where t.finished_at > clock_timestamp() - make_interval(secs => p_seconds) group by t.queue
    ) e on e.queue = q.queue
$$;

-- Tenants with at least p_unfinished unfinished tasks, or p_dead dead letters of the last p_seconds.
create function pressed_tenants_v1(p_unfinished bigint, p_dead bigint, p_seconds double precision)
returns table (tenant_id uuid, unfinished bigint, dead bigint)
language sql stable security definer set search_path = pg_catalog, public as $$
    select coalesce(u.tenant_id, d.tenant_id), coalesce(u.n, 0), coalesce(d.n, 0)
    from (
        select t.tenant_id, count(*) as n from public.tasks t where t.status in ('queued', 'running')
        group by t.tenant_id having count(*) >= p_unfinished
    ) u
    full join (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.status = 'dead' and t.finished_at > clock_timestamp() - make_interval(secs => p_seconds)
        group by t.tenant_id having count(*) >= p_dead
    ) d on d.tenant_id = u.tenant_id
$$;

-- How many events wait to be handed on, how many seconds the oldest has waited, and how many dead letters there are;
-- counted up to p_limit.
create function backlog_v1(p_limit bigint) returns table (events bigint, oldest_seconds double precision, dead bigint)
language sql stable security definer set search_path = pg_catalog, public as $$
    select
        (select count(*) from (select 1 from public.outbox o where o.published_at is null limit p_limit) counted),
        coalesce(extract(epoch from clock_timestamp() - (
            select min(o.created_at) from public.outbox o where o.published_at is null)), 0)::double precision,
        (select count(*) from (select 1 from public.tasks t where t.status = 'dead' limit p_limit) counted)
$$;

-- Tells tenants of an alert, each once: those that are given, those with unfinished tasks in the given queues, or, with
-- neither, every active one. Answers how many were told. p_event has the shape of AlertRaised.
create function raise_alert_v1(p_name text, p_severity text, p_event text, p_tenants uuid[], p_queues text[])
returns bigint
language sql volatile security definer set search_path = pg_catalog, public as $$
    with raised as (
        insert into public.alerts as a (tenant_id, name, severity)
        select o.id, p_name, p_severity from public.tenants o
        where o.status = 'active' and (p_tenants is null or o.id = any(p_tenants))
            and (p_queues is null or exists (
                select 1 from public.tasks t
                where t.tenant_id = o.id and t.queue = any(p_queues) and t.status in ('queued', 'running')))
        on conflict on constraint alerts_pkey do nothing
        returning a.tenant_id
    ),
    event as (
        insert into public.outbox (tenant_id, id, kind, payload)
        select r.tenant_id, gen_random_uuid(), 'alert.raised', p_event::jsonb from raised r
    )
    select count(*) from raised
$$;

-- Tells those who were told of an alert that it is over; all of them, or the given ones.
create function clear_alert_v1(p_name text, p_event text, p_tenants uuid[]) returns bigint
language sql volatile security definer set search_path = pg_catalog, public as $$
    with cleared as (
        delete from public.alerts a where a.name = p_name and (p_tenants is null or a.tenant_id = any(p_tenants))
        returning a.tenant_id
    ),
    event as (
        insert into public.outbox (tenant_id, id, kind, payload)
        select c.tenant_id, gen_random_uuid(), 'alert.raised', p_event::jsonb from cleared c
    )
    select count(*) from cleared
$$;

-- What the last look saw, how many seconds ago, and what sweeps of objects have found. Of no tenant in particular.
create function watched_v1() returns table (
    state text, seconds double precision, objects_removed bigint, objects_missing bigint, oldest_sweep timestamptz
)
language sql stable security definer set search_path = pg_catalog, public as $$
    select (w.state - 'conditions')::text, extract(epoch from clock_timestamp() - w.watched_at)::double precision,
        (select coalesce(sum(s.removed), 0)::bigint from public.object_sweeps s),
        (select count(*) from public.contents c where c.missing_at is not null),
        (select min(s.finished_at) from public.object_sweeps s)
    from public.watch w
$$;

grant execute on function watched_v1() to dreamhub_app;
grant execute on function
    queue_sweeps_v1(uuid[], interval, integer), begin_watch_v1(double precision), end_watch_v1(text),
    queue_loads_v1(double precision), pressed_tenants_v1(bigint, bigint, double precision), backlog_v1(bigint),
    raise_alert_v1(text, text, text, uuid[], text[]), clear_alert_v1(text, text, uuid[])
    to dreamhub_relay;
grant create on schema public to dreamhub_directory;
alter function queue_sweeps_v1(uuid[], interval, integer) owner to dreamhub_directory;
alter function begin_watch_v1(double precision) owner to dreamhub_directory;
alter function end_watch_v1(text) owner to dreamhub_directory;
alter function queue_loads_v1(double precision) owner to dreamhub_directory;
alter function pressed_tenants_v1(bigint, bigint, double precision) owner to dreamhub_directory;
alter function backlog_v1(bigint) owner to dreamhub_directory;
alter function raise_alert_v1(text, text, text, uuid[], text[]) owner to dreamhub_directory;
alter function clear_alert_v1(text, text, uuid[]) owner to dreamhub_directory;
alter function watched_v1() owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
