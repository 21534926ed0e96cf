"""SQL of idempotency keys: which POST was done before, and what it answered."""

import asyncpg
import msgspec

from pkg.ctxutil import Context


class Answered(msgspec.Struct, frozen=True):
    """The state of a key: the SHA-256 of the request that took it, and its answer once there is one."""

    request_hash: bytes
    status: int | None
    body: bytes | None


class IdempotencyRepository:
    """Idempotency keys of the context's user."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def take(self, key: str, request_hash: bytes) -> bool:
        """True when the key is now ours: it is new, older than a day, or its request died with its process."""
        await self._conn.execute(
            "delete from idempotency_keys where tenant_id = $1 and user_id = $2"
            " and (created_at < now() - interval '24 hours'"
            " or (status is null and key = $3 and created_at < now() - interval '2 minutes'))",
            self._ctx.tenant_id,
            self._ctx.user_id,
            key,
        )
        return (
            await self._conn.fetchval(
                "insert into idempotency_keys (tenant_id, user_id, key, request_hash) values ($1, $2, $3, $4)"
                " on conflict (tenant_id, user_id, key) do nothing returning true",
                self._ctx.tenant_id,
                self._ctx.user_id,
                key,
                request_hash,
            )
            or False
        )

    async def find(self, key: str) -> Answered | None:
        """What is known of a key."""
        row = await self._conn.fetchrow(
            "select request_hash, status, body from idempotency_keys"
            " where tenant_id = $1 and user_id = $2 and key = $3",
            self._ctx.tenant_id,
            self._ctx.user_id,
            key,
        )
        return None if row is None else Answered(row["request_hash"], row["status"], row["body"])

    async def answer(self, key: str, status: int, body: bytes) -> None:
        """Keeps the answer for those who ask again."""
        await self._conn.execute(
            "update idempotency_keys set status = $4, body = $5 where tenant_id = $1 and user_id = $2 and key = $3",
            self._ctx.tenant_id,
            self._ctx.user_id,
            key,
            status,
            body,
        )

    async def remove(self, key: str) -> None:
        """Frees a key whose request failed, so that it may be tried again."""
        await self._conn.execute(
            "delete from idempotency_keys where tenant_id = $1 and user_id = $2 and key = $3 and status is null",
            self._ctx.tenant_id,
            self._ctx.user_id,
            key,
        )
