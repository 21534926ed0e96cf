"""Named places where a test may kill, stop, delay or fail a process. Off unless DREAMHUB_FAILPOINTS names them.

`ingest.after_batch=kill@3,relay.before_mark=sleep:2`: an action for each name, from its n-th passage on (@n, default
1). Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `raise`, `sleep:SECONDS`. `pkg.config` refuses them in production.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Literal

import msgspec

from pkg.apperr import SettingsError

VARIABLE = "DREAMHUB_FAILPOINTS"


class FailpointError(Exception):
    """Raised by the action `raise`."""


class Action(msgspec.Struct, frozen=True):
    """What happens, from which passage on, and for `sleep` how many seconds."""

    verb: Literal["kill", "stop", "raise", "sleep"]
    passage: int = 1
    seconds: float = 0.0


class Failpoints:
    """The armed places of this process and how often each was passed."""

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self._actions = actions
        self._passed: Counter[str] = Counter()

    def pass_by(self, name: str) -> float:
        """Acts where the place is armed; answers the seconds to sleep. Raises FailpointError."""
        action = self._actions.get(name)
        if action is None:
            return 0.0
        self._passed[name] += 1
        if self._passed[name] < action.passage:
            return 0.0
        match action.verb:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raise":
                raise FailpointError(name)
            case "sleep":
                return action.seconds
        return 0.0


def parse(text: str) -> dict[str, Action]:
    """Reads the variable's value. Raises SettingsError for what it doesn't understand."""
    return dict(_parse_one(part.strip()) for part in text.split(",") if part.strip())


def hit(name: str) -> None:
    """A named place. A sleep blocks the thread, and so the event loop: that is what a stalled process does."""
    seconds = _armed().pass_by(name)
    if seconds:
        time.sleep(seconds)


@cache
def _armed() -> Failpoints:
    """Read once, straight from the environment: a place may lie in a child process that has no settings."""
    return Failpoints(parse(os.environ.get(VARIABLE, "")))


def _parse_one(part: str) -> tuple[str, Action]:
    name, _, action = part.partition("=")
    action, _, passage = action.partition("@")
    verb, _, seconds = action.partition(":")
    try:
        return name, msgspec.convert(
            {"verb": verb, "passage": int(passage or 1), "seconds": float(seconds or 0)}, Action, strict=True
        )
    except (ValueError, msgspec.ValidationError):
        raise SettingsError(
            f"{VARIABLE}: {part!r} isn't understood; want name=kill, name=stop, name=raise or name=sleep:SECONDS,"
            " each with @N to begin at the N-th passage"
        ) from None
