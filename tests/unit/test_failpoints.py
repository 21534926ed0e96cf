"""Failpoints: off unless named, from the n-th passage on, and never misread."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pkg.apperr import SettingsError
from pkg.failpoints import Action, FailpointError, Failpoints, parse

ROOT = Path(__file__).resolve().parents[2]


def test_every_action_is_read() -> None:
    assert parse("a=kill, b=stop@3,c=raise,d=sleep:0.5@2,") == {
        "a": Action("kill"),
        "b": Action("stop", 3),
        "c": Action("raise"),
        "d": Action("sleep", 2, 0.5),
    }
    assert parse("") == {}


@pytest.mark.parametrize("text", ["a", "a=", "a=explode", "a=kill@x", "a=sleep:long"])
def test_what_isnt_understood_stops_the_start(text: str) -> None:
    with pytest.raises(SettingsError, match="DREAMHUB_FAILPOINTS"):
        parse(text)


def test_a_place_acts_from_its_passage_on_and_others_never_do() -> None:
    places = Failpoints(parse("here=raise@2,slow=sleep:1.5"))
    places.pass_by("here")
    places.pass_by("elsewhere")
    for _ in range(2):
        with pytest.raises(FailpointError, match="here"):
            places.pass_by("here")
    assert places.pass_by("slow") == 1.5


@pytest.mark.parametrize(("text", "code"), [("there=kill", -signal.SIGKILL), ("", 0)])
def test_the_environment_arms_a_process(text: str, code: int) -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from pkg import failpoints; failpoints.hit('there')"],
        cwd=ROOT,
        env={**os.environ, "DREAMHUB_FAILPOINTS": text},
        check=False,
    )
    assert process.returncode == code
