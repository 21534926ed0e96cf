"""What a benchmark claims: a ratio to a limit that was measured in the same run, with its goal."""

import re

import msgspec

LINE = re.compile(r"^ratio (?P<name>.+?) +(?P<value>[\d.]+) +(?P<sign>[≥≤]) (?P<goal>[\d.]+)$")


class Ratio(msgspec.Struct, frozen=True):
    """`value` should be at least `goal`, or at most where `at_most` says so."""

    name: str
    value: float
    goal: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal was reached, at the precision that is printed."""
        value = round(self.value, 3)
        return value <= self.goal if self.at_most else value >= self.goal

    def line(self) -> str:
        """For people, and for `parse`."""
        return f"ratio {self.name:<58} {self.value:>8.3f}  {'≤' if self.at_most else '≥'} {self.goal:g}"


def parse(line: str) -> Ratio | None:
    """What `line` wrote; None for any other line."""
    found = LINE.match(line.strip())
    if found is None:
        return None
    return Ratio(found["name"], float(found["value"]), float(found["goal"]), found["sign"] == "≤")


def table(ratios: list[Ratio]) -> str:
    """One line each, with the verdict."""
    return "\n".join(
        f"{ratio.line().removeprefix('ratio '):<80} {'met' if ratio.met else 'MISSED'}" for ratio in ratios
    )
