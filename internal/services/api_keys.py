"""API keys: 256 random bits, shown once, stored as a hash."""

import base64
import secrets
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from internal.entities.identity import ApiKey
from internal.repositories.store import Store
from internal.services.authentication import KEY_PREFIX, Authenticator, digest_of
from internal.services.names import MAX_TITLE, check_name
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

SECRET_BYTES = 32
SHOWN = len(KEY_PREFIX) + 6


class Secret(msgspec.Struct, frozen=True):
    """A new key: itself, its SHA-256, and the first characters by which people tell keys apart."""

    secret: str
    digest: bytes
    prefix: str


def new_key() -> Secret:
    """`dh_` and 256 random bits."""
    secret = KEY_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()
    return Secret(secret, digest_of(secret), secret[:SHOWN])


class ApiKeyService:
    """The rules of API keys: an admin's matter, and no key gives more than its maker has."""

    def __init__(self, store: Store, authenticator: Authenticator) -> None:
        self._store = store
        self._authenticator = authenticator

    async def add(self, ctx: Context, *, name: str, role: Role, expires_at: datetime | None) -> tuple[ApiKey, str]:
        """The key as it is listed, and the key itself, this once. Raises AUTH_FORBIDDEN, REQUEST_INVALID."""
        if not ctx.role.at_least(role):
            raise AppError(
                Code.AUTH_FORBIDDEN, f"A key can't do more than its maker: choose {ctx.role.value} or a weaker role."
            )
        called = check_name(name, "key's name", longest=MAX_TITLE)
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise AppError(Code.REQUEST_INVALID, "expires_at lies in the past; choose a later time.")
        key = new_key()
        async with self._store.tenant(ctx) as tx:
            key_id = await tx.identity.add_key(
                name=called, role=role, digest=key.digest, prefix=key.prefix, expires_at=expires_at
            )
            return await tx.identity.get_key(key_id), key.secret

    async def list(self, ctx: Context, *, limit: int, before: UUID | None) -> list[ApiKey]:
        """Up to `limit` keys of the tenant, newest first, older than `before`."""
        async with self._store.tenant(ctx) as tx:
            return await tx.identity.list_keys(limit=limit, before=before)

    async def revoke(self, ctx: Context, key_id: UUID) -> None:
        """Ends a key: here at once, on other servers within 5 s. Raises API_KEY_NOT_FOUND, AUTH_FORBIDDEN."""
        async with self._store.tenant(ctx) as tx:
            key = await tx.identity.get_key(key_id)
            if not ctx.role.at_least(key.role):
                raise AppError(Code.AUTH_FORBIDDEN, f"This key's role is {key.role.value}; only its equals revoke it.")
            await tx.identity.revoke_key(key_id)
        self._authenticator.forget()
