"""SQL of identity: what a tenant's own transaction sees, and the few functions that work before anyone is known."""

from datetime import datetime
from uuid import UUID

import asyncpg

from internal.entities.identity import ApiKey, Member, Principal, SignIn, Tenant
from internal.entities.ids import new_id
from internal.repositories.rows import sure
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role

MEMBER = (
    "select m.user_id, u.email, m.role, m.created_at from memberships m join users u on u.id = m.user_id"
    " where m.tenant_id = $1"
)


class IdentityRepository:
    """Members, API keys and refresh tokens of the context's tenant."""

    def __init__(self, conn: asyncpg.Connection, ctx: Context) -> None:
        self._conn = conn
        self._ctx = ctx

    async def tenant(self) -> Tenant:
        """The context's tenant."""
        row = await self._conn.fetchrow("select id, name from tenants where id = $1", self._ctx.tenant_id)
        if row is None:
            raise AppError(Code.TENANT_NOT_FOUND, "There is no such tenant.")
        return Tenant(id=row["id"], name=row["name"])

    async def get_member(self, user_id: UUID) -> Member:
        """Raises USER_NOT_FOUND, for a user of other tenants only too."""
        row = await self._conn.fetchrow(MEMBER + " and m.user_id = $2", self._ctx.tenant_id, user_id)
        if row is None:
            raise AppError(Code.USER_NOT_FOUND, "There is no such member.")
        return _member(row)

    async def list_members(self, *, limit: int, after: str | None) -> list[Member]:
        """Up to `limit` members by e-mail address, those after `after`."""
        rows = await self._conn.fetch(
            MEMBER + " and ($2::text is null or u.email > $2) order by u.email limit $3",
            self._ctx.tenant_id,
            after,
            limit,
        )
        return [_member(row) for row in rows]

    async def add_member(self, email: str, password_hash: str, role: Role) -> UUID | None:
        """The member's user id, or None for somebody who is a member already."""
        return await self._conn.fetchval(
            "select add_member_v1($1, $2, $3, $4)", new_id(), email, password_hash, role.value
        )

    async def set_member(self, user_id: UUID, *, role: Role | None, password_hash: str | None) -> bool:
        """Changes what isn't None; False when the tenant would lose its last owner."""
        return sure(
            await self._conn.fetchval(
                "select set_member_v1($1, $2, $3)", user_id, role.value if role else None, password_hash
            )
        )

    async def remove_member(self, user_id: UUID) -> bool:
        """Takes out the member with their keys and sign-ins; False for the last owner."""
        return sure(await self._conn.fetchval("select remove_member_v1($1)", user_id))

    async def add_key(self, *, name: str, role: Role, digest: bytes, prefix: str, expires_at: datetime | None) -> UUID:
        """Adds a key of the context's user, stored as the SHA-256 `digest`, and answers its id."""
        return sure(
            await self._conn.fetchval(
                "insert into api_keys (tenant_id, id, user_id, name, role, hash, prefix, expires_at)"
                " values ($1, $2, $3, $4, $5, $6, $7, $8) returning id",
                self._ctx.tenant_id,
                new_id(),
                self._ctx.user_id,
                name,
                role.value,
                digest,
                prefix,
                expires_at,
            )
        )

    async def list_keys(self, *, limit: int, before: UUID | None) -> list[ApiKey]:
        """Up to `limit` keys, newest first, those older than `before`; revoked ones too."""
        rows = await self._conn.fetch(
            "select id, name, role, prefix, user_id, created_at, expires_at, revoked_at from api_keys"
            " where tenant_id = $1 and ($2::uuid is null or id < $2) order by id desc limit $3",
            self._ctx.tenant_id,
            before,
            limit,
        )
        return [_key(row) for row in rows]

    async def get_key(self, key_id: UUID) -> ApiKey:
        """Raises API_KEY_NOT_FOUND."""
        row = await self._conn.fetchrow(
            "select id, name, role, prefix, user_id, created_at, expires_at, revoked_at from api_keys"
            " where tenant_id = $1 and id = $2",
            self._ctx.tenant_id,
            key_id,
        )
        if row is None:
            raise AppError(Code.API_KEY_NOT_FOUND, "There is no such API key.")
        return _key(row)

    async def revoke_key(self, key_id: UUID) -> None:
        """Ends a key; a key that was revoked before stays so."""
        await self._conn.execute(
            "update api_keys set revoked_at = now() where tenant_id = $1 and id = $2 and revoked_at is null",
            self._ctx.tenant_id,
            key_id,
        )

    async def role(self) -> Role | None:
        """The context's user's role today; None for somebody who is no member, or whose tenant is suspended."""
        return _role(
            await self._conn.fetchval("select role from auth_member_v1($1, $2)", self._ctx.tenant_id, self._ctx.user_id)
        )

    async def add_refresh_token(self, *, family: UUID, digest: bytes, expires_at: datetime) -> None:
        """Adds a token of the context's user, stored as the SHA-256 `digest`."""
        await self._conn.execute(
            "insert into refresh_tokens (tenant_id, id, user_id, family, hash, expires_at)"
            " values ($1, $2, $3, $4, $5, $6)",
            self._ctx.tenant_id,
            new_id(),
            self._ctx.user_id,
            family,
            digest,
            expires_at,
        )

    async def confirm_sign_in(self, sign_in: SignIn) -> bool:
        """Whether it still holds, as `lock_sign_ins` does: until the transaction ends nobody changes that."""
        return sure(
            await self._conn.fetchval("select confirm_sign_in_v1($1, $2)", sign_in.user_id, sign_in.password_hash)
        )

    async def lock_sign_ins(self, digest: bytes) -> None:
        """Until the transaction ends, nobody else makes, uses or ends refresh tokens of this known token's user.

        What comes after it sees all that whoever held the lock before has committed.
        """
        await self._conn.execute(
            "select lock_sign_ins_v1(tenant_id, user_id) from refresh_tokens"
            " where tenant_id = $1 and user_id = $2 and hash = $3",
            self._ctx.tenant_id,
            self._ctx.user_id,
            digest,
        )

    async def use_refresh_token(self, digest: bytes) -> UUID | None:
        """Marks an unused token as used and answers its family; None for any other. Wants `lock_sign_ins` before."""
        return await self._conn.fetchval(
            "update refresh_tokens set used_at = now() where tenant_id = $1 and user_id = $2 and hash = $3"
            " and used_at is null and expires_at > now() returning family",
            self._ctx.tenant_id,
            self._ctx.user_id,
            digest,
        )

    async def revoke_family(self, digest: bytes) -> int:
        """Ends every token descended from the same sign-in as this one; answers how many were ended.

        Wants `lock_sign_ins` before, else it misses tokens that are being made.
        """
        return sure(
            await self._conn.fetchval(
                "with ended as (update refresh_tokens set used_at = now() where tenant_id = $1 and user_id = $2"
                " and used_at is null and family in (select r.family from refresh_tokens r"
                " where r.tenant_id = $1 and r.user_id = $2 and r.hash = $3) returning 1)"
                " select count(*)::int from ended",
                self._ctx.tenant_id,
                self._ctx.user_id,
                digest,
            )
        )


class DirectoryRepository:
    """The allow-listed functions that work without a tenant: they find out whose a credential is."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def find_key(self, digest: bytes) -> tuple[Principal, datetime | None] | None:
        """Whom a live key of an active tenant stands for, and when it expires."""
        row = await self._conn.fetchrow(
            "select tenant_id, user_id, key_id, role, expires_at from auth_api_key_v1($1)", digest
        )
        if row is None:
            return None
        principal = Principal(
            tenant_id=row["tenant_id"], user_id=row["user_id"], role=Role(row["role"]), subject=f"key:{row['key_id']}"
        )
        return principal, row["expires_at"]

    async def find_role(self, tenant_id: UUID, user_id: UUID, *, family: UUID) -> Role | None:
        """The role that a token's user has in its tenant today; None once the token's sign-in has ended."""
        return _role(
            await self._conn.fetchval("select role from auth_sign_in_v1($1, $2, $3)", tenant_id, user_id, family)
        )

    async def find_sign_ins(self, email: str) -> list[SignIn]:
        """The active tenants of an e-mail address, oldest membership first."""
        rows = await self._conn.fetch(
            "select user_id, tenant_id, tenant_name, password_hash from auth_user_v1($1)", email
        )
        return [SignIn(**row) for row in rows]

    async def add_tenant(
        self, name: str, *, email: str, password_hash: str, digest: bytes, prefix: str
    ) -> tuple[UUID, UUID]:
        """Makes a tenant with its owner and first key; answers the tenant's and the owner's id."""
        tenant_id = new_id()
        owner_id = await self._conn.fetchval(
            "select create_tenant_v1($1, $2, $3, $4, $5, $6, $7, $8)",
            tenant_id,
            name,
            new_id(),
            email,
            password_hash,
            new_id(),
            digest,
            prefix,
        )
        return tenant_id, sure(owner_id)

    async def set_queue_weight(self, tenant_id: UUID, weight: int) -> Tenant:
        """Raises TENANT_NOT_FOUND."""
        name = await self._conn.fetchval("select set_queue_weight_v1($1, $2)", tenant_id, weight)
        if name is None:
            raise AppError(Code.TENANT_NOT_FOUND, "There is no such tenant.")
        return Tenant(id=tenant_id, name=name)


def _role(name: str | None) -> Role | None:
    return Role(name) if name else None


def _member(row: asyncpg.Record) -> Member:
    return Member(id=row["user_id"], email=row["email"], role=Role(row["role"]), created_at=row["created_at"])


def _key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        role=Role(row["role"]),
        prefix=row["prefix"],
        user_id=row["user_id"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
