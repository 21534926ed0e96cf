"""Tenants, members and the credentials that stand for them."""

from datetime import datetime
from uuid import UUID

import msgspec

from pkg.ctxutil import Role


class Visitor(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who hasn't proved yet who they are. `address` is the network address they come from."""

    request_id: str
    trace_id: str
    address: str


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a credential stands for. `subject` is by whom requests are counted: a key, or a signed-in user."""

    tenant_id: UUID
    user_id: UUID
    role: Role
    subject: str


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant that an e-mail address may sign in to, and what the password must match there."""

    user_id: UUID
    tenant_id: UUID
    tenant_name: str
    password_hash: str | None


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A company with its own documents."""

    id: UUID
    name: str


class NewTenant(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant that was just made. `api_key` and `owner_password` are shown this once."""

    id: UUID
    name: str
    api_key: str
    owner_id: UUID
    owner_email: str
    owner_password: str | None


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A user's place in a tenant."""

    id: UUID
    email: str
    role: Role
    created_at: datetime


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is listed: never the key itself, only its first characters."""

    id: UUID
    name: str
    role: Role
    prefix: str
    user_id: UUID
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class TokenPair(msgspec.Struct, frozen=True, kw_only=True):
    """What a sign-in answers. `expires_in` is the access token's life in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
