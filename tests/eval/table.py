"""The one table that an evaluation ends with, beside that of the run before it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

HEAD = f"{'set':<26} {'metric':<30} {'n':>5} {'score':>7} {'BM25':>7} {'goal':>8} {'':<6} {'before':>7} {'change':>7}"


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. `goal` is at least this, or with `at_most` at most; `failed` says why there is none."""

    set: str
    metric: str
    value: float = 0.0
    count: int = 0
    bm25: float | None = None
    goal: float | None = None
    at_most: bool = False
    failed: str = ""

    @property
    def met(self) -> bool | None:
        """None where there is no goal. Figures are compared as they are printed."""
        if self.goal is None:
            return None
        value = round(self.value, 3)
        return not self.failed and (value <= self.goal if self.at_most else value >= self.goal)


def mean(name: str, metric: str, values: Sequence[float], **more: Any) -> list[Score]:
    """Their mean as a figure of the set; none where there are no values."""
    if not values:
        return []
    return [Score(set=name, metric=metric, value=sum(values) / len(values), count=len(values), **more)]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation as it is kept."""

    began: datetime
    scores: list[Score]


def lines(scores: Sequence[Score], before: Sequence[Score]) -> list[str]:
    """A head and a line for each score, with the change since the run before where that measured as many."""
    known = {_key(score): score.value for score in before if not score.failed}
    made = [HEAD]
    for score in scores:
        if score.failed:
            made.append(f"{score.set:<26} {score.metric:<30} FAILED: {score.failed}")
            continue
        old = known.get(_key(score))
        goal = "" if score.goal is None else f"{'≤' if score.at_most else '≥'} {score.goal:.3f}"
        verdict = {None: "", True: "met", False: "MISSED"}[score.met]
        made.append(
            f"{score.set:<26} {score.metric:<30} {score.count:>5} {score.value:>7.3f}"
            f" {_shown(score.bm25):>7} {goal:>8} {verdict:<6} {_shown(old):>7}"
            f" {'' if old is None else f'{score.value - old:+.3f}':>7}"
        )
    return made


def read(path: Path) -> list[Score]:
    """The scores of the run that was kept; none where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run).scores
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def keep(path: Path, scores: Sequence[Score], before: Sequence[Score]) -> None:
    """Writes the run; figures that weren't measured this time stay, those of fewer questions or files beside all."""
    run = {_key(score) for score in scores}
    rest = [score for score in before if _key(score) not in run and not score.failed]
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = Run(began=datetime.now(UTC), scores=[*scores, *rest])
    # Renamed into place: a run that is ended while it writes must not lose those before it.
    written = path.with_suffix(".new")
    written.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1))
    written.replace(path)
    shown = lines(scores, before) + (["", "Of earlier runs:", *lines(rest, [])[1:]] if rest else [])
    path.with_suffix(".md").write_text("\n".join(["```", *shown, "```", ""]), encoding="utf-8")


def _key(score: Score) -> tuple[str, str, int]:
    return score.set, score.metric, score.count


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
