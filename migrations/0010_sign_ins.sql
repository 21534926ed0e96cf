-- Whatever makes, uses up or ends refresh tokens of one member waits for whoever came first, until that commits. Locks
-- on the tokens' rows are not enough: a statement sees no token that a refresh makes after the statement has begun.
create function lock_sign_ins_v1(p_tenant uuid, p_user uuid) returns void
language sql volatile set search_path = pg_catalog, public as $$
    select pg_advisory_xact_lock(hashtextextended('sign-ins ' || p_tenant || ' ' || p_user, 0))
$$;
grant execute on function lock_sign_ins_v1(uuid, uuid) to dreamhub_app, dreamhub_directory;

-- As before, but a refresh under way can't leave a token behind that was made with the old password. This lock comes
-- first: a refresh holds it when it asks for the membership, which owners are locked by here.
grant create on schema public to dreamhub_directory;
set local role dreamhub_directory;
create or replace function set_member_v1(p_user uuid, p_role text, p_password_hash text) returns boolean
language plpgsql security definer set search_path = pg_catalog, public as $$
begin
    perform public.lock_sign_ins_v1(public.app_tenant(), p_user);
    perform 1 from public.memberships where tenant_id = public.app_tenant() and role = 'owner' order by user_id for update;
    if p_role <> 'owner' and not exists (
        select 1 from public.memberships
        where tenant_id = public.app_tenant() and role = 'owner' and user_id <> p_user) then
        return false;
    end if;
    update public.memberships
        set role = coalesce(p_role, role), password_hash = coalesce(p_password_hash, password_hash)
        where tenant_id = public.app_tenant() and user_id = p_user;
    if p_password_hash is not null then
        delete from public.refresh_tokens where tenant_id = public.app_tenant() and user_id = p_user;
    end if;
    return true;
end $$;
reset role;
revoke create on schema public from dreamhub_directory;
