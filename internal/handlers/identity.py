"""/api/v1/tenants, /auth, /me, /api-keys and /members"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from internal.entities.identity import ApiKey, Member, TokenPair
from internal.handlers.auth import Open, access, bearer, visitor_of
from internal.handlers.paging import DEFAULT_LIMIT, Cursor, Id, Limit, Page, page_of, read_cursor, read_id
from internal.handlers.replays import SECRET_ANSWER
from internal.handlers.requests import Moment, utc
from internal.services.api_keys import ApiKeyService
from internal.services.members import MemberService
from internal.services.names import MAX_TITLE
from internal.services.passwords import MAX_LENGTH, MIN_LENGTH
from internal.services.sessions import SessionService
from internal.services.tenants import TenantService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TITLE)]
Email = Annotated[str, msgspec.Meta(min_length=3, max_length=320)]
Password = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LENGTH)]
NewPassword = Annotated[str, msgspec.Meta(min_length=MIN_LENGTH, max_length=MAX_LENGTH)]
RefreshToken = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class TenantIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new tenant and its owner."""

    name: Name
    owner_email: Email
    owner_password: NewPassword | None = None


class OwnerOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """`password` is there when it was made here: it is shown this once."""

    id: UUID
    email: str
    password: str | None = None


class TenantOut(msgspec.Struct, frozen=True):
    """A new tenant with its first API key, which is shown this once."""

    id: UUID
    name: str
    api_key: str
    owner: OwnerOut


class TenantChangesIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`queue_weight`: how many turns the tenant's tasks get where others' get one."""

    queue_weight: Annotated[int, msgspec.Meta(ge=1, le=100)]


class TenantChangedOut(msgspec.Struct, frozen=True):
    """A tenant as it is from now on."""

    id: UUID
    name: str
    queue_weight: int


class SignInIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tenant_id` is asked for where an address belongs to several tenants."""

    email: Email
    password: Password
    tenant_id: UUID | None = None


class RefreshIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A refresh token, which is used up by this."""

    refresh_token: RefreshToken


class TokenOut(msgspec.Struct, frozen=True):
    """`expires_in` is the access token's life in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    token_type: str


class MyTenant(msgspec.Struct, frozen=True):
    """The tenant that a credential belongs to."""

    id: UUID
    name: str


class MyUser(msgspec.Struct, frozen=True):
    """The user that a credential stands for; `role` is the credential's, which may be weaker than the user's."""

    id: UUID
    email: str
    role: Role


class MeOut(msgspec.Struct, frozen=True):
    """Who is asking."""

    tenant: MyTenant
    user: MyUser


class ApiKeyIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new key; without `expires_at` it lives until it is revoked."""

    name: Name
    role: Role = Role.MEMBER
    expires_at: Moment | None = None


class ApiKeyOut(msgspec.Struct, frozen=True):
    """A new key; `key` is shown this once."""

    id: UUID
    key: str
    name: str
    role: Role
    prefix: str
    expires_at: datetime | None


class MemberIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new member, whose password serves for this tenant."""

    email: Email
    password: NewPassword
    role: Role = Role.MEMBER


class MemberChangesIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; a new password ends the member's sign-ins."""

    role: Role | None = None
    password: NewPassword | None = None


@post("/api/v1/tenants", opt=access(Open.PLATFORM))
async def add_tenant(
    request: Request[Any, Any, Any], tenants: NamedDependency[TenantService], data: JSONBody[TenantIn]
) -> TenantOut:
    """Makes a tenant with its owner and a first API key; for the holder of the platform token."""
    made = await tenants.add(
        visitor_of(request.scope),
        bearer(request.scope),
        name=data.name,
        owner_email=data.owner_email,
        owner_password=data.owner_password,
    )
    owner = OwnerOut(made.owner_id, made.owner_email, made.owner_password)
    return TenantOut(made.id, made.name, made.api_key, owner)


@patch("/api/v1/tenants/{tenant_id:str}", opt=access(Open.PLATFORM))
async def update_tenant(
    request: Request[Any, Any, Any],
    tenants: NamedDependency[TenantService],
    tenant_id: Id,
    data: JSONBody[TenantChangesIn],
) -> TenantChangedOut:
    """Changes a tenant's share of the workers; for the holder of the platform token."""
    found = read_id(tenant_id, AppError(Code.TENANT_NOT_FOUND, "There is no such tenant."))
    tenant = await tenants.set_queue_weight(visitor_of(request.scope), bearer(request.scope), found, data.queue_weight)
    return TenantChangedOut(tenant.id, tenant.name, data.queue_weight)


@post("/api/v1/auth/token", opt=access(Open.ANYONE), status_code=200)
async def sign_in(
    request: Request[Any, Any, Any], sessions: NamedDependency[SessionService], data: JSONBody[SignInIn]
) -> TokenOut:
    """Exchanges e-mail and password for an access token and a refresh token."""
    return _token_out(await sessions.sign_in(visitor_of(request.scope), data.email, data.password, data.tenant_id))


@post("/api/v1/auth/refresh", opt=access(Open.ANYONE), status_code=200)
async def refresh(
    request: Request[Any, Any, Any], sessions: NamedDependency[SessionService], data: JSONBody[RefreshIn]
) -> TokenOut:
    """Exchanges a refresh token, once, for a new pair."""
    return _token_out(await sessions.refresh(visitor_of(request.scope), data.refresh_token))


@post("/api/v1/auth/sign-out", opt=access(Open.ANYONE), status_code=204)
async def sign_out(
    request: Request[Any, Any, Any], sessions: NamedDependency[SessionService], data: JSONBody[RefreshIn]
) -> None:
    """Ends the sign-in that a refresh token belongs to."""
    await sessions.sign_out(visitor_of(request.scope), data.refresh_token)


@get("/api/v1/me", opt=access(Role.VIEWER))
async def get_me(ctx: NamedDependency[Context], tenants: NamedDependency[TenantService]) -> MeOut:
    """Who you are, as this credential sees it."""
    tenant, member = await tenants.me(ctx)
    return MeOut(MyTenant(tenant.id, tenant.name), MyUser(member.id, member.email, ctx.role))


@get("/api/v1/api-keys", opt=access(Role.ADMIN))
async def list_api_keys(
    ctx: NamedDependency[Context],
    api_keys: NamedDependency[ApiKeyService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[ApiKey]:
    """The tenant's keys, newest first: never the keys themselves."""
    found = await api_keys.list(ctx, limit=limit + 1, before=read_cursor(cursor, UUID))
    return Page(*page_of(found, limit, lambda item: item.id))


@post("/api/v1/api-keys", opt=access(Role.ADMIN) | SECRET_ANSWER)
async def add_api_key(
    ctx: NamedDependency[Context], api_keys: NamedDependency[ApiKeyService], data: JSONBody[ApiKeyIn]
) -> ApiKeyOut:
    """Makes a key that does no more than you may."""
    expires_at = utc(data.expires_at, "expires_at")
    key, secret = await api_keys.add(ctx, name=data.name, role=data.role, expires_at=expires_at)
    return ApiKeyOut(key.id, secret, key.name, key.role, key.prefix, key.expires_at)


@delete("/api/v1/api-keys/{key_id:str}", opt=access(Role.ADMIN))
async def revoke_api_key(ctx: NamedDependency[Context], api_keys: NamedDependency[ApiKeyService], key_id: Id) -> None:
    """Revokes a key, everywhere within 5 seconds."""
    await api_keys.revoke(ctx, read_id(key_id, AppError(Code.API_KEY_NOT_FOUND, "There is no such API key.")))


@get("/api/v1/members", opt=access(Role.ADMIN))
async def list_members(
    ctx: NamedDependency[Context],
    members: NamedDependency[MemberService],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Member]:
    """The tenant's members by e-mail address."""
    found = await members.list(ctx, limit=limit + 1, after=read_cursor(cursor, str))
    return Page(*page_of(found, limit, lambda item: item.email))


@post("/api/v1/members", opt=access(Role.ADMIN))
async def add_member(
    ctx: NamedDependency[Context], members: NamedDependency[MemberService], data: JSONBody[MemberIn]
) -> Member:
    """Adds a member in a role up to your own."""
    return await members.add(ctx, email=data.email, password=data.password, role=data.role)


@patch("/api/v1/members/{user_id:str}", opt=access(Role.ADMIN))
async def update_member(
    ctx: NamedDependency[Context], members: NamedDependency[MemberService], user_id: Id, data: JSONBody[MemberChangesIn]
) -> Member:
    """Changes a member's role or password."""
    return await members.update(ctx, _user_id(user_id), role=data.role, password=data.password)


@delete("/api/v1/members/{user_id:str}", opt=access(Role.ADMIN))
async def remove_member(ctx: NamedDependency[Context], members: NamedDependency[MemberService], user_id: Id) -> None:
    """Ends a membership with its keys and sign-ins, everywhere within 5 seconds."""
    await members.remove(ctx, _user_id(user_id))


def _token_out(pair: TokenPair) -> TokenOut:
    return TokenOut(pair.access_token, pair.refresh_token, pair.expires_in, "Bearer")


def _user_id(text: str) -> UUID:
    return read_id(text, AppError(Code.USER_NOT_FOUND, "There is no such member."))
