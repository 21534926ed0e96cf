-- Why a task waits and for how long.

-- Where a queued task of the caller's tenant stands. Of other tenants nothing comes out but one count: how many of their
-- tasks will have their turn before this one's, going by weights. `own_seconds` is the work in the tenant's own tasks
-- ahead, by what tasks of their kind and size take (p_kinds, p_classes, p_seconds; p_usual for those that aren't named),
-- judged by the first two hundred. Counts of others stop at five thousand a tenant, so that asking stays cheap.
create function standing_v1(
    p_task uuid, p_kinds text[], p_classes integer[], p_seconds double precision[], p_bounds bigint[],
    p_usual double precision
) returns table (own bigint, own_seconds double precision, others bigint, running bigint, urgent bigint)
language sql stable security definer set search_path = pg_catalog, public
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off
as $$
    with recursive me as materialized (
        select t.queue, t.tenant_id, t.priority, t.due_at, t.id, t.dispatched_at, o.queue_weight as weight
        from public.tasks t join public.tenants o on o.id = t.tenant_id
        where t.tenant_id = public.app_tenant() and t.id = p_task and t.status = 'queued'
    ),
    tenants_waiting (tenant_id) as (
        (select t.tenant_id from public.tasks t
         where t.queue = (select m.queue from me m) and t.status = 'queued' and t.dispatched_at is null
         order by t.tenant_id limit 1)
        union all
        select n.tenant_id from tenants_waiting w cross join lateral (
            select t.tenant_id from public.tasks t
            where t.queue = (select m.queue from me m) and t.status = 'queued' and t.dispatched_at is null
                and t.tenant_id > w.tenant_id
            order by t.tenant_id limit 1
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
            + (select count(*) from public.tasks t
                where t.queue = m.queue and t.tenant_id = m.tenant_id and t.status = 'queued'
                and t.dispatched_at is null and m.dispatched_at is null and t.due_at <= statement_timestamp()
                and (t.priority > m.priority or (t.priority = m.priority and (t.due_at, t.id) < (m.due_at, m.id))))
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
            select 1 from public.tasks t
            where t.status = 'queued' and t.due_at <= statement_timestamp()
                and t.queue = any (case (select m.queue from me m)
                    when 'default' then array['high_priority'] when 'batch' then array['high_priority', 'default']
                    when 'learning' then array['high_priority', 'default', 'batch'] else array[]::text[] end)
            limit 5000) counted)
    from mine i
$$;

grant execute on function standing_v1(uuid, text[], integer[], double precision[], bigint[], double precision)
    to dreamhub_app;
grant create on schema public to dreamhub_directory;
alter function standing_v1(uuid, text[], integer[], double precision[], bigint[], double precision)
    owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
