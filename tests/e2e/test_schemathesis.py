"""Thousands of generated requests, sensible and senseless, against the running product: every answer as described."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from tests.e2e.product import CHECKOUT, Product, running_product

ENDLESS = "/api/v1/events/stream"
UNFIT = "positive_data_acceptance,negative_data_rejection"
"""A cursor, a time to come, a name that is free: what makes a request sensible is more than its schema."""
SECONDS = 2400


@pytest.fixture(scope="module")
def fuzzed() -> Generator[Product]:
    with running_product(LIMITS__RATE_PER_MINUTE="1000000", LIMITS__QUEUE_DEPTH="1000000") as product:
        yield product


def statuses(product: Product) -> Counter[int]:
    """How often the server gave each status."""
    text = httpx.get(f"{product.up['url']}/metrics", trust_env=False).text
    counted: Counter[int] = Counter()
    for status, count in re.findall(r'^http_requests_total{[^}]*status="(\d+)"[^}]*} (\S+)$', text, re.MULTILINE):
        counted[int(status)] += int(float(count))
    return counted


def run(product: Product, folder: Path, phases: str, examples: int, *, seed: int) -> int:
    """How many requests were answered. Fails with the report, which tells how curl would send what went wrong."""
    up, before = product.up, statuses(product)
    arguments = [
        "run", f"{up['url']}/openapi.json", "--exclude-checks", UNFIT,
        "--phases", phases, "--max-examples", str(examples), "--seed", str(seed), "--exclude-path", ENDLESS,
        "--continue-on-failure", "--no-shrink", "--warnings", "off", "--request-timeout", "30",
    ]  # fmt: skip
    done = subprocess.run(
        [str(Path(sys.executable).with_name("schemathesis")), *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{CHECKOUT / 'cmd'}:{CHECKOUT}",
            "SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks",
            "PRODUCT_URL": up["url"],
            "PLATFORM_TOKEN": up["platform_token"],
            "NO_COLOR": "1",
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    answered = statuses(product) - before
    assert not {status for status in answered if status >= 500}, answered
    # What succeeded is sent twice more, without a credential and with a wrong one. Beyond that, most came through the
    # door, or nothing behind it was tried.
    succeeded = sum(count for status, count in answered.items() if status < 300)
    assert answered[401] - 2 * succeeded < answered.total() / 2, answered
    return answered.total()


def test_generated_requests_are_answered_as_described(fuzzed: Product, tmp_path: Path) -> None:
    assert run(fuzzed, tmp_path, "coverage,fuzzing", 4, seed=1) >= 500


def test_requests_that_follow_from_each_other_are_too(fuzzed: Product, tmp_path: Path) -> None:
    assert run(fuzzed, tmp_path, "stateful", 16, seed=2) >= 50


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
def test_ten_thousand_generated_requests(fuzzed: Product, tmp_path: Path) -> None:
    assert run(fuzzed, tmp_path, "coverage,fuzzing", 400, seed=3) >= 10_000


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
def test_a_thousand_requests_that_follow_from_each_other(fuzzed: Product, tmp_path: Path) -> None:
    answered, seed = 0, 100
    while answered < 1_000:
        seed += 1
        new = run(fuzzed, tmp_path, "stateful", 200, seed=seed)
        assert new > 20  # a few rounds come to a thousand
        answered += new
