"""Tenants, made by the platform, and what a member may know of their own."""

import hmac
import re
from uuid import UUID

from internal.entities.identity import Member, NewTenant, Tenant, Visitor
from internal.repositories.store import Store
from internal.services.api_keys import new_key
from internal.services.names import MAX_TITLE, check_name
from internal.services.passwords import Passwords, check_password, new_password
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

MAX_EMAIL = 320
EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+")


class TenantService:
    """The rules of tenants."""

    def __init__(self, store: Store, passwords: Passwords, *, platform_token: str) -> None:
        self._store = store
        self._passwords = passwords
        self._platform_token = platform_token.encode()
        self._log = logger.get("tenants")

    async def add(
        self, visitor: Visitor, credential: str, *, name: str, owner_email: str, owner_password: str | None
    ) -> NewTenant:
        """Makes a tenant with its owner and a first key, for whoever holds the platform token.

        Without `owner_password` one is made and shown once. Raises AUTH_INVALID_TOKEN.
        """
        self._require_platform(credential)
        password = owner_password or new_password()
        check_password(password)
        key = new_key()
        email = check_email(owner_email)
        called = check_name(name, "tenant name", longest=MAX_TITLE)
        async with self._store.directory() as directory:
            tenant_id, owner_id = await directory.add_tenant(
                called,
                email=email,
                password_hash=await self._passwords.hash(password),
                digest=key.digest,
                prefix=key.prefix,
            )
        self._log.info("tenant made", tenant=str(tenant_id), address=visitor.address)
        return NewTenant(
            id=tenant_id,
            name=called,
            api_key=key.secret,
            owner_id=owner_id,
            owner_email=email,
            owner_password=None if owner_password else password,
        )

    async def set_queue_weight(self, visitor: Visitor, credential: str, tenant_id: UUID, weight: int) -> Tenant:
        """Gives a tenant `weight` turns where others get one. Raises AUTH_INVALID_TOKEN, TENANT_NOT_FOUND."""
        self._require_platform(credential)
        async with self._store.directory() as directory:
            tenant = await directory.set_queue_weight(tenant_id, weight)
        self._log.info("queue weight set", tenant=str(tenant_id), weight=weight, address=visitor.address)
        return tenant

    def _require_platform(self, credential: str) -> None:
        if not hmac.compare_digest(credential.encode("utf-8", "surrogatepass"), self._platform_token):
            raise AppError(Code.AUTH_INVALID_TOKEN, "This is done with the platform token (AUTH__PLATFORM_TOKEN).")

    async def me(self, ctx: Context) -> tuple[Tenant, Member]:
        """The context's tenant and user."""
        async with self._store.tenant(ctx) as tx:
            return await tx.identity.tenant(), await tx.identity.get_member(ctx.user_id)


def check_email(email: str) -> str:
    """In lower case. Raises REQUEST_INVALID for what can't be an address."""
    trimmed = email.strip().lower()
    if len(trimmed) > MAX_EMAIL or not EMAIL.fullmatch(trimmed):
        raise AppError(Code.REQUEST_INVALID, "This is not an e-mail address.")
    return trimmed
