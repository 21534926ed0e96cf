"""Members: who belongs to a tenant, in which role."""

from uuid import UUID

from internal.entities.identity import Member
from internal.repositories.store import Store
from internal.services.authentication import Authenticator
from internal.services.passwords import Passwords, check_password
from internal.services.tenants import check_email
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role


class MemberService:
    """The rules of membership: an admin's matter; nobody hands out or touches a role above their own."""

    def __init__(self, store: Store, passwords: Passwords, authenticator: Authenticator) -> None:
        self._store = store
        self._passwords = passwords
        self._authenticator = authenticator

    async def add(self, ctx: Context, *, email: str, password: str, role: Role) -> Member:
        """The password serves for this tenant only, also where the address is known to others.

        Raises REQUEST_CONFLICT for a member, AUTH_FORBIDDEN, REQUEST_INVALID.
        """
        _allow(ctx, role)
        check_password(password)
        address = check_email(email)
        hashed = await self._passwords.hash(password)
        async with self._store.tenant(ctx) as tx:
            user_id = await tx.identity.add_member(address, hashed, role)
            if user_id is None:
                raise AppError(Code.REQUEST_CONFLICT, "This address belongs to a member already.")
            return await tx.identity.get_member(user_id)

    async def list(self, ctx: Context, *, limit: int, after: str | None) -> list[Member]:
        """Up to `limit` members by e-mail address, those after `after`."""
        async with self._store.tenant(ctx) as tx:
            return await tx.identity.list_members(limit=limit, after=after)

    async def update(self, ctx: Context, user_id: UUID, *, role: Role | None, password: str | None) -> Member:
        """Sets what isn't None. Raises USER_NOT_FOUND, AUTH_FORBIDDEN, REQUEST_CONFLICT for the last owner."""
        if password is not None:
            check_password(password)
        if role is not None:
            _allow(ctx, role)
        hashed = await self._passwords.hash(password) if password is not None else None
        async with self._store.tenant(ctx) as tx:
            _allow(ctx, (await tx.identity.get_member(user_id)).role)
            if not await tx.identity.set_member(user_id, role=role, password_hash=hashed):
                raise _last_owner()
            changed = await tx.identity.get_member(user_id)
        self._authenticator.forget()
        return changed

    async def remove(self, ctx: Context, user_id: UUID) -> None:
        """Ends the membership with its keys and sign-ins. Raises as `update` does."""
        async with self._store.tenant(ctx) as tx:
            _allow(ctx, (await tx.identity.get_member(user_id)).role)
            if not await tx.identity.remove_member(user_id):
                raise _last_owner()
        self._authenticator.forget()


def _allow(ctx: Context, role: Role) -> None:
    if not ctx.role.at_least(role):
        raise AppError(Code.AUTH_FORBIDDEN, f"Your role is {ctx.role.value}; the role {role.value} is above it.")


def _last_owner() -> AppError:
    return AppError(Code.REQUEST_CONFLICT, "A tenant keeps at least one owner; make somebody else owner first.")
