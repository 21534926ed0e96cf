"""How an upload is told: bars for a person at a terminal, plain lines for everything else."""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dreamhub.client.files import File
from dreamhub.client.printable import one_line

SENT_SHARE = 0.4
"""How much of a file's bar the sending takes; the reading on the server takes the rest."""
NAME_WIDTH = 40


class Ending(StrEnum):
    """How it went for a file."""

    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True):
    """A file, and how it went; `why` is empty for a success."""

    file: File
    ending: Ending
    why: str = ""


class Reporter(Protocol):
    """What `ingest` tells as it goes."""

    def expect(self, files: int) -> None:
        """So many files more."""
        ...

    def sent(self, file: File, count: int) -> None:
        """`count` bytes of the file are on their way."""
        ...

    def reading(self, file: File, stage: str, share: float) -> None:
        """The server works on it; `share` runs from 0 to 1."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """A file is done with."""
        ...

    def note(self, text: str) -> None:
        """Something that isn't about one file."""
        ...


class Bars:
    """One bar overall, and one for each file at work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._overall = progress.add_task("all files", total=0, note="")
        self._expected = self._done = 0
        self._bars: dict[File, TaskID] = {}

    def expect(self, files: int) -> None:
        """Makes the overall bar longer."""
        self._expected += files
        self._show_overall()

    def sent(self, file: File, count: int) -> None:
        """Moves the file's bar."""
        share = count / file.size if file.size else 1.0
        self._show(file, SENT_SHARE * min(share, 1.0), "sending")

    def reading(self, file: File, stage: str, share: float) -> None:
        """Moves the file's bar, with the stage beside it."""
        self._show(file, SENT_SHARE + (1 - SENT_SHARE) * share, stage)

    def ended(self, outcome: Outcome) -> None:
        """Takes the file's bar away; a failure stays in sight."""
        bar = self._bars.pop(outcome.file, None)
        if bar is not None:
            self._progress.remove_task(bar)
        self._done += 1
        self._show_overall()
        if outcome.ending is Ending.FAILED:
            self._progress.console.print(Text(_line(outcome), style="red"))

    def note(self, text: str) -> None:
        """Shows a line above the bars."""
        self._progress.console.print(Text(text, style="dim"))

    def _show_overall(self) -> None:
        note = f"{self._done} of {self._expected}"
        self._progress.update(self._overall, completed=self._done, total=self._expected, note=note)

    def _show(self, file: File, share: float, note: str) -> None:
        bar = self._bars.get(file)
        if bar is None:
            name = one_line(file.path.name)
            name = name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…"
            bar = self._bars[file] = self._progress.add_task(name, total=1.0, note=note)
        self._progress.update(bar, completed=share, note=one_line(note))


class Lines:
    """One line for each file when it is done with."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def expect(self, files: int) -> None:
        """Nothing to show."""

    def sent(self, file: File, count: int) -> None:
        """Nothing to show."""

    def reading(self, file: File, stage: str, share: float) -> None:
        """Nothing to show."""

    def ended(self, outcome: Outcome) -> None:
        """Shows the file's line."""
        say(self._console, _line(outcome))

    def note(self, text: str) -> None:
        """Shows a line."""
        say(self._console, text)


def bars(console: Console) -> Progress:
    """The columns of `Bars`. Names are text of strangers, so nothing in them is markup."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def summarise(console: Console, outcomes: Sequence[Outcome]) -> None:
    """How many went how, and every failure with its words."""
    counts = Counter(outcome.ending for outcome in outcomes)
    reasons = Counter(outcome.why for outcome in outcomes if outcome.ending is Ending.SKIPPED)
    skipped = f"  ({'; '.join(f'{number} {why}' for why, number in reasons.items())})" if reasons else ""
    say(console, "")
    for ending in Ending:
        say(console, f"{ending.value:<10}{counts[ending]:>6}{skipped if ending is Ending.SKIPPED else ''}")
    failed = [outcome for outcome in outcomes if outcome.ending is Ending.FAILED]
    if failed and console.is_terminal:
        table = Table("failed file", "why")
        for outcome in failed:
            table.add_row(Text(one_line(str(outcome.file.path))), Text(outcome.why))
        console.print(table)
    elif failed:
        for outcome in failed:
            say(console, _line(outcome))


def say(console: Console, text: str) -> None:
    """Prints text as it is: no markup, no colours, no line breaks of our own."""
    console.print(Text(text), soft_wrap=True)


def _line(outcome: Outcome) -> str:
    why = f": {outcome.why}" if outcome.why else ""
    return f"{outcome.ending.value:<10} {one_line(str(outcome.file.path))}{why}"
