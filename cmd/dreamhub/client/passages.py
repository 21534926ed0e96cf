"""Shows what a search found: file, place, and the passage with the query's words set off."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from dreamhub.client.answers import Hit
from dreamhub.client.printable import one_line, printable

SHOWN = 600
"""Characters of a passage that are shown, those around the first word that was looked for."""
LEAD = 120

_ENDINGS = re.compile(r"(?:ies|ied|ing|ed|es|s|y)$")
_WORD = re.compile(r"[^\W_]+")
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+")


def show_hits(console: Console, query: str, hits: Sequence[Hit]) -> None:
    """Prints the passages, best first."""
    pattern = query_pattern(query)
    for number, hit in enumerate(hits, 1):
        place = one_line(str(hit.location))
        heading = Text(f"{number}. ", style="dim").append(one_line(hit.filename), style="bold")
        heading.append(f"  {place}" if place else "", style="cyan")
        console.print(heading, soft_wrap=True)
        passage = Text(_cut(" ".join(printable(hit.text).split()), pattern))
        if pattern is not None:
            passage.highlight_regex(pattern, style="bold yellow")
        console.print(passage, soft_wrap=not console.is_terminal)
        console.print()


def query_pattern(query: str) -> re.Pattern[str] | None:
    """Finds a query's words in a text: English ones with any ending, Chinese ones by their pairs of characters."""
    parts = list[str]()
    for word in _WORD.findall(query):
        rest = word
        for run in _HAN.findall(word):
            parts += [run] if len(run) <= 2 else [run[at : at + 2] for at in range(len(run) - 1)]
            rest = rest.replace(run, " ")
        parts += [rf"\b{re.escape(_ENDINGS.sub('', piece) or piece)}\w*" for piece in rest.split() if len(piece) > 1]
    return re.compile("|".join(dict.fromkeys(parts)), re.IGNORECASE) if parts else None


def _cut(text: str, pattern: re.Pattern[str] | None) -> str:
    if len(text) <= SHOWN:
        return text
    first = pattern.search(text) if pattern is not None else None
    start = max(0, min((first.start() if first else 0) - LEAD, len(text) - SHOWN))
    end = start + SHOWN
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
