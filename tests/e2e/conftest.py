"""One running product for the end-to-end tests that don't break it, and tenants on it."""

import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.product import Product, kill_all, running_product
from tests.servers import reachable_folder


@pytest.fixture(scope="session")
def product() -> Generator[Product]:
    with running_product(LIMITS__RATE_PER_MINUTE="100000", LIMITS__BATCHES="5000") as found:
        yield found


@pytest.fixture
def folder() -> Generator[Path]:
    """Where a test starts products of its own, at `home`. What one that failed has left running ends with it."""
    with reachable_folder() as found:
        try:
            yield found
        finally:
            kill_all(found / "home")


@pytest.fixture
def tenant(product: Product) -> dict[str, Any]:
    return product.new_tenant(f"t{secrets.token_hex(6)}")


@pytest.fixture
def client(product: Product, tenant: dict[str, Any]) -> Generator[httpx.Client]:
    with product.client(tenant["api_key"]) as found:
        yield found


@pytest.fixture
def colleague(product: Product, client: httpx.Client) -> Generator[httpx.Client]:
    """Another member of the same tenant."""
    email = f"{secrets.token_hex(6)}@example.com"
    answer = client.post(
        "/api/v1/members", json={"email": email, "password": "correct horse battery", "role": "member"}
    )
    assert answer.status_code == 201, answer.text
    signed_in = client.post("/api/v1/auth/token", json={"email": email, "password": "correct horse battery"})
    with product.client(signed_in.json()["access_token"]) as found:
        yield found
