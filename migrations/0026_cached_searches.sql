-- What a remembered search depends on besides its words: the tenant's data version, and whether the asker owns
-- documents, and so sees others, or the same ones otherwise. One round trip, as a search is.
create function cache_scope_v1(p_tenant uuid, p_user uuid) returns table (data_version bigint, owns boolean)
language plpgsql volatile set search_path = pg_catalog, public as $$
begin
    perform set_config('app.tenant_id', p_tenant::text, true), set_config('app.user_id', p_user::text, true);
    return query select coalesce((select s.data_version from tenant_statistics s where s.tenant_id = p_tenant), 0),
        exists (select 1 from documents d where d.tenant_id = p_tenant and d.owner_id = p_user);
end $$;
grant execute on function cache_scope_v1 to dreamhub_app;

-- Whoever changes what a search may answer raises the data version, first, in the order in which publications lock.
-- These see to it where that is forgotten. A document without a generation is in no search.
create function documents_changed() returns trigger language plpgsql set search_path = pg_catalog, public as $$
begin
    update tenant_statistics s set data_version = s.data_version + 1
    where s.tenant_id in (select c.tenant_id from changed c where c.generation_id is not null);
    return null;
end $$;
create function data_changed() returns trigger language plpgsql set search_path = pg_catalog, public as $$
begin
    update tenant_statistics s set data_version = s.data_version + 1
    where s.tenant_id in (select c.tenant_id from changed c);
    return null;
end $$;
create trigger documents_inserted after insert on documents referencing new table as changed
    for each statement execute function documents_changed();
create trigger documents_deleted after delete on documents referencing old table as changed
    for each statement execute function documents_changed();
create trigger documents_updated after update on documents referencing new table as changed
    for each statement execute function data_changed();
create trigger collections_updated after update on collections referencing new table as changed
    for each statement execute function data_changed();
create trigger collections_deleted after delete on collections referencing old table as changed
    for each statement execute function data_changed();
