"""The API on a real socket, with PostgreSQL and Valkey, inside the test's own event loop."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from internal import app
from internal.handlers.routes import Api, create_api
from internal.handlers.server import Server
from internal.repositories.store import Store
from internal.services.embedder import Embedder
from pkg import config
from tests.servers import Database, Servers

PLATFORM_TOKEN = "platform-token-of-the-tests-0123456789"
JWT_SECRET = "jwt-secret-of-the-tests-" + "0123456789" * 4
PASSWORD = "correct horse battery"
SOON = 5.0
PROBLEM = {"type", "title", "status", "detail", "code", "request_id"}


class Running(msgspec.Struct, frozen=True):
    """A served API and what it was built of."""

    url: str
    services: app.Services

    def client(self, credential: str | None = None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20, trust_env=False)

    async def new_tenant(self, name: str) -> dict[str, Any]:
        """A tenant whose owner is owner@<name>.example, with PASSWORD."""
        async with self.client(PLATFORM_TOKEN) as client:
            answer = await client.post(
                "/api/v1/tenants",
                json={"name": name, "owner_email": f"owner@{name}.example", "owner_password": PASSWORD},
            )
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def new_key(self, owner_key: str, role: str) -> str:
        async with self.client(owner_key) as client:
            answer = await client.post("/api/v1/api-keys", json={"name": f"a {role}'s key", "role": role})
        assert answer.status_code == 201, answer.text
        return answer.json()["key"]


def settings_for(database: Database, redis_url: str, folder: Path, **limits: Any) -> config.Settings:
    return config.load(
        DREAMHUB_HOME=str(folder),
        auth=config.Auth(platform_token=PLATFORM_TOKEN, jwt_secret=JWT_SECRET),
        db=config.Db(dsn=database.app, pool_max=8),
        redis=config.Redis(url=redis_url),
        blobs=config.Blobs(url=(folder / "blobs").as_uri()),
        models=config.Models(url="http://127.0.0.1:9"),  # nobody is there
        limits=config.Limits(**limits),
        log=config.Log(format="json"),
    )


@asynccontextmanager
async def served(
    settings: config.Settings, change: Callable[[Api, Store, Embedder], Api] | None = None
) -> AsyncGenerator[Running]:
    """`change` may put a scripted part into the place of a real one."""
    async with app.build(settings) as services:
        api = change(services.api, services.store, services.embedder) if change else services.api
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = Server(create_api(api), api.events, api.chat, keep_alive_seconds=5)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", services)
            finally:
                server.should_exit = True
                await serving


@asynccontextmanager
async def served_on(servers: Servers, database: Database, folder: Path, **limits: Any) -> AsyncGenerator[Running]:
    async with served(settings_for(database, servers.redis_url, folder, **limits)) as running:
        yield running


def is_problem(answer: httpx.Response, status: int, code: str | None = None) -> None:
    """A whole problem of this status, which tells nothing of the inside."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) >= PROBLEM
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    if code:
        assert body["code"] == code, body
    for leak in ("Traceback", "asyncpg", "DETAIL", "select ", "litestar", 'File "'):
        assert leak not in answer.text


async def sign_in(api: Running, email: str, password: str = PASSWORD, **more: str) -> httpx.Response:
    async with api.client() as client:
        return await client.post("/api/v1/auth/token", json={"email": email, "password": password, **more})


async def refresh(api: Running, token: str) -> httpx.Response:
    async with api.client() as client:
        return await client.post("/api/v1/auth/refresh", json={"refresh_token": token})


async def status_of(api: Running, credential: str, path: str = "/api/v1/me") -> int:
    async with api.client(credential) as client:
        return (await client.get(path)).status_code


async def until_refused(api: Running, credential: str) -> float:
    """Seconds until the credential stopped working."""
    started = time.monotonic()
    while await status_of(api, credential) != 401:
        assert time.monotonic() - started < SOON
        await asyncio.sleep(0.1)
    return time.monotonic() - started


async def add_member(api: Running, owner_key: str, email: str, role: str) -> dict[str, Any]:
    async with api.client(owner_key) as client:
        answer = await client.post("/api/v1/members", json={"email": email, "password": PASSWORD, "role": role})
    assert answer.status_code == 201, answer.text
    return answer.json()
