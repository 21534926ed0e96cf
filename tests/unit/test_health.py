"""Readiness: every dependency is asked, and the log tells of changes only."""

import asyncio

import pytest
from structlog.testing import capture_logs

from internal.services.health import HealthService


async def test_a_dependency_that_stays_down_is_logged_once() -> None:
    down = True

    async def check() -> None:
        if down:
            raise ConnectionError("nobody is there")

    async def fine() -> None:
        return

    health = HealthService({"redis": check, "postgres": fine}, needed=["postgres"], fresh_seconds=0)
    with capture_logs() as lines:
        states = [(await health.ready()).checks["redis"].status for _ in range(3)]
        down = False
        states += [(await health.ready()).checks["redis"].status for _ in range(2)]
    assert states == ["down", "down", "down", "up", "up"]
    assert [(line["event"], line["dependency"]) for line in lines] == [
        ("a dependency is down", "redis"),
        ("a dependency is up again", "redis"),
    ]


@pytest.mark.parametrize(
    ("down", "status"), [((), "ready"), (("redis",), "degraded"), (("postgres",), "unready"), (("a", "b"), "degraded")]
)
async def test_only_what_is_needed_makes_a_server_unready(down: tuple[str, ...], status: str) -> None:
    async def fine() -> None:
        return

    async def broken() -> None:
        raise ConnectionError

    names = ("postgres", "redis", "a", "b")
    checks = {name: broken if name in down else fine for name in names}
    found = await HealthService(checks, needed=["postgres"], off=["clamd"]).ready()
    assert found.status == status
    assert {name for name, health in found.checks.items() if health.status == "down"} == set(down)
    assert found.checks["clamd"].status == "off"


async def test_a_crowd_of_callers_costs_one_look() -> None:
    asked = 0

    async def check() -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)

    health = HealthService({"postgres": check}, needed=["postgres"], fresh_seconds=3600)
    await asyncio.gather(*(health.ready() for _ in range(50)))
    await health.ready()
    assert asked == 1
