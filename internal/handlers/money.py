"""Amounts of money in answers."""

from decimal import Decimal
from typing import Annotated

import msgspec

Usd = Annotated[str, msgspec.Meta(description="US dollars, as a decimal number.", pattern=r"^\d+(\.\d+)?$")]


def usd(amount: Decimal) -> Usd:
    """Without an exponent or noughts at the end: 0.0000001, 0 and 10, not 1E-7, 0E-10 and 1E+1."""
    return f"{amount.normalize():f}"
