"""Reading query results."""

from typing import TypeVar

T = TypeVar("T")


def sure(value: T | None) -> T:
    """A row or value that the statement always gives, such as a count; its absence is a bug."""
    if value is None:
        raise RuntimeError("a statement that always gives a row gave none")
    return value
