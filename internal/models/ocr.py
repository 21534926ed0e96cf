"""Reads the text of pictures, Chinese and English, with PP-OCR on onnxruntime; the weights come with `rapidocr`."""

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from internal.models import images, reading_order
from internal.models.images import Picture, Strip
from pkg.apperr import AppError, Code

NICENESS = 5
"""A third of the share of a thread of the default 0: queries and embedding pass, a page still comes to an end."""
DETECTOR = "PP-OCRv6_det_small.onnx"
RECOGNISER = "PP-OCRv6_rec_small.onnx"
SMALLEST_SIDE = 320
"""Pictures with a shorter side are enlarged to it before text is looked for."""
UNBOUNDED = 1_000_000
"""The engine's own bound on the longest side; `images` has chosen the size already."""


class Line(msgspec.Struct, frozen=True):
    """One line of text. `box` is left, top, right, bottom in pixels of the upright picture; confidence 0 to 1."""

    text: str
    box: reading_order.Box
    confidence: float


class Page(msgspec.Struct, frozen=True):
    """What a picture says, in reading order."""

    width: int
    height: int
    lines: list[Line]


class Reader:
    """The loaded engine; one picture at a time. Its threads run at the niceness of the thread that made it."""

    def __init__(self, *, threads: int) -> None:
        # onnxruntime calls home unless this is set before its import.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        from rapidocr import RapidOCR

        folder = _weights()
        self._engine: Any = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.max_side_len": UNBOUNDED,
                # The classifier of upside-down lines turns good ones over.
                "Global.use_cls": False,
                "Det.model_path": str(folder / DETECTOR),
                "Det.limit_side_len": SMALLEST_SIDE,
                "Rec.model_path": str(folder / RECOGNISER),
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def read(self, picture: Picture) -> Page:
        """The text of `picture`; a page without text has no lines."""
        lines = [line for strip in picture.strips() for line in self._read_strip(strip, picture)]
        order = reading_order.order([line.box for line in lines])
        return Page(picture.width, picture.height, [lines[index] for index in order])

    def close(self) -> None:
        """Frees the weights. The object is of no use afterwards."""
        self._engine = None

    def _read_strip(self, strip: Strip, picture: Picture) -> list[Line]:
        blue_first = np.ascontiguousarray(strip.pixels[:, :, ::-1])
        answer = self._engine(blue_first)
        if answer.boxes is None or answer.txts is None:
            return []
        found = zip(answer.boxes, answer.txts, answer.scores, strict=True)
        lines = [
            Line(text.strip(), _outline(corners, strip, picture), round(float(score), 4))
            for corners, text, score in found
        ]
        begin, end = strip.keep
        return [line for line in lines if line.text and begin <= (line.box[1] + line.box[3]) / 2 < end]


def read(reader: Reader, data: bytes, *, megapixels: int) -> Page:
    """Decodes and reads one picture. Raises `file.unreadable` or `file.too_complex`."""
    return reader.read(images.decode(data, megapixels=megapixels))


def lower_priority() -> None:
    """Makes the calling thread, and threads that it starts, give way to others (Linux: niceness is per thread)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _outline(corners: Any, strip: Strip, picture: Picture) -> reading_order.Box:
    """The upright rectangle around four corners, in pixels of the picture and inside it."""
    points = np.asarray(corners, dtype=np.float64) * strip.scale
    left, top = points.min(axis=0)
    right, bottom = points.max(axis=0)
    return (
        max(0, int(left)),
        max(0, int(top) + strip.top),
        min(picture.width, int(np.ceil(right))),
        min(picture.height, int(np.ceil(bottom)) + strip.top),
    )


def _weights() -> Path:
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise AppError(Code.MODEL_UNAVAILABLE, "the package rapidocr is not installed; install the locked requirements")
    folder = Path(spec.origin).parent / "models"
    for name in (DETECTOR, RECOGNISER):
        if not (folder / name).is_file():
            raise AppError(Code.MODEL_UNAVAILABLE, f"rapidocr lacks its weights {name}; reinstall rapidocr 3.10.0")
    return folder
