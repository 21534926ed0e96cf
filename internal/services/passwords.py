"""Password hashes: argon2id, off the event loop, a bounded number at a time."""

import asyncio
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from pkg.apperr import AppError, Code

MEMORY_KIB = 19 * 1024  # OWASP's first choice for argon2id: 19 MiB, two passes, one lane
AT_ONCE = 2
MIN_LENGTH = 8
MAX_LENGTH = 256


def new_password() -> str:
    """A random password of 128 bits."""
    return secrets.token_urlsafe(16)


def check_password(password: str) -> None:
    """Raises REQUEST_INVALID for a password that is too short or too long to be meant."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise AppError(Code.REQUEST_INVALID, f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters.")


class Passwords:
    """Hashes and verifies. Each takes some 30 ms of a core and 19 MiB, so only a few run at once."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=MEMORY_KIB, parallelism=1)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._decoy = self._hasher.hash(new_password())

    async def hash(self, password: str) -> str:
        """An argon2id hash with its own salt."""
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, password: str, hashed: str | None) -> bool:
        """Takes as long for a hash that isn't there as for one that is, and answers False."""
        async with self._slots:
            same = await asyncio.to_thread(self._verify, hashed or self._decoy, password)
        return same and hashed is not None

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False
