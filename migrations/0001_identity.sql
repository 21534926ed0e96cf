-- Tenants, users, memberships, credentials. Users are global; everything else names its tenant in every key.
-- Roles are made by the bootstrap step (internal/repositories/migrate.py), which is the only one that needs a superuser.

alter default privileges revoke execute on functions from public;

create function app_tenant() returns uuid language sql stable parallel safe as
$$ select nullif(current_setting('app.tenant_id', true), '')::uuid $$;

create function app_user() returns uuid language sql stable parallel safe as
$$ select nullif(current_setting('app.user_id', true), '')::uuid $$;

create table tenants (
    id uuid primary key,
    name text not null check (length(name) between 1 and 200),
    status text not null default 'active' check (status in ('active', 'suspended')),
    created_at timestamptz not null default now()
);

create table users (
    id uuid primary key,
    email text not null unique check (email = lower(email) and length(email) <= 320),
    created_at timestamptz not null default now()
);

-- A password belongs to a membership: a user is global, and a tenant's admin sets passwords there. With one password
-- for all tenants, whoever registers an address first could later sign in to any tenant that adds the same address.
create table memberships (
    tenant_id uuid not null references tenants (id),
    user_id uuid not null references users (id),
    role text not null check (role in ('owner', 'admin', 'member', 'viewer')),
    password_hash text,
    created_at timestamptz not null default now(),
    primary key (tenant_id, user_id)
);
create index memberships_user on memberships (user_id);

create table api_keys (
    tenant_id uuid not null,
    id uuid not null,
    user_id uuid not null,
    name text not null check (length(name) between 1 and 200),
    role text not null check (role in ('owner', 'admin', 'member', 'viewer')),
    hash bytea not null check (length(hash) = 32),
    prefix text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    primary key (tenant_id, id),
    foreign key (tenant_id, user_id) references memberships (tenant_id, user_id) on delete cascade
);
-- Not unique: uniqueness across tenants would tell that a value exists elsewhere. 256 random bits don't collide.
create index api_keys_hash on api_keys (hash);

create table refresh_tokens (
    tenant_id uuid not null,
    id uuid not null,
    user_id uuid not null,
    family uuid not null,
    hash bytea not null check (length(hash) = 32),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz,
    primary key (tenant_id, id),
    foreign key (tenant_id, user_id) references memberships (tenant_id, user_id) on delete cascade
);
create index refresh_tokens_family on refresh_tokens (tenant_id, family);

alter table tenants enable row level security;
alter table tenants force row level security;
create policy tenant on tenants to dreamhub_app, dreamhub_worker using (id = app_tenant());
create policy migrator on tenants to dreamhub_owner using (true) with check (true);
create policy directory on tenants to dreamhub_directory using (true) with check (true);

alter table users enable row level security;
alter table users force row level security;
create policy fellow on users for select to dreamhub_app
    using (exists (select 1 from memberships m where m.tenant_id = app_tenant() and m.user_id = users.id));
create policy migrator on users to dreamhub_owner using (true) with check (true);
create policy directory on users to dreamhub_directory using (true) with check (true);

alter table memberships enable row level security;
alter table memberships force row level security;
create policy tenant on memberships to dreamhub_app, dreamhub_worker
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on memberships to dreamhub_owner using (true) with check (true);
create policy directory on memberships to dreamhub_directory using (true) with check (true);

alter table api_keys enable row level security;
alter table api_keys force row level security;
create policy tenant on api_keys to dreamhub_app
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on api_keys to dreamhub_owner using (true) with check (true);
create policy directory on api_keys to dreamhub_directory using (true) with check (true);

alter table refresh_tokens enable row level security;
alter table refresh_tokens force row level security;
create policy tenant on refresh_tokens to dreamhub_app
    using (tenant_id = app_tenant()) with check (tenant_id = app_tenant());
create policy migrator on refresh_tokens to dreamhub_owner using (true) with check (true);
create policy directory on refresh_tokens to dreamhub_directory using (true) with check (true);

grant select on tenants to dreamhub_app, dreamhub_worker;
grant select (id, email, created_at) on users to dreamhub_app;
grant select (tenant_id, user_id, role, created_at) on memberships to dreamhub_app, dreamhub_worker;
grant select, insert on api_keys to dreamhub_app;
grant update (revoked_at) on api_keys to dreamhub_app;
grant select, insert on refresh_tokens to dreamhub_app;
grant update (used_at) on refresh_tokens to dreamhub_app;
grant select, insert on tenants, users, memberships, api_keys to dreamhub_directory;
grant update, delete on memberships to dreamhub_directory;
grant select, update, delete on refresh_tokens to dreamhub_directory;

-- Who holds this key? The caller knows the secret, so it may learn whose it is; nothing else comes out. A key never
-- does more than its holder may do today.
create function auth_api_key_v1(p_hash bytea)
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
create function auth_user_v1(p_email text)
returns table (user_id uuid, tenant_id uuid, tenant_name text, password_hash text)
language sql stable security definer set search_path = pg_catalog, public as $$
    select m.user_id, m.tenant_id, t.name, m.password_hash
    from public.users u
    join public.memberships m on m.user_id = u.id
    join public.tenants t on t.id = m.tenant_id and t.status = 'active'
    where u.email = lower(p_email)
    order by m.created_at, m.tenant_id
$$;

-- A token names a tenant and a user; the role is looked up, never believed.
create function auth_member_v1(p_tenant uuid, p_user uuid)
returns table (role text)
language sql stable security definer set search_path = pg_catalog, public as $$
    select m.role from public.memberships m
    join public.tenants t on t.id = m.tenant_id and t.status = 'active'
    where m.tenant_id = p_tenant and m.user_id = p_user
$$;

-- An access token names its sign-in too, and lives no longer than that. A living sign-in has one refresh token that is
-- not used yet: using it makes the next one in the same transaction, and whatever ends the sign-in uses up or deletes it.
create function auth_sign_in_v1(p_tenant uuid, p_user uuid, p_family uuid)
returns table (role text)
language sql stable security definer set search_path = pg_catalog, public as $$
    select m.role from public.auth_member_v1(p_tenant, p_user) m
    where exists (
        select 1 from public.refresh_tokens r
        where r.tenant_id = p_tenant and r.user_id = p_user and r.family = p_family
            and r.used_at is null and r.expires_at > now())
$$;

-- The platform's only way to make a tenant: with its owner and a first key.
create function create_tenant_v1(
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
create function add_member_v1(p_user uuid, p_email text, p_password_hash text, p_role text) returns uuid
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

grant execute on function app_tenant(), app_user() to public;
grant execute on function
    auth_api_key_v1(bytea), auth_user_v1(text), auth_member_v1(uuid, uuid), auth_sign_in_v1(uuid, uuid, uuid),
    create_tenant_v1(uuid, text, uuid, text, text, uuid, bytea, text), add_member_v1(uuid, text, text, text),
    set_member_v1(uuid, text, text), remove_member_v1(uuid)
    to dreamhub_app;

-- Definers belong to a role that can't log in and sees only what its policies and grants say.
grant create on schema public to dreamhub_directory;
alter function auth_api_key_v1(bytea) owner to dreamhub_directory;
alter function auth_user_v1(text) owner to dreamhub_directory;
alter function auth_member_v1(uuid, uuid) owner to dreamhub_directory;
alter function auth_sign_in_v1(uuid, uuid, uuid) owner to dreamhub_directory;
alter function create_tenant_v1(uuid, text, uuid, text, text, uuid, bytea, text) owner to dreamhub_directory;
alter function add_member_v1(uuid, text, text, text) owner to dreamhub_directory;
alter function set_member_v1(uuid, text, text) owner to dreamhub_directory;
alter function remove_member_v1(uuid) owner to dreamhub_directory;
revoke create on schema public from dreamhub_directory;
