"""GET /api/v1/usage over a real database: who may see it, what it sums, and whose."""

from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from internal.entities.conversations import Usage
from internal.entities.ids import new_id
from internal.entities.usage import NewUsage, Purpose
from pkg.ctxutil import Context, Role
from tests.integration.api import Running, add_member, is_problem, served_on
from tests.servers import Database, Servers

PATH = "/api/v1/usage"


@pytest.fixture
async def api(servers: Servers, module_database: Database, tmp_path: Path) -> AsyncGenerator[Running]:
    async with served_on(servers, module_database, tmp_path) as running:
        yield running


async def charge(
    api: Running, tenant: UUID, user: UUID, purpose: Purpose, model: str, *, tokens: tuple[int, int], cost: str = "0"
) -> None:
    ctx = Context(tenant_id=tenant, user_id=user, role=Role.MEMBER, request_id="r", trace_id="t")
    usage = Usage(prompt_tokens=tokens[0], completion_tokens=tokens[1], cost_usd=Decimal(cost))
    async with api.services.store.tenant(ctx) as tx:
        await tx.usage.add(NewUsage(purpose=purpose, model=model, source_id=new_id(), usage=usage))


async def test_sums_of_every_grouping_and_nobody_elses(api: Running) -> None:
    one, other = await api.new_tenant("usage-one"), await api.new_tenant("usage-other")
    tenant, owner = UUID(one["id"]), UUID(one["owner"]["id"])
    member = UUID((await add_member(api, one["api_key"], "m@usage-one.example", "member"))["id"])
    await charge(api, tenant, owner, Purpose.CHAT, "a", tokens=(10, 5), cost="0.0000001")
    await charge(api, tenant, member, Purpose.CHAT, "b", tokens=(1, 2), cost="10")
    await charge(api, tenant, member, Purpose.EMBEDDING, "e", tokens=(100, 0))
    await charge(api, UUID(other["id"]), UUID(other["owner"]["id"]), Purpose.CHAT, "a", tokens=(7, 7))
    found = {}
    async with api.client(one["api_key"]) as client:
        for grouping in ("day", "user", "model", "purpose"):
            answer = await client.get(PATH, params={"group_by": grouping})
            assert answer.status_code == 200, answer.text
            found[grouping] = answer.json()
    for body in found.values():
        assert body["total"] == {
            "requests": 3, "prompt_tokens": 111, "completion_tokens": 7, "total_tokens": 118,
            "cost_usd": "10.0000001", "estimated": False,
        }  # fmt: skip
        assert body["storage"] == {"files": 0, "bytes": 0}
    assert {item["key"]: item["total_tokens"] for item in found["purpose"]["items"]} == {"chat": 18, "embedding": 100}
    assert {item["key"]: item["requests"] for item in found["model"]["items"]} == {"a": 1, "b": 1, "e": 1}
    assert {item["key"]: item["cost_usd"] for item in found["user"]["items"]} == {
        str(owner): "0.0000001", str(member): "10",
    }  # fmt: skip
    (day,) = found["day"]["items"]
    assert day["key"] == found["day"]["to"][:10]


async def test_only_those_who_manage_the_tenant_see_it(api: Running) -> None:
    tenant = await api.new_tenant("usage-roles")
    for role, status in (("viewer", 403), ("member", 403), ("admin", 200), ("owner", 200)):
        async with api.client(await api.new_key(tenant["api_key"], role)) as client:
            assert (await client.get(PATH)).status_code == status, role


async def test_times_bound_what_is_summed(api: Running) -> None:
    tenant = await api.new_tenant("usage-times")
    await charge(api, UUID(tenant["id"]), UUID(tenant["owner"]["id"]), Purpose.CHAT, "a", tokens=(1, 1))
    async with api.client(tenant["api_key"]) as client:
        today = (await client.get(PATH)).json()["to"][:10]
        assert (await client.get(PATH, params={"from": today, "to": today})).json()["total"]["requests"] == 1
        assert (await client.get(PATH, params={"to": f"{today}T00:00:00Z"})).json()["total"]["requests"] == 0
        ended = await client.get(PATH, params={"from": "2026-01-01T08:00:00+08:00", "to": "2026-01-31"})
        assert ended.json()["from"] == "2026-01-01T00:00:00Z"
        assert ended.json()["items"] == []
        for wrong in (
            {"from": "2026-02-01", "to": "2026-01-01"},
            {"from": "2020-01-01", "to": "2026-01-01"},
            {"from": "yesterday"},
            {"from": "2026-13-01"},
            {"from": "2026-01-01T00:00:00"},
            {"from": "9999-12-31T23:00:00-14:00"},
            {"to": "0001-01-01T00:00:00+14:00"},
            {"to": "0001-01-01T00:00:00Z"},
            {"to": "x" * 50},
            {"group_by": "tenant"},
            {"since": "2026-01-01"},
        ):
            is_problem(await client.get(PATH, params=wrong), 400, "request.invalid")


async def test_entries_are_never_changed(api: Running, module_database: Database) -> None:
    tenant = await api.new_tenant("usage-kept")
    owner = UUID(tenant["owner"]["id"])
    await charge(api, UUID(tenant["id"]), owner, Purpose.CHAT, "a", tokens=(1, 1))
    conn = await asyncpg.connect(module_database.app)
    for statement in ("update usage_entries set prompt_tokens = 0", "delete from usage_entries"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute(statement)
    await conn.close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await _charge_as_another(module_database, UUID(tenant["id"]), owner)


async def _charge_as_another(database: Database, tenant: UUID, user: UUID) -> None:
    conn = await asyncpg.connect(database.app)
    try:
        async with conn.transaction():
            await conn.execute(
                "select set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true)",
                str(tenant),
                str(new_id()),
            )
            await conn.execute(
                "insert into usage_entries (tenant_id, id, user_id, purpose, model, source_id, prompt_tokens,"
                " completion_tokens, cost_usd, estimated) values ($1, $2, $3, 'chat', 'a', $2, 1, 1, 0, false)",
                tenant,
                new_id(),
                user,
            )
    finally:
        await conn.close()
