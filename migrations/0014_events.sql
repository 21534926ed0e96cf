-- Events are read by the people of a tenant now, so their rows are seen as the REST API shows what they tell of: through
-- the event's task, which is its user's, through its document, or because the event is meant for everyone of the tenant.
-- A payload holds `visibility` where what it tells of can't be looked at any more, or never could.
drop policy tenant on outbox;
create policy reader on outbox to dreamhub_app
    using (tenant_id = app_tenant() and (
        payload ->> 'visibility' = 'tenant'
        or exists (select 1 from tasks t
            where t.tenant_id = outbox.tenant_id and t.id = (outbox.payload ->> 'task_id')::uuid)
        or exists (select 1 from documents d
            where d.tenant_id = outbox.tenant_id and d.id = (outbox.payload ->> 'document_id')::uuid)))
    with check (tenant_id = app_tenant());
create policy tenant on outbox to dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());

-- Where the caller's tenant's events begin and end, the invisible ones too: who reads must know how far it has read.
-- Those handed on longer than p_kept ago may be forgotten at any moment and don't count.
create function event_positions_v1(p_kept interval) returns table (oldest bigint, newest bigint)
language sql stable security definer set search_path = pg_catalog, public as $$
    select
        (select o.position from public.outbox o
         where o.tenant_id = public.app_tenant() and o.position is not null
            and (o.published_at is null or o.published_at > clock_timestamp() - p_kept)
         order by o.position limit 1),
        coalesce((select p.position from public.outbox_positions p where p.tenant_id = public.app_tenant()), 0)
$$;

grant execute on function event_positions_v1(interval) to dreamhub_app;

grant create on schema public to dreamhub_directory;
alter function event_positions_v1(interval) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
