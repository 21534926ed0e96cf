"""What was read from a picture."""

import msgspec


class OcrLine(msgspec.Struct, frozen=True):
    """One line of text; `box` is (x0, y0, x1, y1) in pixels, `confidence` lies between 0 and 1."""

    text: str
    box: tuple[float, float, float, float]
    confidence: float


class OcrPage(msgspec.Struct, frozen=True):
    """The lines of a picture in reading order, and its size in pixels."""

    width: int
    height: int
    lines: list[OcrLine]
