-- Whether this is still a member's password, asked by a sign-in that has compared it: that takes so long that the
-- password may have been set anew meanwhile. Until the transaction ends nobody sets it, ends the member's sign-ins or takes the
-- member out. The lock comes first, and the statement after it sees what whoever held the lock has committed.
create function confirm_sign_in_v1(p_user uuid, p_password_hash text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, public as $$
begin
    perform public.lock_sign_ins_v1(public.app_tenant(), p_user);
    perform 1 from public.memberships
        where tenant_id = public.app_tenant() and user_id = p_user and password_hash = p_password_hash for key share;
    return found;
end $$;
grant execute on function confirm_sign_in_v1(uuid, text) to dreamhub_app;

grant create on schema public to dreamhub_directory;
alter function confirm_sign_in_v1(uuid, text) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
