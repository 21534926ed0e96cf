"""`dreamhub shadow` on the running product: a version is tried, taken over, and given up."""

import os
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Any

import msgspec
import pytest

from tests.e2e import product
from tests.e2e.product import Product, finished, upload

MINUTE = 60.0


def shadow(running: Product, *words: str) -> subprocess.CompletedProcess[str]:
    root = product.CHECKOUT
    return subprocess.run(
        [sys.executable, "-m", "dreamhub", "shadow", *words, "--home", str(running.home)],
        env={**os.environ, "PYTHONPATH": f"{root / 'cmd'}:{root}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def said(running: Product, *words: str) -> str:
    ended = shadow(running, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def found(running: Product) -> int:
    with running.client() as client:
        body = {"query": "harbour", "k": 100, "mode": "keyword"}
        return len(client.post("/api/v1/search", json=body).json()["items"])


def tried(running: Product) -> tuple[int, dict[str, Any]]:
    """How many passages are found of a file that both versions have read, and what is reported of it."""
    assert "Version 2 is tried on 100.0%" in said(running, "start", "2", "--share", "1")
    text = "\n\n".join(f"Paragraph {number} tells of the harbour and its ships. " * 12 for number in range(8))
    with running.client() as client:
        finished(client, upload(client, "harbour.txt", text.encode())["task_id"])
    until = time.monotonic() + MINUTE
    while not (report := msgspec.json.decode(said(running, "report", "--json")))["by_media_type"]:
        assert time.monotonic() < until
        time.sleep(0.5)
    return found(running), report


@pytest.fixture
def running() -> Generator[Product]:
    """One of its own: the versions are those of all tenants."""
    with product.running_product() as found:
        yield found


def test_a_version_is_tried_taken_over_and_given_up(running: Product) -> None:
    assert "Version 1 reads." in said(running, "status")
    refused = shadow(running, "promote")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "No version is being tried" in refused.stderr
    before, report = tried(running)
    assert report["by_media_type"]["text/plain"]["text_kept"] == 1.0
    assert "text/plain" in said(running, "report")
    assert found(running) == before
    began = time.monotonic()
    taken = said(running, "promote")
    assert time.monotonic() - began < MINUTE
    assert "Every tenant follows" in taken
    assert "Version 2 reads." in taken
    assert found(running) > before
    assert "Version 1 reads." in said(running, "rollback")
    assert found(running) == before


def test_a_worker_that_dies_in_the_middle_of_a_switch_is_no_loss() -> None:
    """It has switched and dies before it knows that nothing is left; another one finds that out."""
    with product.running_product(DREAMHUB_FAILPOINTS="processing.after_switch=crash") as running:
        before, _report = tried(running)
        for order, version, more in (("promote", "2", True), ("rollback", "1", False)):
            workers = running.up["processes"]["worker"]
            told = said(running, order)
            assert "Every tenant follows" in told
            assert f"Version {version} reads." in told
            assert running.up["processes"]["worker"] != workers
            assert found(running) > before if more else found(running) == before
