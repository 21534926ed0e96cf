"""`dreamhub shadow`: trying a version of the processing beside the current one, taking it over, going back."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from dreamhub.running import settings_of_running
from internal import app as composition
from internal.entities.processing import ProcessingState
from internal.services.trials import Figures, Report, TrialService

COLUMNS = ("files", "unread", "text kept", "text added", "same passages", "passages", "nearest", "farthest", "seconds")
MEANING = (
    "text kept, text added: shares of distinct sentences. same passages: of the old ones, word by word. passages: new"
    " ones as a ratio to the old. nearest: how near an old passage's vector is to the nearest new one, the mean of"
    " cosines; farthest: the lowest of them."
)


def status(home: Path | None) -> int:
    """Says which version reads, which is tried, and until when one can go back."""
    return _order(home, lambda trials: trials.state())


def start(version: str, share: float, home: Path | None) -> int:
    """Begins a trial."""
    return _order(home, lambda trials: trials.start(version, share))


def stop(home: Path | None) -> int:
    """Ends a trial."""
    return _order(home, lambda trials: trials.stop())


def promote(home: Path | None) -> int:
    """Takes the version that is tried over, and waits until every tenant follows."""
    return _follow(home, lambda trials: trials.promote())


def roll_back(home: Path | None) -> int:
    """Goes back to the previous version, and waits until every tenant follows."""
    return _follow(home, lambda trials: trials.roll_back())


def report(home: Path | None, *, as_json: bool) -> int:
    """Prints how the readings of the version that is tried differ."""
    found = asyncio.run(_trials(home).report())
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return 0
    console = Console()
    console.print(f"Version {found.version} beside {found.against}, on {found.share:.1%} of what is read.")
    if not found.by_media_type:
        console.print("Nothing has been compared yet: upload something, and let the queue `learning` be worked on.")
        return 0
    console.print(_table(found))
    console.print(MEANING)
    console.print("Most different:")
    for item in found.worst:
        reason = item.error_code or f"text kept {_share(item.text_kept)}, farthest {_number(item.vectors_least)}"
        console.print(f"  tenant {item.tenant_id}  content {item.content_id}  {item.media_type}  {reason}")
    return 0


def _trials(home: Path | None) -> TrialService:
    return composition.trials(settings_of_running(home, owner=True))


def _order(home: Path | None, order: Callable[[TrialService], Coroutine[Any, Any, ProcessingState]]) -> int:
    print(_told(asyncio.run(order(_trials(home)))))
    return 0


def _follow(home: Path | None, order: Callable[[TrialService], AsyncGenerator[int]]) -> int:
    asyncio.run(_followed(_trials(home), order))
    return 0


async def _followed(trials: TrialService, order: Callable[[TrialService], AsyncGenerator[int]]) -> None:
    began = time.monotonic()
    async for left in order(trials):
        print(
            f"{left} tenants have yet to follow"
            if left
            else f"Every tenant follows ({time.monotonic() - began:.1f} s)."
        )
    print(_told(await trials.state()))


def _told(state: ProcessingState) -> str:
    lines = [f"Version {state.current} reads."]
    if state.candidate is not None:
        lines.append(f"Version {state.candidate} is tried on {state.share:.1%} of what is read (shadow report).")
    if state.kept_until is not None:
        lines.append(
            f"What version {state.previous} read is kept until {state.kept_until:%Y-%m-%d %H:%M} UTC (shadow rollback)."
        )
    return "\n".join(lines)


def _table(found: Report) -> Table:
    table = Table("type", *COLUMNS)
    for media_type, figures in found.by_media_type.items():
        table.add_row(media_type, *_row(figures))
    return table


def _row(figures: Figures) -> list[str]:
    unread = ", ".join(f"{count} {code}" for code, count in sorted(figures.errors.items()))
    return [
        str(figures.contents),
        unread or "0",
        _share(figures.text_kept),
        _share(figures.text_added),
        _share(figures.chunks_same),
        _number(figures.chunks),
        _number(figures.vectors_mean),
        _number(figures.vectors_least),
        f"{figures.seconds:.1f}",
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
