"""Credentials from end to end: keys, sign-ins, refresh tokens, revocation."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import asyncpg
import jwt
import pytest

from tests.integration.api import (
    JWT_SECRET,
    PLATFORM_TOKEN,
    Running,
    add_member,
    refresh,
    served_on,
    sign_in,
    status_of,
    until_refused,
)
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


async def test_a_tenant_needs_the_platform_token(api: Running) -> None:
    body = {"name": "x", "owner_email": "x@x.example"}
    for credential in (None, "wrong", PLATFORM_TOKEN[:-1], PLATFORM_TOKEN + "x", "ü"):
        async with api.client(credential if credential != "ü" else None) as client:
            headers = {"Authorization": "Bearer ü".encode("latin-1")} if credential == "ü" else {}
            answer = await client.post("/api/v1/tenants", json=body, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_generated_owner_password_is_shown_once_and_works(api: Running) -> None:
    async with api.client(PLATFORM_TOKEN) as client:
        made = (await client.post("/api/v1/tenants", json={"name": "gen", "owner_email": "Owner@Gen.example"})).json()
    assert made["owner"]["email"] == "owner@gen.example"
    answer = await sign_in(api, "OWNER@gen.example", made["owner"]["password"])
    assert answer.status_code == 200
    assert await status_of(api, answer.json()["access_token"]) == 200


async def test_keys_are_stored_hashed_and_listed_by_prefix(
    api: Running, tenant: dict[str, Any], module_database: Database
) -> None:
    async with api.client(tenant["api_key"]) as client:
        made = (await client.post("/api/v1/api-keys", json={"name": "ci", "role": "member"})).json()
        listed = (await client.get("/api/v1/api-keys")).json()["items"]
    assert made["key"].startswith("dh_")
    assert len(made["key"]) == len("dh_") + 43
    mine = next(item for item in listed if item["id"] == made["id"])
    assert mine["prefix"] == made["key"][: len(mine["prefix"])]
    assert made["key"] not in str(listed)
    conn = await asyncpg.connect(module_database.superuser)
    try:
        rows = await conn.fetch("select hash, prefix, name from api_keys")
    finally:
        await conn.close()
    assert all(made["key"][3:] not in str(dict(row)) for row in rows)


async def test_a_revoked_key_is_refused_within_seconds(api: Running, tenant: dict[str, Any]) -> None:
    key = await api.new_key(tenant["api_key"], "member")
    assert await status_of(api, key) == 200
    async with api.client(tenant["api_key"]) as client:
        listed = (await client.get("/api/v1/api-keys")).json()["items"]
        key_id = next(item["id"] for item in listed if key.startswith(item["prefix"]))
        assert (await client.delete(f"/api/v1/api-keys/{key_id}")).status_code == 204
        assert (await client.delete(f"/api/v1/api-keys/{key_id}")).status_code == 204
    assert await until_refused(api, key) < 1.0  # this very process forgets at once


async def test_what_another_process_revokes_is_refused_within_five_seconds(
    api: Running, tenant: dict[str, Any], module_database: Database
) -> None:
    key = await api.new_key(tenant["api_key"], "member")
    assert await status_of(api, key) == 200
    conn = await asyncpg.connect(module_database.superuser)
    try:
        await conn.execute("update api_keys set revoked_at = now() where prefix = $1", key[:9])
    finally:
        await conn.close()
    assert await status_of(api, key) == 200  # remembered for a moment, which is what makes the limit worth testing
    await until_refused(api, key)


async def test_a_suspended_tenant_is_refused_within_five_seconds(api: Running, module_database: Database) -> None:
    other = await api.new_tenant("suspended")
    token = (await sign_in(api, "owner@suspended.example")).json()["access_token"]
    assert await status_of(api, token) == 200
    conn = await asyncpg.connect(module_database.superuser)
    try:
        await conn.execute("update tenants set status = 'suspended' where id = $1::uuid", other["id"])
    finally:
        await conn.close()
    await until_refused(api, other["api_key"])
    await until_refused(api, token)
    assert (await sign_in(api, "owner@suspended.example")).status_code == 401


async def test_an_expired_key_is_refused(api: Running, tenant: dict[str, Any]) -> None:
    async with api.client(tenant["api_key"]) as client:
        past = await client.post(
            "/api/v1/api-keys", json={"name": "x", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}
        )
        naive = await client.post(
            "/api/v1/api-keys", json={"name": "x", "role": "viewer", "expires_at": "2099-01-01T00:00:00"}
        )
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
        key = (await client.post("/api/v1/api-keys", json={"name": "x", "role": "viewer", "expires_at": soon})).json()[
            "key"
        ]
    assert (past.status_code, naive.status_code) == (400, 400)
    assert await status_of(api, key) == 200
    await until_refused(api, key)


@pytest.mark.parametrize(
    "change",
    [
        *("algorithm", "none", "secret", "issuer", "audience", "expired", "future"),
        *("no jti", "no sid", "sid", "tenant", "user"),
    ],
)
async def test_forged_tokens_are_refused(api: Running, tenant: dict[str, Any], change: str) -> None:
    good = (await sign_in(api, "owner@acme.example")).json()["access_token"]
    claims = jwt.decode(good, JWT_SECRET, algorithms=["HS256"], audience="dreamhub-api")
    secret, algorithm = JWT_SECRET, "HS256"
    if change == "algorithm":
        algorithm = "HS512"
    elif change == "none":
        secret, algorithm = "", "none"
    elif change == "secret":
        secret = "another-secret-0123456789-0123456789-0123"
    elif change == "issuer":
        claims["iss"] = "somebody"
    elif change == "audience":
        claims["aud"] = "something"
    elif change == "expired":
        claims["exp"] = claims["iat"] - 60
    elif change == "future":
        claims["nbf"] = claims["iat"] + 3600
    elif change == "no jti":
        del claims["jti"]
    elif change == "no sid":
        del claims["sid"]
    elif change == "sid":
        claims["sid"] = "01900000-0000-7000-8000-000000000000"
    elif change == "tenant":
        claims["tid"] = "01900000-0000-7000-8000-000000000000"
    else:
        claims["sub"] = "nobody"
    assert (
        await status_of(api, jwt.encode(claims, JWT_SECRET, algorithm="HS256") if change == "nothing" else good) == 200
    )
    assert await status_of(api, jwt.encode(claims, secret, algorithm=algorithm)) == 401


async def test_a_role_in_a_token_means_nothing(api: Running, tenant: dict[str, Any]) -> None:
    await add_member(api, tenant["api_key"], "viewer@acme.example", "viewer")
    token = (await sign_in(api, "viewer@acme.example")).json()["access_token"]
    claims = jwt.decode(token, JWT_SECRET, algorithms=["HS256"], audience="dreamhub-api")
    assert "role" not in claims
    forged = jwt.encode({**claims, "role": "owner"}, JWT_SECRET, algorithm="HS256")
    assert await status_of(api, forged, "/api/v1/api-keys") == 403


async def test_refresh_tokens_are_used_once_and_reuse_ends_the_sign_in(api: Running, tenant: dict[str, Any]) -> None:
    first = (await sign_in(api, "owner@acme.example")).json()
    other = (await sign_in(api, "owner@acme.example")).json()
    second = (await refresh(api, first["refresh_token"])).json()
    assert await status_of(api, second["access_token"]) == 200
    assert second["refresh_token"] != first["refresh_token"]
    assert await status_of(api, first["access_token"]) == 200  # refreshing leaves it its minutes
    assert (await refresh(api, first["refresh_token"])).status_code == 401  # came back: thief or victim
    assert await status_of(api, first["access_token"]) == 401
    assert await status_of(api, second["access_token"]) == 401
    assert (await refresh(api, second["refresh_token"])).status_code == 401  # so its descendants end too
    assert await status_of(api, other["access_token"]) == 200
    assert (await refresh(api, other["refresh_token"])).status_code == 200  # another sign-in goes on


async def test_a_refresh_token_used_ten_times_at_once_gives_one_pair(api: Running, tenant: dict[str, Any]) -> None:
    token = (await sign_in(api, "owner@acme.example")).json()["refresh_token"]
    answers = await asyncio.gather(*(refresh(api, token) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 9


@pytest.mark.parametrize("token", ["x", "dhr_", "dhr_" + "A" * 107, "dhr_" + "é" * 20, "dhr_%", "dh_" + "A" * 43])
async def test_strange_refresh_tokens(api: Running, token: str) -> None:
    assert (await refresh(api, token)).status_code == 401


async def test_sign_out_ends_its_own_sign_in_at_once(api: Running, tenant: dict[str, Any]) -> None:
    first, other = (await sign_in(api, "owner@acme.example")).json(), (await sign_in(api, "owner@acme.example")).json()
    pair = (await refresh(api, first["refresh_token"])).json()
    tokens = [first["access_token"], pair["access_token"]]
    assert [await status_of(api, token) for token in tokens] == [200, 200]
    async with api.client() as client:
        answer = await client.post("/api/v1/auth/sign-out", json={"refresh_token": pair["refresh_token"]})
    assert answer.status_code == 204
    assert [await status_of(api, token) for token in tokens] == [401, 401]
    assert (await refresh(api, pair["refresh_token"])).status_code == 401
    assert await status_of(api, other["access_token"]) == 200


async def test_a_sign_out_in_another_process_is_effective_within_five_seconds(
    api: Running, tenant: dict[str, Any], module_database: Database
) -> None:
    token = (await sign_in(api, "owner@acme.example")).json()["access_token"]
    assert await status_of(api, token) == 200
    family = jwt.decode(token, options={"verify_signature": False})["sid"]
    conn = await asyncpg.connect(module_database.superuser)
    try:
        await conn.execute("update refresh_tokens set used_at = now() where family = $1::uuid", family)
    finally:
        await conn.close()
    assert await status_of(api, token) == 200  # remembered for a moment
    await until_refused(api, token)


async def test_a_sign_in_that_ran_out_takes_its_access_tokens_along(
    api: Running, tenant: dict[str, Any], module_database: Database
) -> None:
    token = (await sign_in(api, "owner@acme.example")).json()["access_token"]
    family = jwt.decode(token, options={"verify_signature": False})["sid"]
    conn = await asyncpg.connect(module_database.superuser)
    try:
        await conn.execute("update refresh_tokens set expires_at = now() where family = $1::uuid", family)
    finally:
        await conn.close()
    assert await status_of(api, token) == 401


@pytest.mark.parametrize("change", ["password", "removal"])
async def test_a_new_password_and_a_removal_end_access_tokens_at_once(
    api: Running, tenant: dict[str, Any], change: str
) -> None:
    member = await add_member(api, tenant["api_key"], f"{change}@acme.example", "member")
    token = (await sign_in(api, f"{change}@acme.example")).json()["access_token"]
    assert await status_of(api, token) == 200
    async with api.client(tenant["api_key"]) as client:
        path = f"/api/v1/members/{member['id']}"
        answer = await (
            client.patch(path, json={"password": "another long password"})
            if change == "password"
            else client.delete(path)
        )
    assert answer.is_success
    assert await status_of(api, token) == 401


async def test_wrong_and_unknown_answer_alike(api: Running, tenant: dict[str, Any]) -> None:
    wrong = (await sign_in(api, "owner@acme.example", "not the password")).json()
    unknown = (await sign_in(api, "nobody@nowhere.example", "not the password")).json()
    assert wrong["code"] == "auth.bad_credentials"
    del wrong["request_id"], unknown["request_id"]
    assert wrong == unknown


async def test_guessing_is_slowed_down_but_others_may_go_on(api: Running, tenant: dict[str, Any]) -> None:
    await add_member(api, tenant["api_key"], "guessed@acme.example", "member")
    answers = [await sign_in(api, "guessed@acme.example", f"guess {number}") for number in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert (await sign_in(api, "guessed@acme.example")).status_code == 429
    assert (await sign_in(api, "owner@acme.example")).status_code == 200


async def test_right_passwords_are_not_counted(api: Running, tenant: dict[str, Any]) -> None:
    await add_member(api, tenant["api_key"], "busy@acme.example", "member")
    assert {(await sign_in(api, "busy@acme.example")).status_code for _ in range(13)} == {200}


async def test_a_password_opens_only_the_tenant_it_was_set_in(api: Running, tenant: dict[str, Any]) -> None:
    """An admin who registers somebody's address first must not get into the tenants that add it later."""
    attacker, victim = await api.new_tenant("attacker"), await api.new_tenant("victim")
    email = "boss@victim.example"
    async with api.client(attacker["api_key"]) as client:
        await client.post(
            "/api/v1/members", json={"email": email, "password": "known to the attacker", "role": "member"}
        )
    async with api.client(victim["api_key"]) as client:
        await client.post("/api/v1/members", json={"email": email, "password": "known to the victim", "role": "admin"})
    answer = await sign_in(api, email, "known to the attacker")
    assert answer.status_code == 200
    async with api.client(answer.json()["access_token"]) as client:
        assert (await client.get("/api/v1/me")).json()["tenant"]["id"] == attacker["id"]
    assert (await sign_in(api, email, "known to the attacker", tenant_id=victim["id"])).status_code == 401


async def test_the_tenant_is_asked_for_only_after_the_right_password(api: Running) -> None:
    one, two = await api.new_tenant("one"), await api.new_tenant("two")
    for made in (one, two):
        await add_member(api, made["api_key"], "both@people.example", "member")
    asked = await sign_in(api, "both@people.example")
    assert asked.status_code == 409
    assert asked.json()["code"] == "auth.tenant_required"
    assert {item["value"] for item in asked.json()["errors"]} == {one["id"], two["id"]}
    wrong = await sign_in(api, "both@people.example", "not the password")
    assert wrong.status_code == 401
    assert "errors" not in wrong.json()
    chosen = await sign_in(api, "both@people.example", tenant_id=two["id"])
    async with api.client(chosen.json()["access_token"]) as client:
        assert (await client.get("/api/v1/me")).json()["tenant"]["id"] == two["id"]
