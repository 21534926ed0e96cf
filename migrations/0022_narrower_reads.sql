-- Reads that walked through more rows than they were asked about, and an end that nobody was told of. From here on no
-- function is replaced in place, as 0010_sign_ins.sql did once: a changed one is a new version.

-- As standing_v1 in 0016_forecasts.sql, but urgent queues are counted along the indexes of what waits and of what is
-- dispatched: v1 walked through all that is unfinished. And what waits is always read in an order that only its index
-- has: where most tenants have few tasks, every other index that begins with the tenant seems as good to the planner.
-- Three counts are of all tenants together: how many tasks of others have their turn before this one, how many of the
-- queue run, and how many wait in urgent queues.
create function standing_v2(
    p_task uuid, p_kinds text[], p_classes integer[], p_seconds double precision[], p_bounds bigint[],
    p_usual double precision
) returns table (own bigint, own_seconds double precision, others bigint, running bigint, urgent bigint)
language sql stable security definer set search_path = pg_catalog, public
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set enable_sort = off set enable_incremental_sort = off
as $$
    with recursive me as materialized (
        select t.queue, t.tenant_id, t.priority, t.due_at, t.id, t.dispatched_at, o.queue_weight as weight
        from public.tasks t join public.tenants o on o.id = t.tenant_id
        where t.tenant_id = public.app_tenant() and t.id = p_task and t.status = 'queued'
    ),
    more_urgent as materialized (
        select case m.queue
            when 'default' then array['high_priority'] when 'batch' then array['high_priority', 'default']
            when 'learning' then array['high_priority', 'default', 'batch'] else array[]::text[] end as queues
        from me m
    ),
    tenants_waiting (tenant_id) as (
        (select t.tenant_id from public.tasks t
         where t.queue = (select m.queue from me m) and t.status = 'queued' and t.dispatched_at is null
         order by t.tenant_id, t.priority desc, t.due_at limit 1)
        union all
        select n.tenant_id from tenants_waiting w cross join lateral (
            select t.tenant_id from public.tasks t
            where t.queue = (select m.queue from me m) and t.status = 'queued' and t.dispatched_at is null
                and t.tenant_id > w.tenant_id
            order by t.tenant_id, t.priority desc, t.due_at limit 1
        ) n
    ),
    lying as materialized (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.queue = (select m.queue from me m) and t.status = 'queued' and t.dispatched_at is not null
            and t.dispatched_at < coalesce((select m.dispatched_at from me m), 'infinity')
        group by t.tenant_id
    ),
    at_work as materialized (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.queue = (select m.queue from me m) and t.status = 'running' group by t.tenant_id
    ),
    before_me as materialized (
        select t.kind, t.size from me m cross join lateral (
            select t.kind, t.size from public.tasks t
            where t.queue = m.queue and t.tenant_id = m.tenant_id and t.status = 'queued' and t.dispatched_at is null
                and m.dispatched_at is null and t.due_at <= statement_timestamp()
                and (t.priority > m.priority or (t.priority = m.priority and (t.due_at, t.id) < (m.due_at, m.id)))
            order by t.priority desc, t.due_at, t.id limit 200
        ) t
    ),
    mine as materialized (
        select m.tenant_id, m.weight, coalesce((select l.n from lying l where l.tenant_id = m.tenant_id), 0)
            + (select count(*) from (
                select 1 from public.tasks t
                where t.queue = m.queue and t.tenant_id = m.tenant_id and t.status = 'queued'
                    and t.dispatched_at is null and m.dispatched_at is null and t.due_at <= statement_timestamp()
                    and (t.priority > m.priority or (t.priority = m.priority and (t.due_at, t.id) < (m.due_at, m.id)))
                order by t.priority desc, t.due_at, t.id) counted)
            as ahead,
            coalesce((select r.n from at_work r where r.tenant_id = m.tenant_id), 0) as running
        from me m
    ),
    turns as materialized (
        select o.id as tenant_id,
            floor((i.running + i.ahead + 1)::double precision / i.weight * o.queue_weight)
                - coalesce((select r.n from at_work r where r.tenant_id = o.id), 0) as turns,
            coalesce((select l.n from lying l where l.tenant_id = o.id), 0) as lying
        from mine i cross join (
            select w.tenant_id from tenants_waiting w union select l.tenant_id from lying l
        ) w join public.tenants o on o.id = w.tenant_id and o.status = 'active'
        where w.tenant_id <> i.tenant_id
    ),
    passing as materialized (
        select least(u.turns, u.lying + case when c.n < 5000 then c.n::double precision else u.turns end) as n
        from turns u cross join lateral (
            select count(*) as n from (
                select 1 from public.tasks t
                where t.queue = (select m.queue from me m) and t.tenant_id = u.tenant_id and t.status = 'queued'
                    and t.dispatched_at is null and t.due_at <= statement_timestamp()
                    and (select m.dispatched_at is null from me m)
                order by t.priority desc, t.due_at, t.id
                limit greatest(0, least(5000, u.turns))::bigint
            ) counted
        ) c where u.turns > 0
    )
    select i.ahead,
        i.ahead * coalesce((select avg(coalesce(k.seconds, p_usual)) from before_me b left join lateral (
            select k.seconds from unnest(p_kinds, p_classes, p_seconds) as k (kind, class, seconds)
            where k.kind = b.kind and k.class = width_bucket(b.size, p_bounds) limit 1) k on true), p_usual),
        coalesce((select sum(p.n) from passing p), 0)::bigint,
        coalesce((select sum(r.n) from at_work r), 0)::bigint,
        (select count(*) from (
            (select 1 from public.tasks t
             where t.queue = any ((select u.queues from more_urgent u)::text[]) and t.status = 'queued'
                and t.dispatched_at is null and t.due_at <= statement_timestamp() limit 5000)
            union all
            (select 1 from public.tasks t
             where t.queue = any ((select u.queues from more_urgent u)::text[]) and t.status = 'queued'
                and t.dispatched_at is not null and t.due_at <= statement_timestamp() limit 5000)
            limit 5000) counted)
    from mine i
$$;


grant execute on function standing_v2(uuid, text[], integer[], double precision[], bigint[], double precision)
    to dreamhub_app;

-- As expire_dead_v1 in 0007_dead_letters.sql, but followers are told, as they are when somebody discards a dead letter.
create function expire_dead_v2(p_age interval, p_limit integer) returns bigint
language sql volatile security definer set search_path = pg_catalog, public as $$
    with old as (
        select t.tenant_id, t.id from public.tasks t
        where t.status = 'dead' and t.finished_at < clock_timestamp() - p_age
        order by t.finished_at limit p_limit
        for update of t skip locked
    ),
    expired as (
        update public.tasks t set status = 'failed', stage = 'failed'
        from old o where t.tenant_id = o.tenant_id and t.id = o.id
        returning t.tenant_id, t.id, t.kind, t.status, t.document_id, t.content_id, t.error_code
    ),
    -- The same shape as TaskFinished in internal/entities/events.py.
    event as (
        insert into public.outbox (tenant_id, id, kind, payload)
        select e.tenant_id, gen_random_uuid(), 'task.finished', jsonb_build_object(
            'version', 1, 'task_id', e.id, 'task_kind', e.kind, 'status', e.status,
            'document_id', e.document_id, 'content_id', e.content_id, 'error_code', e.error_code)
        from expired e
    )
    select count(*) from expired
$$;
grant execute on function expire_dead_v2(interval, integer) to dreamhub_relay;

grant create on schema public to dreamhub_directory;
alter function standing_v2(uuid, text[], integer[], double precision[], bigint[], double precision)
    owner to dreamhub_directory;
alter function expire_dead_v2(interval, integer) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;

-- A user's own unfinished tasks are found without those of the colleagues.
create index tasks_unfinished_of_user on tasks (tenant_id, queue, user_id) where status in ('queued', 'running');
drop index tasks_unfinished;
