-- Dispatching, claiming and ending as in 0005_ledger.sql, for thousands of tasks a second. The ledger's rows change
-- faster than its statistics, and a planner that believes a partial index of these to be empty reads all of it for
-- each row: quadratic, a second for 256 of 4,000 waiting tasks. So these functions leave it no choice: rows are
-- locked by their id alone, with whatever else must be true asked afterwards, and joins look up one row at a time;
-- `is not distinct from` keeps other indexes that begin with the tenant out. Such a plan is always the same, and so
-- it is made once for each connection.

create function dispatch_v2(p_queue text, p_window integer, p_per_tenant integer)
returns table (task_id uuid, number integer, turn bigint)
language sql volatile security definer set search_path = pg_catalog, public
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
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
    chosen as materialized (
        select c.tenant_id, c.id, c.turn from candidates c
        order by c.turn, c.due_at, c.id
        limit greatest(0, p_window - (select coalesce(sum(l.n), 0) from lying l))
    ),
    locked as materialized (
        select t.tenant_id, t.id, t.status, t.dispatched_at, c.turn
        from chosen c join public.tasks t on t.id = c.id and t.tenant_id is not distinct from c.tenant_id
        for update of t skip locked
    )
    update public.tasks t set dispatched_at = clock_timestamp(), dispatches = t.dispatches + 1
    from locked l
    where t.id = l.id and t.tenant_id is not distinct from l.tenant_id
        and l.status = 'queued' and l.dispatched_at is null
    returning t.id, t.dispatches, l.turn
$$;

create function claim_v2(
    p_tasks uuid[], p_numbers integer[], p_worker text, p_lease double precision, p_kinds text[], p_versions integer[]
) returns table (
    tenant_id uuid, task_id uuid, kind text, version integer, queue text, priority smallint, stage text, progress real,
    user_id uuid, role text, request_id text, trace_id text, document_id uuid, content_id uuid, has_payload boolean,
    attempts integer, retry_count integer, max_retries integer, lost_leases integer, fence bigint,
    created_at timestamptz, started_at timestamptz
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
        update public.tasks t set dispatched_at = null, due_at = clock_timestamp() + interval '5 seconds'
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
        c.attempts, c.retry_count, c.max_retries, c.lost_leases, c.fence, c.created_at, c.started_at
    from claimed c
$$;

-- Leases given back, of all tenants in one statement: task, attempt and event. Only what is still running under the
-- given fence. A finished task's event is TaskFinished. It doesn't wake the relay: with a notification in each of many
-- small transactions, commits would stand in line for one lock. A task that was to be cancelled isn't queued again:
-- nobody might look at it for as long as its backoff.
create function end_v1(
    p_tenants uuid[], p_tasks uuid[], p_fences bigint[], p_statuses text[], p_outcomes text[], p_results text[],
    p_codes text[], p_messages text[], p_tries integer[], p_delays double precision[], p_event_ids uuid[],
    p_events text[]
) returns table (task_id uuid, fence bigint)
language sql volatile security definer set search_path = pg_catalog, public
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
    with given as materialized (
        select g.* from unnest(
            p_tenants, p_tasks, p_fences, p_statuses, p_outcomes, p_results,
            p_codes, p_messages, p_tries, p_delays, p_event_ids, p_events)
        as g (tenant_id, id, fence, status, outcome, result, code, message, tries, delay, event_id, event)
    ),
    locked as materialized (
        select t.status as held, t.fence as held_fence, g.*,
            case when g.status = 'queued' and t.cancel_requested_at is not null then 'cancelled' else g.status end
                as next
        from given g join public.tasks t on t.id = g.id and t.tenant_id is not distinct from g.tenant_id
        for update of t
    ),
    ended as (
        update public.tasks t set
            status = l.next, stage = case when l.next = 'queued' and l.outcome = 'held' then 'held' else l.next end,
            progress = case when l.status = 'succeeded' then 1 else t.progress end, result = l.result::jsonb,
            error_code = l.code, error_message = l.message, retry_count = t.retry_count + l.tries,
            due_at = clock_timestamp() + make_interval(secs => l.delay),
            finished_at = case when l.next <> 'queued' then clock_timestamp() end,
            worker = null, lease_until = null, dispatched_at = null
        from locked l
        where t.id = l.id and t.tenant_id is not distinct from l.tenant_id
            and l.held = 'running' and l.held_fence = l.fence
        returning t.tenant_id, t.id, t.fence, t.attempts, t.status, l.outcome, l.code, l.message, l.event_id, l.event
    ),
    attempt as (
        update public.task_attempts a set
            outcome = e.outcome, finished_at = clock_timestamp(), error_code = e.code, error_message = e.message
        from ended e where a.tenant_id = e.tenant_id and a.task_id = e.id and a.number = e.attempts
    ),
    event as (
        insert into public.outbox (tenant_id, id, kind, payload)
        select e.tenant_id, e.event_id, 'task.finished', e.event::jsonb || jsonb_build_object('status', e.status)
        from ended e where e.status <> 'queued'
    )
    select e.id, e.fence from ended e
$$;

grant execute on function
    claim_v2(uuid[], integer[], text, double precision, text[], integer[]),
    end_v1(
        uuid[], uuid[], bigint[], text[], text[], text[], text[], text[], integer[], double precision[], uuid[], text[])
    to dreamhub_worker;
grant execute on function dispatch_v2(text, integer, integer) to dreamhub_relay;
grant create on schema public to dreamhub_directory;
alter function dispatch_v2(text, integer, integer) owner to dreamhub_directory;
alter function claim_v2(uuid[], integer[], text, double precision, text[], integer[]) owner to dreamhub_directory;
alter function end_v1(
    uuid[], uuid[], bigint[], text[], text[], text[], text[], text[], integer[], double precision[], uuid[], text[])
    owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
