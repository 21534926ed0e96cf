"""Failpoints: off unless named, acting as often as they are told to, and never misread."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pkg import config, failpoints
from pkg.apperr import Code, SettingsError
from pkg.failpoints import PLACES, Action, Failpoints, parse

ROOT = Path(__file__).resolve().parents[2]
HIT = re.compile(r'await failpoints\.hit\("([^"]+)"\)')
PROGRAM = """
import asyncio, time
from pkg import failpoints
async def main():
    ticks = asyncio.create_task(asyncio.sleep(0.01))
    try:
        await failpoints.hit("test.there")
    except Exception as error:
        print(getattr(error, "code", type(error).__name__))
    print("ticked" if ticks.done() else "stood still")
asyncio.run(main())
"""


def test_every_action_is_read() -> None:
    assert parse("a=crash, b=stop@3,c=fail,d=delay:0.5@2*4%0.25,e=fail:database.unavailable*1,f=block:2,") == {
        "a": Action(verb="crash"),
        "b": Action(verb="stop", passage=3),
        "c": Action(verb="fail"),
        "d": Action(verb="delay", seconds=0.5, passage=2, times=4, chance=0.25),
        "e": Action(verb="fail", code=Code.DATABASE_UNAVAILABLE, times=1),
        "f": Action(verb="block", seconds=2),
    }
    assert parse("") == {}


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a=", "=crash", "a=explode", "a=stop:3", "a=crash@x", "a=crash*", "a=crash 3", "a=crash%often"),
        *("a=delay", "a=delay:long", "a=fail:no.such"),
    ],
)
def test_what_isnt_understood_stops_the_start(text: str) -> None:
    with pytest.raises(SettingsError, match="DREAMHUB_FAILPOINTS"):
        parse(text)


def test_a_place_acts_from_its_passage_on_as_often_as_it_is_told_and_others_never_do() -> None:
    places = Failpoints(parse("here=fail@2*2,slow=delay:1.5"))
    assert [bool(places.due("here")) for _ in range(5)] == [False, True, True, False, False]
    assert places.due("elsewhere") is None
    assert places.due("slow") == Action(verb="delay", seconds=1.5)


def test_a_chance_is_drawn_at_each_passage() -> None:
    draws = iter([0.9, 0.29, 0.3, 0.0])
    places = Failpoints(parse("here=crash*2%0.3"), draw=lambda: next(draws))
    assert [bool(places.due("here")) for _ in range(4)] == [False, True, False, True]


def test_each_place_is_registered_once_and_stands_once_in_the_code() -> None:
    files = [file for folder in ("cmd", "internal") for file in (ROOT / folder).rglob("*.py")]
    hits = Counter(name for file in files for name in HIT.findall(file.read_text()))
    assert hits == Counter(PLACES.keys())
    assert all(sentence.endswith(".") for sentence in PLACES.values())
    assert not any("failpoints.hit(" in HIT.sub("", file.read_text()) for file in files)


def test_an_unknown_place_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMHUB_FAILPOINTS", "ingest.after_lunch=crash")
    with pytest.raises(SettingsError, match=r"no place named 'ingest.after_lunch'; `dreamhub doctor --failpoints`"):
        config.load()
    monkeypatch.setenv("DREAMHUB_FAILPOINTS", "ingest.after_batch=crash,test.mine=stop")
    config.load()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("test.there=crash", -signal.SIGKILL, ""),
        ("test.there=fail", 0, "FailpointError\nstood still\n"),
        ("test.there=fail:blob.unavailable", 0, "blob.unavailable\nstood still\n"),
        ("test.there=delay:0.2", 0, "ticked\n"),
        ("test.there=block:0.2", 0, "stood still\n"),
        ("", 0, "stood still\n"),
    ],
)
def test_the_environment_arms_a_process(text: str, code: int, said: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "DREAMHUB_FAILPOINTS": text},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (code, said)


async def test_an_unarmed_place_does_nothing() -> None:
    assert failpoints.armed() == []
    await failpoints.hit("ingest.after_batch")
