-- What may follow what is decided here for every writer: the application, the ledger's functions, and people with psql.
-- The same table as TRANSITIONS in internal/entities/tasks.py, which a test compares with it.

create function check_task_transition() returns trigger
language plpgsql set search_path = pg_catalog as $$
begin
    if not (case old.status
        when 'queued' then new.status in ('running', 'cancelled')
        when 'running' then new.status in ('queued', 'succeeded', 'failed', 'dead', 'cancelled')
        when 'failed' then new.status = 'queued'
        when 'dead' then new.status in ('queued', 'failed')
        when 'cancelled' then new.status = 'queued'
        else false
    end) then
        raise exception 'a task that is % can not become %', old.status, new.status using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger tasks_transition before update of status on tasks
    for each row when (old.status <> new.status) execute function check_task_transition();

create index tasks_dead on tasks (tenant_id, id) where status = 'dead';
create index tasks_dead_since on tasks (finished_at) where status = 'dead';

-- Dead letters that nobody has looked after for so long are given up: their tasks have failed. At most p_limit at a time.
create function expire_dead_v1(p_age interval, p_limit integer) returns bigint
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
        returning 1
    )
    select count(*) from expired
$$;

grant execute on function expire_dead_v1(interval, integer) to dreamhub_relay;
grant create on schema public to dreamhub_directory;
alter function expire_dead_v1(interval, integer) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
