"""Readiness: every dependency is asked, and the log tells of changes only."""

from structlog.testing import capture_logs

from internal.services.health import HealthService


async def test_a_dependency_that_stays_down_is_logged_once() -> None:
    down = True

    async def check() -> None:
        if down:
            raise ConnectionError("nobody is there")

    async def fine() -> None:
        return

    health = HealthService({"redis": check, "postgres": fine})
    with capture_logs() as lines:
        states = [(await health.ready())["redis"].status for _ in range(3)]
        down = False
        states += [(await health.ready())["redis"].status for _ in range(2)]
    assert states == ["down", "down", "down", "up", "up"]
    assert [(line["event"], line["dependency"]) for line in lines] == [
        ("a dependency is down", "redis"),
        ("a dependency is up again", "redis"),
    ]
