"""A running `dreamhub up` that a benchmark borrows: its address, its tenants, and its logins."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import UUID, uuid4

import httpx
import msgspec

from internal.repositories import migrate
from tests.e2e.product import running_product
from tests.servers import Database

UNLIMITED = {
    "LIMITS__RATE_PER_MINUTE": "100000000",
    "LIMITS__QUEUE_DEPTH": "1000000",
    "LOG__FORMAT": "json",
    "CACHE__SEARCHES": "false",
}
"""A benchmark is one caller that never pauses, and asks the same again; log lines are those of a deployment."""


class Tenant(msgspec.Struct, frozen=True):
    """A tenant made for a benchmark, and its owner."""

    id: UUID
    user: UUID
    api_key: str


class Installation:
    """Reads up.json and secrets.json of a home."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def up(self) -> dict[str, Any]:
        """Read anew each time: a restarted child changes it."""
        return msgspec.json.decode((self.home / "up.json").read_bytes())

    @property
    def database(self) -> Database:
        """A DSN for each role."""
        return Database(
            name="",
            superuser="",
            owner=self._dsn(migrate.OWNER),
            app=self._dsn(migrate.APP),
            worker=self._dsn(migrate.WORKER),
            relay=self._dsn(migrate.RELAY),
            backup=self._dsn(migrate.BACKUP),
        )

    def new_tenant(self, name: str) -> Tenant:
        """Through the API, as an operator does."""
        up = self.up
        with httpx.Client(base_url=up["url"], trust_env=False, timeout=60) as client:
            answer = client.post(
                "/api/v1/tenants",
                json={"name": name, "owner_email": f"{name}-{uuid4().hex}@example.com"},
                headers={"Authorization": f"Bearer {up['platform_token']}"},
            )
            answer.raise_for_status()
            made = answer.json()
            me = client.get("/api/v1/me", headers={"Authorization": f"Bearer {made['api_key']}"})
            me.raise_for_status()
            return Tenant(UUID(made["id"]), UUID(me.json()["user"]["id"]), made["api_key"])

    def _dsn(self, role: str) -> str:
        secrets = msgspec.json.decode((self.home / "secrets.json").read_bytes())
        parts = urlsplit(self.up["postgres_dsn"])
        place = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{role}:{quote(secrets['database_passwords'][role])}@{place}"))


@contextlib.contextmanager
def borrowed(home: Path | None, **settings: str) -> Generator[Installation]:
    """The one in `home`, or one that is started for the purpose with these settings and removed afterwards."""
    if home is not None:
        yield Installation(home)
        return
    with running_product(**(UNLIMITED | settings)) as product:
        yield Installation(product.home)
