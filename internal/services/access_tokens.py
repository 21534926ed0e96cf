"""Access tokens: JWT, HS256 and nothing else."""

import time
from uuid import UUID

import jwt
import msgspec

from internal.entities.ids import new_id
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context

ALGORITHM = "HS256"
ISSUER = "dreamhub"
AUDIENCE = "dreamhub-api"
REQUIRED = ["iss", "aud", "exp", "nbf", "iat", "jti", "sub", "tid", "sid"]
LEEWAY_SECONDS = 5.0
"""How far the clocks of two servers may be apart."""


class Claims(msgspec.Struct, frozen=True):
    """Whom a verified token names, by which sign-in (a family of refresh tokens), and how long it still lives."""

    tenant_id: UUID
    user_id: UUID
    family: UUID
    seconds_left: float


class AccessTokens:
    """Signs and verifies. A token names a user, a tenant and a sign-in; what they may do is looked up."""

    def __init__(self, secret: str, *, minutes: int) -> None:
        self._secret = secret
        self.seconds = minutes * 60

    def issue(self, ctx: Context, *, family: UUID) -> str:
        """A token for the context's user in its tenant, for as long as the sign-in of that family lives."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(ctx.user_id),
            "tid": str(ctx.tenant_id),
            "sid": str(family),
            "iat": now,
            "nbf": now,
            "exp": now + self.seconds,
            "jti": str(new_id()),
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def verify(self, token: str) -> Claims:
        """Raises AUTH_INVALID_TOKEN for anything but a live token of ours."""
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=LEEWAY_SECONDS,
                options={"require": REQUIRED},
            )
            return Claims(
                tenant_id=UUID(claims["tid"]),
                user_id=UUID(claims["sub"]),
                family=UUID(claims["sid"]),
                seconds_left=claims["exp"] + LEEWAY_SECONDS - time.time(),
            )
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
            raise AppError(
                Code.AUTH_INVALID_TOKEN, "The access token is not valid or has expired; refresh it."
            ) from None
