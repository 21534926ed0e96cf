-- Passwords belong to memberships. A user is global, and a tenant's admin sets passwords there: with one password for
-- all tenants, whoever registers an address first could later sign in to any tenant that adds the same address.

alter table memberships add column password_hash text;

drop function auth_api_key_v1(bytea);
drop function auth_user_v1(text);
drop function create_tenant_v1(uuid, text, uuid, text, text, uuid, bytea, text);
drop function add_member_v1(uuid, text, text, text);
alter table users drop column password_hash;

revoke select on memberships from dreamhub_app, dreamhub_worker;
grant select (tenant_id, user_id, role, created_at) on memberships to dreamhub_app, dreamhub_worker;
grant update, delete on memberships to dreamhub_directory;

-- Who holds this key? The caller knows the secret, so it may learn whose it is; nothing else comes out. A key never
-- does more than its holder may do today.
create function auth_api_key_v2(p_hash bytea)
returns table (tenant_id uuid, user_id uuid, key_id uuid, role text, expires_at timestamptz)
language sql stable security definer set search_path = pg_catalog, public as $$
    select k.tenant_id, k.user_id, k.id,
        case when array_position(ranks.names, k.role) > array_position(ranks.names, m.role) then k.role else m.role end,
        k.expires_at
    from public.api_keys k
    join public.memberships m on m.tenant_id = k.tenant_id and m.user_id = k.user_id
    join public.tenants t on t.id = k.tenant_id and t.status = 'active'
    cross join (select array['owner', 'admin', 'member', 'viewer'] as names) ranks
    where k.hash = p_hash and k.revoked_at is null and (k.expires_at is null or k.expires_at > now())
$$;

-- A sign-in: for one e-mail address, the tenants to choose from and the password's hash in each.
create function auth_user_v2(p_email text)
returns table (user_id uuid, tenant_id uuid, tenant_name text, password_hash text)
language sql stable security definer set search_path = pg_catalog, public as $$
    select m.user_id, m.tenant_id, t.name, m.password_hash
    from public.users u
    join public.memberships m on m.user_id = u.id
    join public.tenants t on t.id = m.tenant_id and t.status = 'active'
    where u.email = lower(p_email)
    order by m.created_at, m.tenant_id
$$;

-- The platform's only way to make a tenant: with its owner and a first key.
create function create_tenant_v2(
    p_tenant uuid, p_name text, p_user uuid, p_email text, p_password_hash text, p_key uuid, p_key_hash bytea, p_prefix text
) returns uuid
language plpgsql security definer set search_path = pg_catalog, public as $$
declare owner_id uuid;
begin
    insert into public.users (id, email) values (p_user, lower(p_email)) on conflict (email) do nothing;
    select u.id into strict owner_id from public.users u where u.email = lower(p_email);
    insert into public.tenants (id, name) values (p_tenant, p_name);
    insert into public.memberships (tenant_id, user_id, role, password_hash)
        values (p_tenant, owner_id, 'owner', p_password_hash);
    insert into public.api_keys (tenant_id, id, user_id, name, role, hash, prefix)
        values (p_tenant, p_key, owner_id, 'first key', 'owner', p_key_hash, p_prefix);
    return owner_id;
end $$;

-- Members are added by their tenant's own admins: the tenant comes from the setting, the user may exist already.
-- Answers null for somebody who is a member already.
create function add_member_v2(p_user uuid, p_email text, p_password_hash text, p_role text) returns uuid
language plpgsql security definer set search_path = pg_catalog, public as $$
declare member_id uuid;
begin
    if public.app_tenant() is null then
        raise exception 'no tenant is set' using errcode = '42501';
    end if;
    insert into public.users (id, email) values (p_user, lower(p_email)) on conflict (email) do nothing;
    select u.id into strict member_id from public.users u where u.email = lower(p_email);
    insert into public.memberships (tenant_id, user_id, role, password_hash)
        values (public.app_tenant(), member_id, p_role, p_password_hash)
        on conflict (tenant_id, user_id) do nothing;
    return case when found then member_id end;
end $$;

-- Changes what isn't null. A new password ends the sign-ins made with the old one. False: the tenant's last owner
-- would stop being one. The locks make two owners who demote each other wait for one another.
create function set_member_v1(p_user uuid, p_role text, p_password_hash text) returns boolean
language plpgsql security definer set search_path = pg_catalog, public as $$
begin
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

-- Takes a member out, with their keys and sign-ins. False for the tenant's last owner.
create function remove_member_v1(p_user uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, public as $$
begin
    perform 1 from public.memberships where tenant_id = public.app_tenant() and role = 'owner' order by user_id for update;
    if not exists (
        select 1 from public.memberships
        where tenant_id = public.app_tenant() and role = 'owner' and user_id <> p_user) then
        return false;
    end if;
    delete from public.memberships where tenant_id = public.app_tenant() and user_id = p_user;
    return true;
end $$;

grant execute on function
    auth_api_key_v2(bytea), auth_user_v2(text), add_member_v2(uuid, text, text, text),
    create_tenant_v2(uuid, text, uuid, text, text, uuid, bytea, text), set_member_v1(uuid, text, text),
    remove_member_v1(uuid)
    to dreamhub_app;

grant create on schema public to dreamhub_directory;
alter function auth_api_key_v2(bytea) owner to dreamhub_directory;
alter function auth_user_v2(text) owner to dreamhub_directory;
alter function add_member_v2(uuid, text, text, text) owner to dreamhub_directory;
alter function create_tenant_v2(uuid, text, uuid, text, text, uuid, bytea, text) owner to dreamhub_directory;
alter function set_member_v1(uuid, text, text) owner to dreamhub_directory;
alter function remove_member_v1(uuid) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
