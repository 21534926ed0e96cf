"""Named places where a test may crash, stop, delay or fail a process. Off unless DREAMHUB_FAILPOINTS names them.

`ingest.after_batch=crash@3,relay.after_broadcast=delay:2%0.3`: an action for each place. Actions: `crash` (SIGKILL to
oneself: nothing is closed or flushed), `stop` (SIGSTOP), `fail` (raises FailpointError) or `fail:CODE` (raises AppError
with that code), `delay:SECONDS` (this piece of work alone waits), `block:SECONDS` (the whole process stands still).
Each acts from the N-th passage on (`@N`, default 1), at most N times (`*N`), with a probability (`%0.3`); all of it is
counted in one process. An unknown name stops the start, and so does any name in production.
"""

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

import msgspec

from pkg.apperr import AppError, Code, SettingsError

VARIABLE = "DREAMHUB_FAILPOINTS"
TESTS = "test."
"""How names begin that are places in the tests' own programs."""

PLACES: Mapping[str, str] = {
    "upload.after_spool": "The whole file was received, hashed and recognised; nothing of it is stored.",
    "upload.after_scan": "The scanner found nothing; nothing of the file is stored.",
    "upload.after_blob": "The object is stored; no row tells of it yet.",
    "upload.after_commit": "Content, document, task and event are committed; the client hasn't been answered.",
    "part.after_object": "A part of a resumable upload is stored as an object; it doesn't count yet.",
    "part.after_document": "The last part's document is committed; the upload still lacks that part.",
    "archive.after_plan": "An archive's entries are written down; none of them is a document.",
    "archive.after_entry": "An entry is a document, or refused; the next one isn't looked at.",
    "archive.before_removal": "Every entry is settled; the archive is still an object.",
    "bulk.after_slice": "Some tasks of a retry are queued again; the others aren't.",
    "bulk.after_item": "A document of a deletion is gone, or refused; the next one isn't looked at.",
    "relay.after_dispatch": "Tasks are marked as dispatched; their wake-ups aren't in Redis yet.",
    "relay.after_enqueue": "Wake-ups are in Redis; the relay hasn't looked at the outbox since.",
    "relay.after_broadcast": "Events were handed on; they aren't marked, and so are handed on again.",
    "worker.after_claim": "The worker holds leases on tasks; none of them has begun.",
    "worker.heartbeat": "A running task's lease is about to be renewed.",
    "worker.before_ending": "The job is done; the ledger still says that it runs.",
    "ingest.after_parse": "The file was read; none of its passages is stored.",
    "ingest.after_embed": "A batch of passages was embedded; its vectors aren't stored.",
    "ingest.after_batch": "A batch of passages is committed; its generation isn't published.",
    "ingest.before_publish": "The transaction that publishes a generation is about to commit.",
    "ingest.after_publish": "The document is found by searches; its task is still running.",
    "processing.after_switch": "Some of a tenant's contents answer by another version; the others follow.",
    "purge.after_rows": "A content's passages are gone; its object and its row are there.",
    "purge.after_blob": "A content's object is gone; its row is there.",
    "migrate.before_record": "A migration's statements have run; it isn't noted as applied.",
    "migrate.after_record": "A migration is applied and noted; the next one hasn't begun.",
}
"""Each place in the product's code, and what is true there."""

SPECIFICATION = re.compile(
    r"(?P<verb>[a-z]+)(?::(?P<argument>[^@*%]+))?(?:@(?P<passage>\d+))?(?:\*(?P<times>\d+))?(?:%(?P<chance>[\d.]+))?"
)


class FailpointError(Exception):
    """Raised by the action `fail`: an error that nobody expects."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What happens, from which passage on, how often at most, and how likely. `times` 0 is without end."""

    verb: Literal["crash", "stop", "fail", "delay", "block"]
    seconds: float = 0.0
    code: Code | None = None
    passage: int = 1
    times: int = 0
    chance: float = 1.0


class Failpoints:
    """The armed places of this process and how often each was passed and acted."""

    def __init__(self, actions: Mapping[str, Action], draw: Callable[[], float] = random.random) -> None:
        self._actions = actions
        self._draw = draw
        self._passed: Counter[str] = Counter()
        self._acted: Counter[str] = Counter()

    @property
    def names(self) -> list[str]:
        """Places that are armed."""
        return sorted(self._actions)

    def due(self, name: str) -> Action | None:
        """Counts a passage; answers what is to be done there now."""
        action = self._actions.get(name)
        if action is None:
            return None
        self._passed[name] += 1
        if self._passed[name] < action.passage or (action.times and self._acted[name] >= action.times):
            return None
        if action.chance < 1 and self._draw() >= action.chance:
            return None
        self._acted[name] += 1
        return action


async def hit(name: str) -> None:
    """A named place. Raises what its action says."""
    armed = _armed()
    if armed is not None and (action := armed.due(name)):
        await _act(name, action)


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Raises SettingsError for what isn't understood, and for a name that no place has."""
    for name in parse(environ.get(VARIABLE, "")):
        if name not in PLACES and not name.startswith(TESTS):
            raise SettingsError(
                f"{VARIABLE}: there is no place named {name!r}; `dreamhub doctor --failpoints` lists them"
            )


def armed() -> list[str]:
    """The places that this process acts at; empty when failpoints are off."""
    found = _armed()
    return found.names if found else []


def parse(text: str) -> dict[str, Action]:
    """Reads the variable's value. Raises SettingsError for what it doesn't understand."""
    return dict(_parse_one(part.strip()) for part in text.split(",") if part.strip())


async def _act(name: str, action: Action) -> None:
    match action.verb:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "fail":
            if action.code is None:
                raise FailpointError(name)
            raise AppError(action.code, f"The failpoint {name} says so.")
        case "delay":
            await asyncio.sleep(action.seconds)
        case "block":
            time.sleep(action.seconds)  # noqa: ASYNC251 - a stalled event loop is what it is for


@cache
def _armed() -> Failpoints | None:
    """Read once, straight from the environment. None when off: then a place costs a call and a comparison."""
    actions = parse(os.environ.get(VARIABLE, ""))
    return Failpoints(actions) if actions else None


def _parse_one(part: str) -> tuple[str, Action]:
    name, _, text = part.partition("=")
    found = SPECIFICATION.fullmatch(text)
    try:
        if not name or found is None:
            raise ValueError(part)
        return name, _action(found["verb"], found["argument"], found)
    except (ValueError, msgspec.ValidationError):
        raise SettingsError(
            f"{VARIABLE}: {part!r} isn't understood; want name=crash, name=stop, name=fail, name=fail:CODE,"
            " name=delay:SECONDS or name=block:SECONDS, then @N from the N-th passage on, *N at most N times,"
            " %P with probability P"
        ) from None


def _action(verb: str, argument: str | None, found: re.Match[str]) -> Action:
    """Raises ValueError or ValidationError for a verb that isn't one, or whose argument makes no sense."""
    fields: dict[str, object] = {
        "verb": verb,
        "passage": int(found["passage"] or 1),
        "times": int(found["times"] or 0),
        "chance": float(found["chance"] or 1),
    }
    if verb in ("delay", "block"):
        fields["seconds"] = float(argument or "")
    elif argument is not None:
        if verb != "fail":
            raise ValueError(argument)
        fields["code"] = Code(argument)
    return msgspec.convert(fields, Action)
