"""Who holds this credential? API keys and access tokens, looked up and remembered for a few seconds."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from internal.entities.identity import Principal
from internal.repositories.cache import key
from internal.repositories.store import Store
from internal.services.access_tokens import AccessTokens
from pkg.apperr import AppError, Code

KEY_PREFIX = "dh_"
REMEMBERED_SECONDS = 4.0
"""Revocation must be effective within 5 s everywhere, the look-up's own time included."""
REMEMBERED = 10_000
LONGEST_CREDENTIAL = 4096


def digest_of(secret: str) -> bytes:
    """SHA-256. The secrets have 256 random bits, so neither salt nor slowness would add anything."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Authenticator:
    """Turns a bearer credential into a principal. The role is always the database's, never the token's."""

    def __init__(self, store: Store, tokens: AccessTokens, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._tokens = tokens
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Principal]] = OrderedDict()

    async def authenticate(self, credential: str) -> Principal:
        """Raises AUTH_INVALID_TOKEN."""
        return self.remembered(credential) or await self.verify(credential)

    async def verify(self, credential: str) -> Principal:
        """Asks the database, whatever is remembered. Raises AUTH_INVALID_TOKEN."""
        if not credential or len(credential) > LONGEST_CREDENTIAL:
            raise invalid()
        asked_at = self._clock()
        if credential.startswith(KEY_PREFIX):
            principal, lives = await self._find_key(credential)
        else:
            principal, lives = await self._find_member(credential)
        self._known[credential] = (asked_at + min(REMEMBERED_SECONDS, lives), principal)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return principal

    def remembered(self, credential: str) -> Principal | None:
        """The principal of a credential that was verified within the last few seconds."""
        entry = self._known.get(credential)
        if entry is None:
            return None
        if self._clock() < entry[0]:
            return entry[1]
        del self._known[credential]
        return None

    def forget(self) -> None:
        """After a revocation: this process looks everything up again at once, others within seconds."""
        self._known.clear()

    async def _find_key(self, credential: str) -> tuple[Principal, float]:
        async with self._store.directory() as directory:
            found = await directory.find_key(digest_of(credential))
        if found is None:
            raise invalid()
        principal, expires_at = found
        principal = msgspec.structs.replace(principal, subject=key(principal.tenant_id, "rate", principal.subject))
        lives = REMEMBERED_SECONDS if expires_at is None else (expires_at - datetime.now(UTC)).total_seconds()
        return principal, lives

    async def _find_member(self, credential: str) -> tuple[Principal, float]:
        claims = self._tokens.verify(credential)
        async with self._store.directory() as directory:
            role = await directory.find_role(claims.tenant_id, claims.user_id, family=claims.family)
        if role is None:
            raise invalid()
        principal = Principal(
            tenant_id=claims.tenant_id,
            user_id=claims.user_id,
            role=role,
            subject=key(claims.tenant_id, "rate", f"user:{claims.user_id}"),
        )
        return principal, claims.seconds_left


def invalid() -> AppError:
    """One answer for unknown, expired, revoked and forged credentials."""
    return AppError(
        Code.AUTH_INVALID_TOKEN, "The token is unknown, expired or revoked; sign in again or use another key."
    )
