"""The product under kills, pauses and outages: the figures that "survives anything" is held to.

`python -m tests.chaos --seed N` plays any of these again; see tests/chaos/__main__.py.
"""

from pathlib import Path

import msgspec
import pytest

from tests.chaos import plan
from tests.chaos.history import History
from tests.chaos.plan import Scale
from tests.chaos.run import run


async def survive(seed: int, scale: Scale, folder: Path) -> tuple[History, dict[str, float]]:
    outcome = await run(seed, scale)
    path = folder / f"chaos-{seed}.json"
    path.write_bytes(msgspec.json.encode(outcome.history))
    assert outcome.verdict.problems == [], f"seed {seed}, history in {path}"
    return outcome.history, outcome.verdict.figures


@pytest.mark.timeout(600)
async def test_a_short_run_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    _history, found = await survive(2026, plan.SHORT, tmp_path)
    assert found["kills"] >= plan.SHORT.kills
    assert (found["pauses"], found["FLUSHALLs"]) == (plan.SHORT.pauses, plan.SHORT.flushes)
    assert found["attempts lost"] > 0, "no kill met a task at work"
    assert found["deaths at failpoints"] > 0
    assert found["replacements acknowledged"] > found["replaced, either may answer"]


@pytest.mark.long
@pytest.mark.timeout(9000)
async def test_a_thousand_kills_over_two_thousand_files(tmp_path: Path) -> None:
    history, found = await survive(1, plan.FULL, tmp_path)
    print(found)
    assert len({wanted.file for wanted in history.wanted}) >= 2000  # and those that take their places
    assert found["kills"] >= 1000
    assert (found["pauses"], found["FLUSHALLs"]) == (200, 20)


@pytest.mark.long
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("seed", range(10, 20))
async def test_other_seeds(seed: int, tmp_path: Path) -> None:
    await survive(seed, plan.SHORT, tmp_path)
