"""Rate limits over HTTP: by key, over several servers, and without Redis."""

from pathlib import Path

from tests.integration.api import is_problem, served, served_on, settings_for
from tests.servers import Database, Servers


async def test_rates_are_limited_by_key(servers: Servers, database: Database, tmp_path: Path) -> None:
    async with served_on(servers, database, tmp_path, rate_per_minute=10) as running:
        made = await running.new_tenant("fast")
        async with running.client(made["api_key"]) as client:
            statuses = [(await client.get("/api/v1/me")).status_code for _ in range(12)]
            assert statuses == [200] * 10 + [429] * 2
            limited = await client.get("/api/v1/me")
            is_problem(limited, 429, "rate.limited")
            assert 1 <= int(limited.headers["retry-after"]) <= 6
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/metrics")).status_code == 200
        other = await running.new_tenant("slow")
        async with running.client(other["api_key"]) as client:
            assert (await client.get("/api/v1/me")).status_code == 200


async def test_two_servers_share_a_limit(servers: Servers, database: Database, tmp_path: Path) -> None:
    settings = settings_for(database, servers.redis_url, tmp_path, rate_per_minute=100)
    async with served(settings) as one, served(settings) as two:
        made = await one.new_tenant("spread")
        async with one.client(made["api_key"]) as first, two.client(made["api_key"]) as second:
            statuses = [(await client.get("/api/v1/me")).status_code for _ in range(60) for client in (first, second)]
    # Refilled meanwhile: a token every 0.6 s. Leased in blocks of five, of which one may lie unused elsewhere.
    assert 95 <= statuses.count(200) <= 112


async def test_without_redis_everything_but_the_sharing_goes_on(database: Database, tmp_path: Path) -> None:
    settings = settings_for(database, "redis://127.0.0.1:9", tmp_path, rate_per_minute=10)
    async with served(settings) as running:
        made = await running.new_tenant("alone")
        async with running.client() as client:
            signed = await client.post(
                "/api/v1/auth/token", json={"email": "owner@alone.example", "password": "correct horse battery"}
            )
            assert signed.status_code == 200
        async with running.client(made["api_key"]) as client:
            statuses = [(await client.get("/api/v1/me")).status_code for _ in range(12)]
        assert statuses == [200] * 10 + [429] * 2
