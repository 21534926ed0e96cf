"""Signing in with e-mail and password, and staying signed in with refresh tokens that are used once."""

import base64
import secrets
from datetime import UTC, datetime, timedelta
from uuid import UUID

from internal.entities.identity import SignIn, TokenPair, Visitor
from internal.entities.ids import new_id
from internal.repositories.cache import visitor_key
from internal.repositories.store import Store, Tx
from internal.services.access_tokens import AccessTokens
from internal.services.authentication import Authenticator, digest_of
from internal.services.passwords import Passwords
from internal.services.rate_limits import Limit, RateLimiter
from pkg import logger
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

PREFIX = "dhr_"
SECRET_BYTES = 32
FAILURES = Limit(capacity=10, seconds=15 * 60)
"""Wrong passwords for one e-mail address from one network address; a right one doesn't count."""


class SessionService:
    """The rules of sign-in, refresh and sign-out."""

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        tokens: AccessTokens,
        failures: RateLimiter,
        authenticator: Authenticator,
        *,
        refresh_days: int,
    ) -> None:
        self._store = store
        self._passwords = passwords
        self._tokens = tokens
        self._failures = failures
        self._authenticator = authenticator
        self._lives = timedelta(days=refresh_days)
        self._log = logger.get("sessions")

    async def sign_in(self, visitor: Visitor, email: str, password: str, tenant_id: UUID | None) -> TokenPair:
        """Raises AUTH_BAD_CREDENTIALS, AUTH_TENANT_REQUIRED (after a right password only), RATE_LIMITED."""
        address = email.strip().lower()  # as it was kept
        bucket = visitor_key("sign-in", visitor.address, address)
        await self._failures.take(bucket)
        async with self._store.directory() as directory:
            candidates = await directory.find_sign_ins(address)
        if tenant_id is not None:
            candidates = [item for item in candidates if item.tenant_id == tenant_id]
        matching = await self._matching(candidates, password)
        if not matching:
            raise self._refused(visitor)
        await self._failures.give_back(bucket)
        if len(matching) > 1:
            raise _which(matching)
        found = matching[0]
        ctx = _context(visitor, found.tenant_id, found.user_id)
        async with self._store.tenant(ctx) as tx:
            # Comparing took its time: a sign-in with a password that was replaced meanwhile would outlive its end.
            if not await tx.identity.confirm_sign_in(found):
                raise self._refused(visitor)
            return await self._issue(tx, ctx, family=new_id())

    async def refresh(self, visitor: Visitor, token: str) -> TokenPair:
        """Exchanges a refresh token for a new pair, once. A token that comes back ends its whole sign-in.

        Whoever uses it second may be the thief or the victim, so neither keeps access: the access tokens end too,
        everywhere within 5 s. Raises AUTH_INVALID_TOKEN.
        """
        ctx = _read(visitor, token)
        async with self._store.tenant(ctx) as tx:
            await tx.identity.lock_sign_ins(digest_of(token))
            family = await tx.identity.use_refresh_token(digest_of(token))
            if family is not None and await tx.identity.role() is not None:
                return await self._issue(tx, ctx, family=family)
            ended = await tx.identity.revoke_family(digest_of(token))
        self._authenticator.forget()
        if ended:
            self._log.warning("a used refresh token came back; its sign-in was ended", user=str(ctx.user_id))
        raise _ended()

    async def sign_out(self, visitor: Visitor, token: str) -> None:
        """Ends the sign-in that a refresh token belongs to, with its access tokens, everywhere within 5 s.

        A token that isn't known is as good as ended. Raises AUTH_INVALID_TOKEN for what can't be a refresh token.
        """
        ctx = _read(visitor, token)
        async with self._store.tenant(ctx) as tx:
            await tx.identity.lock_sign_ins(digest_of(token))
            await tx.identity.revoke_family(digest_of(token))
        self._authenticator.forget()

    async def _matching(self, candidates: list[SignIn], password: str) -> list[SignIn]:
        """The tenants where this is the password; an unknown address costs as much as a known one."""
        if not candidates:
            await self._passwords.matches(password, None)
        return [item for item in candidates if await self._passwords.matches(password, item.password_hash)]

    def _refused(self, visitor: Visitor) -> AppError:
        self._log.warning("sign-in refused", address=visitor.address)
        return AppError(Code.AUTH_BAD_CREDENTIALS, "E-mail address and password don't match; check both and try again.")

    async def _issue(self, tx: Tx, ctx: Context, *, family: UUID) -> TokenPair:
        refresh = PREFIX + _base64(ctx.tenant_id.bytes + ctx.user_id.bytes + secrets.token_bytes(SECRET_BYTES))
        await tx.identity.add_refresh_token(
            family=family, digest=digest_of(refresh), expires_at=datetime.now(UTC) + self._lives
        )
        access = self._tokens.issue(ctx, family=family)
        return TokenPair(access_token=access, refresh_token=refresh, expires_in=self._tokens.seconds)


def _read(visitor: Visitor, token: str) -> Context:
    """A refresh token names its tenant and user, so that its row is looked for inside that tenant only."""
    body = token.removeprefix(PREFIX)
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)) if token.startswith(PREFIX) else b""
    except ValueError:
        raw = b""
    if len(raw) != 32 + SECRET_BYTES or not any(raw[:16]) or not any(raw[16:32]):
        raise _ended()
    return _context(visitor, UUID(bytes=raw[:16]), UUID(bytes=raw[16:32]))


def _context(visitor: Visitor, tenant_id: UUID, user_id: UUID) -> Context:
    """Enough to open the tenant's transaction; the weakest role, since nothing here is decided by it."""
    return Context(
        tenant_id=tenant_id,
        user_id=user_id,
        role=Role.VIEWER,
        request_id=visitor.request_id,
        trace_id=visitor.trace_id,
    )


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _which(matching: list[SignIn]) -> AppError:
    return AppError(
        Code.AUTH_TENANT_REQUIRED,
        "You belong to several tenants; send tenant_id with one of the ids under errors.",
        errors=[{"field": "tenant_id", "message": item.tenant_name, "value": str(item.tenant_id)} for item in matching],
    )


def _ended() -> AppError:
    return AppError(Code.AUTH_INVALID_TOKEN, "The refresh token is not valid any more; sign in again.")
