-- What must see across tenants to run the ledger. Each function belongs to a role that can't log in, takes the time
-- from this server's clock only, and returns ids, names of kinds and counts: never a payload, a result or a message.
-- Functions are versioned and never replaced in place, because old and new processes run side by side.

-- Picks due tasks of one queue for Redis, at most p_window lying there at a time and p_per_tenant of one tenant.
-- Fair: the tenant with the least in flight comes first, then one task of each tenant in turn. The recursive query
-- hops from tenant to tenant along the index, so that 10,000 waiting tasks of one tenant cost no more than ten.
create function dispatch_v1(p_queue text, p_window integer, p_per_tenant integer)
returns table (task_id uuid, number integer, turn bigint)
language sql volatile security definer set search_path = pg_catalog, public as $$
    with recursive waiting (tenant_id) as (
        (select t.tenant_id from public.tasks t
         where t.queue = p_queue and t.status = 'queued' and t.dispatched_at is null
         order by t.tenant_id limit 1)
        union all
        select (select t.tenant_id from public.tasks t
                where t.queue = p_queue and t.status = 'queued' and t.dispatched_at is null
                    and t.tenant_id > w.tenant_id
                order by t.tenant_id limit 1)
        from waiting w where w.tenant_id is not null
    ),
    lying as materialized (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.queue = p_queue and t.status = 'queued' and t.dispatched_at is not null group by t.tenant_id
    ),
    running as materialized (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.queue = p_queue and t.status = 'running' group by t.tenant_id
    ),
    candidates as (
        select c.tenant_id, c.id, c.due_at,
            coalesce(l.n, 0) + coalesce(r.n, 0)
                + row_number() over (partition by c.tenant_id order by c.priority desc, c.due_at, c.id) as turn
        from waiting w
        join public.tenants o on o.id = w.tenant_id and o.status = 'active'
        left join lying l on l.tenant_id = w.tenant_id
        left join running r on r.tenant_id = w.tenant_id
        cross join lateral (
            select t.tenant_id, t.id, t.priority, t.due_at from public.tasks t
            where t.queue = p_queue and t.tenant_id = w.tenant_id
                and t.status = 'queued' and t.dispatched_at is null and t.due_at <= clock_timestamp()
            order by t.priority desc, t.due_at, t.id
            limit greatest(0, p_per_tenant - coalesce(l.n, 0))
        ) c
    ),
    chosen as (
        select c.tenant_id, c.id, c.turn from candidates c
        order by c.turn, c.due_at, c.id
        limit greatest(0, p_window - (select coalesce(sum(l.n), 0) from lying l))
    ),
    locked as (
        select t.tenant_id, t.id, c.turn
        from public.tasks t join chosen c on c.tenant_id = t.tenant_id and c.id = t.id
        where t.status = 'queued' and t.dispatched_at is null
        for update of t skip locked
    )
    update public.tasks t set dispatched_at = clock_timestamp(), dispatches = t.dispatches + 1
    from locked l where t.tenant_id = l.tenant_id and t.id = l.id
    returning t.id, t.dispatches, l.turn
$$;

-- Dispatched, and still nobody's after p_seconds: waiting its turn in Redis, or lost with Redis or with a worker.
create function unclaimed_v1(p_seconds double precision, p_limit integer)
returns table (queue text, task_id uuid, number integer)
language sql stable security definer set search_path = pg_catalog, public as $$
    select t.queue, t.id, t.dispatches from public.tasks t
    where t.status = 'queued' and t.dispatched_at < clock_timestamp() - make_interval(secs => p_seconds)
    order by t.dispatched_at limit p_limit
$$;

-- Gives those that Redis no longer has a new number, so that a late delivery of the old one is refused.
create function redispatch_v1(p_tasks uuid[], p_numbers integer[])
returns table (queue text, task_id uuid, number integer)
language sql volatile security definer set search_path = pg_catalog, public as $$
    with locked as (
        select t.tenant_id, t.id
        from unnest(p_tasks, p_numbers) as w (id, number)
        join public.tasks t on t.id = w.id and t.dispatches = w.number
        where t.id = any(p_tasks) and t.status = 'queued' and t.dispatched_at is not null
        for update of t skip locked
    )
    update public.tasks t set dispatched_at = clock_timestamp(), dispatches = t.dispatches + 1
    from locked l where t.tenant_id = l.tenant_id and t.id = l.id
    returning t.queue, t.id, t.dispatches
$$;

-- A worker takes tasks: queued becomes running under a lease and a new fence. A second delivery of the same number
-- finds nothing. A kind or version that the worker doesn't know goes back for others, with no attempt counted.
create function claim_v1(
    p_tasks uuid[], p_numbers integer[], p_worker text, p_lease double precision, p_kinds text[], p_versions integer[]
) returns table (
    tenant_id uuid, task_id uuid, kind text, version integer, queue text, priority smallint, stage text, progress real,
    user_id uuid, role text, request_id text, trace_id text, document_id uuid, content_id uuid, has_payload boolean,
    attempts integer, retry_count integer, max_retries integer, lost_leases integer, fence bigint,
    created_at timestamptz, started_at timestamptz
)
language sql volatile security definer set search_path = pg_catalog, public as $$
    with delivered as (
        select t.tenant_id, t.id, exists (
            select 1 from unnest(p_kinds, p_versions) as k (kind, version)
            where k.kind = t.kind and t.version <= k.version) as able
        from unnest(p_tasks, p_numbers) as w (id, number)
        join public.tasks t on t.id = w.id and t.dispatches = w.number
        where t.id = any(p_tasks) and t.status = 'queued' and t.dispatched_at is not null
        for update of t skip locked
    ),
    put_back as (
        update public.tasks t set dispatched_at = null, due_at = clock_timestamp() + interval '5 seconds'
        from delivered d where t.tenant_id = d.tenant_id and t.id = d.id and not d.able
    ),
    claimed as (
        update public.tasks t set
            status = 'running', stage = 'running', worker = p_worker, fence = t.fence + 1, attempts = t.attempts + 1,
            lease_until = clock_timestamp() + make_interval(secs => p_lease),
            started_at = coalesce(t.started_at, clock_timestamp())
        from delivered d where t.tenant_id = d.tenant_id and t.id = d.id and d.able
        returning t.*
    ),
    attempt as (
        insert into public.task_attempts (tenant_id, task_id, number, worker)
        select c.tenant_id, c.id, c.attempts, p_worker from claimed c
    )
    select c.tenant_id, c.id, c.kind, c.version, c.queue, c.priority, c.stage, c.progress,
        c.user_id, c.role, c.request_id, c.trace_id, c.document_id, c.content_id, c.payload <> '{}',
        c.attempts, c.retry_count, c.max_retries, c.lost_leases, c.fence, c.created_at, c.started_at
    from claimed c
$$;

-- Leases that ran out: queued again at once, or dead after p_poison workers were lost over the same task. Rows that
-- their worker has locked for a write are passed over. A server that has just started waits p_grace seconds first,
-- because nobody could renew a lease while it was down.
create function sweep_v1(p_poison integer, p_grace double precision)
returns table (tenant_id uuid, task_id uuid, status text)
language sql volatile security definer set search_path = pg_catalog, public as $$
    with lost as (
        select t.tenant_id, t.id, t.attempts, case
            when t.cancel_requested_at is not null then 'cancelled'
            when t.lost_leases + 1 >= p_poison then 'dead'
            else 'queued' end as next
        from public.tasks t
        where t.status = 'running' and t.lease_until < clock_timestamp()
            and pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => p_grace)
        for update of t skip locked
    ),
    attempt as (
        update public.task_attempts a set
            outcome = 'lost', finished_at = clock_timestamp(), error_code = 'task.lease_lost',
            error_message = 'The worker stopped answering.'
        from lost l where a.tenant_id = l.tenant_id and a.task_id = l.id and a.number = l.attempts
    ),
    swept as (
        update public.tasks t set
            status = l.next, stage = l.next, lost_leases = t.lost_leases + 1, worker = null, lease_until = null,
            dispatched_at = null, due_at = clock_timestamp(),
            finished_at = case when l.next <> 'queued' then clock_timestamp() end,
            error_code = case when l.next = 'dead' then 'task.poison' else 'task.lease_lost' end,
            error_message = case when l.next = 'dead'
                then 'Each worker that took this task was lost; look at what it works on before trying it again.'
                else 'The worker stopped answering; the task is tried again.' end
        from lost l where t.tenant_id = l.tenant_id and t.id = l.id
        returning t.tenant_id, t.id, t.kind, t.status, t.document_id, t.content_id, t.error_code
    ),
    -- The same shape as TaskFinished in internal/entities/events.py.
    event as (
        insert into public.outbox (tenant_id, id, kind, payload)
        select s.tenant_id, gen_random_uuid(), 'task.finished', jsonb_build_object(
            'version', 1, 'task_id', s.id, 'task_kind', s.kind, 'status', s.status,
            'document_id', s.document_id, 'content_id', s.content_id, 'error_code', s.error_code)
        from swept s where s.status <> 'queued'
    )
    select s.tenant_id, s.id, s.status from swept s
$$;

-- Gives new events their position within the tenant and returns what has not been handed on yet, oldest first.
-- Ids and created_at are assigned before commit and positions here, after it, so no reader can pass over an event.
create function publish_v1(p_limit integer)
returns table (tenant_id uuid, event_id uuid, kind text, event_position bigint)
language plpgsql volatile security definer set search_path = pg_catalog, public as $$
begin
    with fresh as (
        select o.tenant_id, o.id, o.created_at from public.outbox o
        where o.published_at is null and o.position is null
        order by o.created_at, o.id limit p_limit
        for update of o skip locked
    ),
    counted as (
        insert into public.outbox_positions as p (tenant_id, position)
        select f.tenant_id, count(*) from fresh f group by f.tenant_id
        on conflict on constraint outbox_positions_pkey do update set position = p.position + excluded.position
        returning p.tenant_id, p.position
    ),
    numbered as (
        select f.tenant_id, f.id, c.position - count(*) over (partition by f.tenant_id)
            + row_number() over (partition by f.tenant_id order by f.created_at, f.id) as position
        from fresh f join counted c on c.tenant_id = f.tenant_id
    )
    update public.outbox o set position = n.position
    from numbered n where o.tenant_id = n.tenant_id and o.id = n.id;
    return query
        select o.tenant_id, o.id, o.kind, o.position from public.outbox o
        where o.published_at is null and o.position is not null
        order by o.created_at, o.position limit p_limit;
end $$;

-- Marks events as handed on; whatever is not marked is handed on again.
create function published_v1(p_tenants uuid[], p_events uuid[]) returns bigint
language sql volatile security definer set search_path = pg_catalog, public as $$
    with marked as (
        update public.outbox o set published_at = clock_timestamp()
        from unnest(p_tenants, p_events) as e (tenant_id, id)
        where o.tenant_id = e.tenant_id and o.id = e.id and o.published_at is null
        returning 1
    )
    select count(*) from marked
$$;

-- How much waits, lies in Redis and runs, and how many seconds the oldest due task has waited.
create function depth_v1()
returns table (queue text, waiting bigint, dispatched bigint, running bigint, oldest_seconds double precision)
language sql stable security definer set search_path = pg_catalog, public as $$
    select t.queue,
        count(*) filter (where t.status = 'queued' and t.dispatched_at is null),
        count(*) filter (where t.status = 'queued' and t.dispatched_at is not null),
        count(*) filter (where t.status = 'running'),
        coalesce(extract(epoch from clock_timestamp() - min(t.due_at) filter (
            where t.status = 'queued' and t.due_at <= clock_timestamp())), 0)::double precision
    from public.tasks t where t.status in ('queued', 'running') group by t.queue
$$;

-- The caller's tenant alone, but all of its tasks: a member may not see them and yet must be told that they are many.
create function unfinished_v1(p_limit bigint) returns bigint
language sql stable security definer set search_path = pg_catalog, public as $$
    select count(*) from (
        select 1 from public.tasks t
        where t.tenant_id = public.app_tenant() and t.status in ('queued', 'running') limit p_limit
    ) counted
$$;

-- Forgets answers to repeated requests and events that everybody has long heard; p_limit rows of each at a time.
create function janitor_v1(p_keys interval, p_events interval, p_limit integer)
returns table (keys bigint, events bigint)
language sql volatile security definer set search_path = pg_catalog, public as $$
    with old_keys as (
        delete from public.idempotency_keys k where (k.tenant_id, k.user_id, k.key) in (
            select o.tenant_id, o.user_id, o.key from public.idempotency_keys o
            where o.created_at < clock_timestamp() - p_keys limit p_limit)
        returning 1
    ),
    old_events as (
        delete from public.outbox e where (e.tenant_id, e.id) in (
            select o.tenant_id, o.id from public.outbox o
            where o.published_at < clock_timestamp() - p_events limit p_limit)
        returning 1
    )
    select (select count(*) from old_keys), (select count(*) from old_events)
$$;

grant execute on function claim_v1(uuid[], integer[], text, double precision, text[], integer[]) to dreamhub_worker;
grant execute on function
    dispatch_v1(text, integer, integer), unclaimed_v1(double precision, integer), redispatch_v1(uuid[], integer[]),
    sweep_v1(integer, double precision), publish_v1(integer), published_v1(uuid[], uuid[]),
    janitor_v1(interval, interval, integer)
    to dreamhub_relay;
grant execute on function depth_v1() to dreamhub_app, dreamhub_worker, dreamhub_relay;
grant execute on function unfinished_v1(bigint) to dreamhub_app, dreamhub_worker;

grant create on schema public to dreamhub_directory;
alter function claim_v1(uuid[], integer[], text, double precision, text[], integer[]) owner to dreamhub_directory;
alter function dispatch_v1(text, integer, integer) owner to dreamhub_directory;
alter function unclaimed_v1(double precision, integer) owner to dreamhub_directory;
alter function redispatch_v1(uuid[], integer[]) owner to dreamhub_directory;
alter function sweep_v1(integer, double precision) owner to dreamhub_directory;
alter function publish_v1(integer) owner to dreamhub_directory;
alter function published_v1(uuid[], uuid[]) owner to dreamhub_directory;
alter function depth_v1() owner to dreamhub_directory;
alter function unfinished_v1(bigint) owner to dreamhub_directory;
alter function janitor_v1(interval, interval, integer) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
