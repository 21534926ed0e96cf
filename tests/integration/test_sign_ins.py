"""A sign-in that is refreshed and ended at the same moment: whatever comes first, nothing of it lives on."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from internal.entities.identity import TokenPair, Visitor
from internal.services.passwords import Passwords
from internal.services.sessions import SessionService
from pkg.apperr import AppError, Code
from pkg.ctxutil import Context, Role
from tests.integration.api import PASSWORD, Running, served_on
from tests.servers import Database, Servers

ROUNDS = 25
CHAIN = 6  # refreshes one after the other
VISITOR = Visitor(address="127.0.0.1", request_id="test", trace_id="0" * 32)
EMAIL = "owner@racing.example"


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Running]:
    folder: Path = tmp_path_factory.mktemp("sign-ins")
    async with served_on(servers, module_database, folder, rate_per_minute=100_000) as running:
        yield running


@pytest.fixture(scope="module")
async def owner(api: Running) -> Context:
    made: dict[str, Any] = await api.new_tenant("racing")
    async with api.client(made["api_key"]) as client:
        user = (await client.get("/api/v1/me")).json()["user"]
    return Context(
        tenant_id=UUID(made["id"]), user_id=UUID(user["id"]), role=Role.OWNER, request_id="test", trace_id="0" * 32
    )


async def refresh_on(sessions: SessionService, pair: TokenPair) -> None:
    """Uses each token for the next one, as fast as it can, until one is refused."""
    with contextlib.suppress(AppError):
        for _ in range(CHAIN):
            pair = await sessions.refresh(VISITOR, pair.refresh_token)


async def set_password(api: Running, owner: Context) -> None:
    """As an admin does, without the time that hashing takes. The hash stays, so that the next round can sign in."""
    async with api.services.store.directory() as directory:
        (found,) = await directory.find_sign_ins(EMAIL)
    async with api.services.store.tenant(owner) as tx:
        assert await tx.identity.set_member(owner.user_id, role=None, password_hash=found.password_hash)


async def waiting_or_done(conn: asyncpg.Connection, task: asyncio.Task[TokenPair]) -> None:
    """Returns once the task's transaction waits for a lock, or the task has ended."""
    waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    while not task.done() and not await conn.fetchval(waits):
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("ending", ["password", "removal"])
async def test_a_sign_in_under_way_is_refused_when_its_password_or_member_goes(
    api: Running, owner: Context, module_database: Database, ending: str
) -> None:
    sessions = api.services.api.sessions
    email = f"{ending}@racing.example"
    hashed, other = [await Passwords().hash(text) for text in (PASSWORD, "another password altogether")]
    async with api.services.store.tenant(owner) as tx:
        user = await tx.identity.add_member(email, hashed, Role.MEMBER)
    assert user is not None
    conn = await asyncpg.connect(module_database.superuser)
    try:
        async with api.services.store.tenant(owner) as tx:
            if ending == "password":
                assert await tx.identity.set_member(user, role=None, password_hash=other)
            else:
                assert await tx.identity.remove_member(user)
            signing = asyncio.create_task(sessions.sign_in(VISITOR, email, PASSWORD, None))
            await waiting_or_done(conn, signing)
        with pytest.raises(AppError) as refused:
            await signing
        assert refused.value.code is Code.AUTH_BAD_CREDENTIALS
        assert not await conn.fetchval("select exists (select 1 from refresh_tokens where user_id = $1)", user)
    finally:
        await conn.close()


@pytest.mark.parametrize("ending", ["sign-out", "reuse", "password"])
async def test_nothing_survives_the_end_of_a_sign_in(
    api: Running, owner: Context, module_database: Database, ending: str
) -> None:
    sessions = api.services.api.sessions
    conn = await asyncpg.connect(module_database.superuser)
    try:
        for number in range(ROUNDS):
            first = await sessions.sign_in(VISITOR, EMAIL, PASSWORD, None)
            second = await sessions.refresh(VISITOR, first.refresh_token)
            refreshing = asyncio.create_task(refresh_on(sessions, second))
            await asyncio.sleep(0.001 * (number % 8))  # the end falls into another step each time
            if ending == "sign-out":
                await sessions.sign_out(VISITOR, first.refresh_token)
            elif ending == "reuse":
                with pytest.raises(AppError, match=str(Code.AUTH_INVALID_TOKEN)):
                    await sessions.refresh(VISITOR, first.refresh_token)
            else:
                await set_password(api, owner)
            await refreshing
            living = await conn.fetchval(
                "select count(*) from refresh_tokens where tenant_id = $1 and used_at is null", owner.tenant_id
            )
            assert living == 0
    finally:
        await conn.close()
