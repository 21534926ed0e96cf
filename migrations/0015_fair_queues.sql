-- Fairness by weight: a tenant of weight 2 gets two turns where others get one. The platform sets it.

-- Bytes that the task works on, 0 where it isn't about a file: what it takes goes by that.
alter table tasks add column size bigint not null default 0 check (size >= 0);

alter table tenants add column queue_weight smallint not null default 1 check (queue_weight between 1 and 100);
grant update (queue_weight) on tenants to dreamhub_directory;

-- Answers the tenant's name; null where there is no such tenant.
create function set_queue_weight_v1(p_tenant uuid, p_weight integer) returns text
language sql volatile security definer set search_path = pg_catalog, public as $$
    update public.tenants set queue_weight = p_weight where id = p_tenant returning name
$$;

-- As dispatch_v2, with two differences. A tenant's share counts by its weight. And the hops go from priority to priority
-- too, and the time is one that an index can be asked for (clock_timestamp() isn't), so that a tenant's held tasks, due
-- later, are never walked over: the costs grow with the number of waiting tenants, and with nothing else.
create function dispatch_v3(p_queue text, p_window integer, p_per_tenant integer)
returns table (task_id uuid, number integer, turn double precision)
language sql volatile security definer set search_path = pg_catalog, public
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off
as $$
    with recursive waiting (tenant_id, priority) as (
        (select t.tenant_id, t.priority from public.tasks t
         where t.queue = p_queue and t.status = 'queued' and t.dispatched_at is null
         order by t.tenant_id, t.priority desc limit 1)
        union all
        select n.tenant_id, n.priority from waiting w cross join lateral (
            (select t.tenant_id, t.priority from public.tasks t
             where t.queue = p_queue and t.status = 'queued' and t.dispatched_at is null
                and t.tenant_id = w.tenant_id and t.priority < w.priority
             order by t.priority desc limit 1)
            union all
            (select t.tenant_id, t.priority from public.tasks t
             where t.queue = p_queue and t.status = 'queued' and t.dispatched_at is null
                and t.tenant_id > w.tenant_id
             order by t.tenant_id, t.priority desc limit 1)
            limit 1
        ) n
    ),
    lying as materialized (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.queue = p_queue and t.status = 'queued' and t.dispatched_at is not null group by t.tenant_id
    ),
    running as materialized (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.queue = p_queue and t.status = 'running' group by t.tenant_id
    ),
    sharing as materialized (
        select o.id as tenant_id, o.queue_weight as weight,
            coalesce((select l.n from lying l where l.tenant_id = o.id), 0) as lying,
            coalesce((select r.n from running r where r.tenant_id = o.id), 0) as running
        from (select distinct w.tenant_id from waiting w) w
        join public.tenants o on o.id = w.tenant_id and o.status = 'active'
    ),
    candidates as materialized (
        select s.tenant_id, c.id, c.due_at, p_per_tenant * s.weight - s.lying as room, s.weight,
            s.lying + s.running as ahead,
            row_number() over (partition by s.tenant_id order by c.priority desc, c.due_at, c.id) as number
        from sharing s
        join waiting w on w.tenant_id = s.tenant_id
        cross join lateral (
            select t.id, t.priority, t.due_at from public.tasks t
            where t.queue = p_queue and t.tenant_id = w.tenant_id and t.priority = w.priority
                and t.status = 'queued' and t.dispatched_at is null and t.due_at <= statement_timestamp()
            order by t.due_at, t.id
            limit greatest(0, p_per_tenant * s.weight - s.lying)
        ) c
    ),
    chosen as materialized (
        select c.tenant_id, c.id, (c.ahead + c.number)::double precision / c.weight as turn
        from candidates c where c.number <= c.room
        order by turn, c.due_at, c.id
        limit greatest(0, p_window - (select coalesce(sum(l.n), 0) from lying l))
    ),
    locked as materialized (
        select t.tenant_id, t.id, t.status, t.dispatched_at, c.turn
        from chosen c join public.tasks t on t.tenant_id = c.tenant_id and t.id = c.id
        for update of t skip locked
    )
    update public.tasks t set dispatched_at = clock_timestamp(), dispatches = t.dispatches + 1
    from locked l
    where t.tenant_id = l.tenant_id and t.id = l.id and l.status = 'queued' and l.dispatched_at is null
    returning t.id, t.dispatches, l.turn
$$;

-- As claim_v2, with a growing pause: a kind or version that the worker doesn't know goes back for others,
-- with no attempt counted, after 5 seconds and then twice as long each time, up to a minute. So ten thousand tasks that
-- wait for a newer worker keep the older ones from nothing.
create function claim_v3(
    p_tasks uuid[], p_numbers integer[], p_worker text, p_lease double precision, p_kinds text[], p_versions integer[]
) returns table (
    tenant_id uuid, task_id uuid, kind text, version integer, queue text, priority smallint, stage text, progress real,
    user_id uuid, role text, request_id text, trace_id text, document_id uuid, content_id uuid, has_payload boolean,
    attempts integer, retry_count integer, max_retries integer, lost_leases integer, fence bigint,
    created_at timestamptz, started_at timestamptz, size bigint
)
language sql volatile security definer set search_path = pg_catalog, public
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
    with locked as materialized (
        select t.tenant_id, t.id, t.kind, t.version, t.status, t.dispatched_at, t.dispatches
        from public.tasks t where t.id = any(p_tasks)
        for update of t skip locked
    ),
    delivered as materialized (
        select l.tenant_id, l.id, exists (
            select 1 from unnest(p_kinds, p_versions) as k (kind, version)
            where k.kind = l.kind and l.version <= k.version) as able
        from locked l
        where l.status = 'queued' and l.dispatched_at is not null and exists (
            select 1 from unnest(p_tasks, p_numbers) as w (id, number) where w.id = l.id and w.number = l.dispatches)
    ),
    put_back as (
        update public.tasks t set dispatched_at = null,
            due_at = clock_timestamp() + make_interval(secs => least(60, 5 * 2 ^ least(t.dispatches - 1, 10)))
        from delivered d where t.id = d.id and t.tenant_id is not distinct from d.tenant_id and not d.able
    ),
    claimed as (
        update public.tasks t set
            status = 'running', stage = 'running', worker = p_worker, fence = t.fence + 1, attempts = t.attempts + 1,
            lease_until = clock_timestamp() + make_interval(secs => p_lease),
            started_at = coalesce(t.started_at, clock_timestamp())
        from delivered d where t.id = d.id and t.tenant_id is not distinct from d.tenant_id and d.able
        returning t.*
    ),
    attempt as (
        insert into public.task_attempts (tenant_id, task_id, number, worker)
        select c.tenant_id, c.id, c.attempts, p_worker from claimed c
    )
    select c.tenant_id, c.id, c.kind, c.version, c.queue, c.priority, c.stage, c.progress,
        c.user_id, c.role, c.request_id, c.trace_id, c.document_id, c.content_id, c.payload <> '{}',
        c.attempts, c.retry_count, c.max_retries, c.lost_leases, c.fence, c.created_at, c.started_at, c.size
    from claimed c
$$;

-- How many of the caller's tenant's tasks ended lately, the invisible ones too, and within how many seconds: as its last
-- p_limit events tell, those of the last ten minutes.
create function pace_v1(p_limit integer) returns table (ended bigint, seconds double precision)
language sql stable security definer set search_path = pg_catalog, public as $$
    select count(*), coalesce(extract(epoch from clock_timestamp() - min(e.created_at)), 0)::double precision
    from (
        select o.kind, o.created_at from public.outbox o
        where o.tenant_id = public.app_tenant() and o.position is not null
        order by o.position desc limit p_limit
    ) e where e.kind = 'task.finished' and e.created_at > clock_timestamp() - interval '10 minutes'
$$;

grant execute on function pace_v1(integer) to dreamhub_app, dreamhub_worker;
grant execute on function claim_v3(uuid[], integer[], text, double precision, text[], integer[]) to dreamhub_worker;
grant execute on function dispatch_v3(text, integer, integer) to dreamhub_relay;
grant execute on function set_queue_weight_v1(uuid, integer) to dreamhub_app;
grant create on schema public to dreamhub_directory;
alter function pace_v1(integer) owner to dreamhub_directory;
alter function claim_v3(uuid[], integer[], text, double precision, text[], integer[]) owner to dreamhub_directory;
alter function dispatch_v3(text, integer, integer) owner to dreamhub_directory;
alter function set_queue_weight_v1(uuid, integer) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
