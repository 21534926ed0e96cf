"""Processes of `up` whose event loop hangs: they are replaced, and what they had begun is finished once."""

import contextlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e import product
from tests.e2e.product import Product
from tests.servers import reachable_folder

# Each acts on a second or third passage, which the process that replaces the hung one doesn't reach.
HANGS = "ingest.after_parse=block:600@2,upload.after_spool=block:600@3"


@pytest.fixture(scope="module")
def running() -> Generator[Product]:
    with reachable_folder() as folder:
        process = product.start(folder / "home", DREAMHUB_FAILPOINTS=HANGS)
        try:
            product.wait_until_up(folder / "home", process)
            yield Product(folder / "home", process)
        finally:
            product.stop(process)


def send(running: Product, name: str) -> dict[str, Any]:
    with running.client() as client:
        return product.upload(client, name, f"The {name} stands in the reeds.".encode())


def test_whoever_hangs_is_replaced(running: Product) -> None:
    before = running.up["processes"]
    with running.client() as client:
        assert product.finished(client, send(running, "heron")["task_id"])["status"] == "succeeded"
        taken = send(running, "crane")  # at this one the worker hangs
    with ThreadPoolExecutor() as pool:
        lost = pool.submit(send, running, "stork")  # at this one the server does
        with contextlib.suppress(httpx.TransportError), running.client() as other:
            # Kept waiting by the hung server, at most until that one is ended.
            other.get("/healthz")
        with pytest.raises(httpx.TransportError):
            lost.result()
    with running.client() as client:
        done = product.finished(client, taken["task_id"])
        assert [attempt["outcome"] for attempt in done["attempts"]] == ["lost", "succeeded"]
        assert len(client.get(f"/api/v1/documents/{taken['document_id']}/chunks").json()["items"]) == 1
        assert product.finished(client, send(running, "stork")["task_id"])["status"] == "succeeded"
    now = running.up["processes"]
    assert {role for role in now if now[role] != before[role]} == {"server", "worker"}
    said = (running.home.parent / "up.log").read_text()
    for name in ("server", "worker-1"):
        assert f"{name} ended (its event loop hung); starting it again" in said
        assert "the event loop hangs, the process ends" in (running.home / "logs" / f"{name}.log").read_text()
