"""Roles and members from end to end: who may do what, to whom, and since when."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api import PASSWORD, Running, add_member, refresh, served_on, sign_in, status_of, until_refused
from tests.servers import Database, Servers


@pytest.fixture(scope="module")
async def api(
    servers: Servers, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Running]:
    folder: Path = tmp_path_factory.mktemp("api")
    async with served_on(servers, module_database, folder, rate_per_minute=100_000) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(api: Running) -> dict[str, Any]:
    return await api.new_tenant("acme")


MATRIX = [
    ("GET", "/api/v1/me", None, "viewer"),
    ("GET", "/api/v1/documents", None, "viewer"),
    ("GET", "/api/v1/tasks", None, "viewer"),
    ("GET", "/api/v1/dead-letters", None, "viewer"),
    ("POST", "/api/v1/dead-letters/redrive", None, "member"),
    ("GET", "/api/v1/collections", None, "viewer"),
    ("POST", "/api/v1/collections", {"name": "c-{role}"}, "member"),
    ("POST", "/api/v1/conversations", {}, "viewer"),
    ("GET", "/api/v1/conversations", None, "viewer"),
    ("GET", "/api/v1/api-keys", None, "admin"),
    ("POST", "/api/v1/api-keys", {"name": "k", "role": "viewer"}, "admin"),
    ("GET", "/api/v1/members", None, "admin"),
    ("POST", "/api/v1/members", {"email": "m-{role}@acme.example", "password": PASSWORD}, "admin"),
    ("DELETE", "/api/v1/documents/01900000-0000-7000-8000-000000000000", None, "member"),
    ("PATCH", "/api/v1/documents/01900000-0000-7000-8000-000000000000", {}, "member"),
]


@pytest.mark.parametrize("role", ["owner", "admin", "member", "viewer"])
async def test_roles(api: Running, tenant: dict[str, Any], role: str) -> None:
    order = ["owner", "admin", "member", "viewer"]
    key = await api.new_key(tenant["api_key"], role)
    async with api.client(key) as client:
        for method, path, body, needed in MATRIX:
            sent = {name: value.format(role=role) for name, value in body.items()} if body is not None else None
            answer = await client.request(method, path, json=sent)
            if order.index(role) <= order.index(needed):
                assert answer.status_code in (200, 201, 202, 404), (method, path, answer.text)
            else:
                assert answer.status_code == 403, (method, path, answer.text)
                assert answer.json()["code"] == "auth.forbidden"
                assert needed in answer.json()["detail"]


async def test_nobody_gives_more_than_they_have(api: Running, tenant: dict[str, Any]) -> None:
    admin = await api.new_key(tenant["api_key"], "admin")
    async with api.client(admin) as client:
        assert (await client.post("/api/v1/api-keys", json={"name": "k", "role": "owner"})).status_code == 403
        answer = await client.post(
            "/api/v1/members", json={"email": "o@acme.example", "password": PASSWORD, "role": "owner"}
        )
        assert answer.status_code == 403
        owner = tenant["owner"]["id"]
        assert (await client.patch(f"/api/v1/members/{owner}", json={"role": "viewer"})).status_code == 403
        assert (await client.patch(f"/api/v1/members/{owner}", json={"password": "taken over"})).status_code == 403
        assert (await client.delete(f"/api/v1/members/{owner}")).status_code == 403
        keys = (await client.get("/api/v1/api-keys")).json()["items"]
        owners = next(item["id"] for item in keys if item["role"] == "owner")
        assert (await client.delete(f"/api/v1/api-keys/{owners}")).status_code == 403


async def test_a_key_never_does_more_than_its_holder_may_today(api: Running, tenant: dict[str, Any]) -> None:
    member = await add_member(api, tenant["api_key"], "demoted@acme.example", "admin")
    token = (await sign_in(api, "demoted@acme.example")).json()["access_token"]
    key = await api.new_key(token, "admin")
    assert await status_of(api, key, "/api/v1/members") == 200
    async with api.client(tenant["api_key"]) as client:
        assert (await client.patch(f"/api/v1/members/{member['id']}", json={"role": "viewer"})).status_code == 200
    assert await status_of(api, key, "/api/v1/members") == 403
    assert await status_of(api, token, "/api/v1/members") == 403


async def test_a_removed_member_loses_everything(api: Running, tenant: dict[str, Any]) -> None:
    member = await add_member(api, tenant["api_key"], "leaver@acme.example", "admin")
    pair = (await sign_in(api, "leaver@acme.example")).json()
    key = await api.new_key(pair["access_token"], "member")
    async with api.client(tenant["api_key"]) as client:
        assert (await client.delete(f"/api/v1/members/{member['id']}")).status_code == 204
        assert (await client.delete(f"/api/v1/members/{member['id']}")).status_code == 404
    await until_refused(api, pair["access_token"])
    await until_refused(api, key)
    assert (await refresh(api, pair["refresh_token"])).status_code == 401
    assert (await sign_in(api, "leaver@acme.example")).status_code == 401


async def test_a_new_password_ends_older_sign_ins(api: Running, tenant: dict[str, Any]) -> None:
    member = await add_member(api, tenant["api_key"], "renewed@acme.example", "member")
    pair = (await sign_in(api, "renewed@acme.example")).json()
    async with api.client(tenant["api_key"]) as client:
        await client.patch(f"/api/v1/members/{member['id']}", json={"password": "another good one"})
    assert (await refresh(api, pair["refresh_token"])).status_code == 401
    assert (await sign_in(api, "renewed@acme.example")).status_code == 401
    assert (await sign_in(api, "renewed@acme.example", "another good one")).status_code == 200


async def test_a_tenant_keeps_an_owner(api: Running) -> None:
    made = await api.new_tenant("lonely")
    async with api.client(made["api_key"]) as client:
        path = f"/api/v1/members/{made['owner']['id']}"
        assert (await client.delete(path)).json()["code"] == "request.conflict"
        assert (await client.patch(path, json={"role": "member"})).json()["code"] == "request.conflict"
        second = await client.post(
            "/api/v1/members", json={"email": "2@lonely.example", "password": PASSWORD, "role": "owner"}
        )
        assert second.status_code == 201
        both = await asyncio.gather(client.delete(path), client.delete(f"/api/v1/members/{second.json()['id']}"))
    assert sorted(answer.status_code for answer in both)[0] == 204
    assert {answer.status_code for answer in both} != {204}


async def test_members_of_other_tenants_are_not_there(api: Running, tenant: dict[str, Any]) -> None:
    other = await api.new_tenant("elsewhere")
    async with api.client(tenant["api_key"]) as client:
        foreign = await client.patch(f"/api/v1/members/{other['owner']['id']}", json={"role": "viewer"})
        unknown = await client.patch("/api/v1/members/01900000-0000-7000-8000-000000000000", json={"role": "viewer"})
        malformed = await client.patch("/api/v1/members/nope", json={"role": "viewer"})
    answers = [answer.json() | {"request_id": ""} for answer in (foreign, unknown, malformed)]
    assert answers[0] == answers[1] == answers[2]
    assert foreign.status_code == 404


async def test_members_are_listed_page_by_page(api: Running) -> None:
    made = await api.new_tenant("crowd")
    emails = sorted(["owner@crowd.example", *(f"m{number}@crowd.example" for number in range(4))])
    for email in emails[:4]:
        await add_member(api, made["api_key"], email, "viewer")
    found, cursor = [], None
    async with api.client(made["api_key"]) as client:
        while True:
            page = (
                await client.get("/api/v1/members", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
            ).json()
            found += [item["email"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    assert found == emails
