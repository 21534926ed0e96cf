-- As sweep_v1 in 0005_ledger.sql, but a lost task keeps its due_at, and with it its place: it was its tenant's turn
-- once already. With a new due_at it would stand behind all that has come since, minutes away from being resumed.
create function sweep_v2(p_poison integer, p_grace double precision)
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
            dispatched_at = null,
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

grant execute on function sweep_v2(integer, double precision) to dreamhub_relay;
grant create on schema public to dreamhub_directory;
alter function sweep_v2(integer, double precision) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
