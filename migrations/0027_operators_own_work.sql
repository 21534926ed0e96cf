-- The operator's own tasks, in whose user's place the tenant's id stands, are no tenant's fault: they take none of its
-- room in the queues, they don't make it look faster than it is, and it isn't alarmed of what it can't see.

-- As unfinished_v1 in 0005_ledger.sql.
create function unfinished_v2(p_limit bigint) returns bigint
language sql stable security definer set search_path = pg_catalog, public as $$
    select count(*) from (
        select 1 from public.tasks t
        where t.tenant_id = public.app_tenant() and t.status in ('queued', 'running') and t.user_id <> t.tenant_id
        limit p_limit
    ) counted
$$;

-- As pace_v1 in 0015_fair_queues.sql.
create function pace_v2(p_limit integer) returns table (ended bigint, seconds double precision)
language sql stable security definer set search_path = pg_catalog, public as $$
    select count(*), coalesce(extract(epoch from clock_timestamp() - min(e.created_at)), 0)::double precision
    from (
        select o.kind, o.created_at, (o.payload ->> 'task_id')::uuid as task_id from public.outbox o
        where o.tenant_id = public.app_tenant() and o.position is not null
        order by o.position desc limit p_limit
    ) e where e.kind = 'task.finished' and e.created_at > clock_timestamp() - interval '10 minutes'
        and not exists (
            select 1 from public.tasks t
            where t.tenant_id = public.app_tenant() and t.id = e.task_id and t.user_id = t.tenant_id)
$$;

-- As pressed_tenants_v1 in 0018_self_healing.sql.
create function pressed_tenants_v2(p_unfinished bigint, p_dead bigint, p_seconds double precision)
returns table (tenant_id uuid, unfinished bigint, dead bigint)
language sql stable security definer set search_path = pg_catalog, public as $$
    select coalesce(u.tenant_id, d.tenant_id), coalesce(u.n, 0), coalesce(d.n, 0)
    from (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.status in ('queued', 'running') and t.user_id <> t.tenant_id
        group by t.tenant_id having count(*) >= p_unfinished
    ) u
    full join (
        select t.tenant_id, count(*) as n from public.tasks t
        where t.status = 'dead' and t.finished_at > clock_timestamp() - make_interval(secs => p_seconds)
            and t.user_id <> t.tenant_id
        group by t.tenant_id having count(*) >= p_dead
    ) d on d.tenant_id = u.tenant_id
$$;

-- As raise_alert_v1 in 0018_self_healing.sql.
create function raise_alert_v2(p_name text, p_severity text, p_event text, p_tenants uuid[], p_queues text[])
returns bigint
language sql volatile security definer set search_path = pg_catalog, public as $$
    with raised as (
        insert into public.alerts as a (tenant_id, name, severity)
        select o.id, p_name, p_severity from public.tenants o
        where o.status = 'active' and (p_tenants is null or o.id = any(p_tenants))
            and (p_queues is null or exists (
                select 1 from public.tasks t
                where t.tenant_id = o.id and t.queue = any(p_queues) and t.status in ('queued', 'running')
                    and t.user_id <> t.tenant_id))
        on conflict on constraint alerts_pkey do nothing
        returning a.tenant_id
    ),
    event as (
        insert into public.outbox (tenant_id, id, kind, payload)
        select r.tenant_id, gen_random_uuid(), 'alert.raised', p_event::jsonb from raised r
    )
    select count(*) from raised
$$;

grant execute on function unfinished_v2(bigint), pace_v2(integer) to dreamhub_app, dreamhub_worker;
grant execute on function
    pressed_tenants_v2(bigint, bigint, double precision), raise_alert_v2(text, text, text, uuid[], text[])
    to dreamhub_relay;

grant create on schema public to dreamhub_directory;
alter function unfinished_v2(bigint) owner to dreamhub_directory;
alter function pace_v2(integer) owner to dreamhub_directory;
alter function pressed_tenants_v2(bigint, bigint, double precision) owner to dreamhub_directory;
alter function raise_alert_v2(text, text, text, uuid[], text[]) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
