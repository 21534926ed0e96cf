"""Reading query results."""

from collections.abc import Sequence
from typing import TypeVar, cast

from internal.entities.parsed import Box

T = TypeVar("T")
BOX_DIGITS = 4
"""Those that parsers and the text reader give; more would be those of the column's single precision."""


def sure(value: T | None) -> T:
    """A row or value that the statement always gives, such as a count; its absence is a bug."""
    if value is None:
        raise RuntimeError("a statement that always gives a row gave none")
    return value


def box_of(sides: Sequence[float] | None) -> Box | None:
    """A box as it was written."""
    return cast("Box", tuple(round(side, BOX_DIGITS) for side in sides)) if sides else None
