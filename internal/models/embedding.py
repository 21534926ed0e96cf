"""Embeds text with multilingual-e5-small: 384 float32 values of unit length for each text.

Queries and passages are told apart by the prefix that the model was trained with (Wang et al., Multilingual E5 Text
Embeddings, 2024). A text is cut after 510 tokens, prefix included.
"""

import ctypes
import gc
import os
import re
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from internal.models import weights
from internal.models.neutral import neutral
from internal.models.token_codes import TokenCoder

DIMENSION = 384
LONGEST_PIECE = 32
"""Twice the characters of the longest piece, so that 510 times as many fill any window."""
SPACES = re.compile(" {2,}")

Vectors = npt.NDArray[np.float32]


class Kind(StrEnum):
    """What a text is to the model; the value is OpenAI-style `input_type`."""

    QUERY = "query"
    PASSAGE = "passage"


class Work(msgspec.Struct, frozen=True):
    """A text's token ids, to be embedded; `searched` says as what, for a search: neutral, and with its tokens coded."""

    ids: list[int]
    searched: Kind | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Encoded(NamedTuple):
    """A unit vector of shape (384,), and the codes of the text's tokens (see `token_codes`), empty where not wanted."""

    vector: Vectors
    codes: bytes


class Window(NamedTuple):
    """The token ids of one text as the encoder takes them, and whether some of the text was left out."""

    ids: list[int]
    truncated: bool


class Embedder:
    """The loaded model: one copy of the weights that `replicas` threads may use at the same time."""

    def __init__(self, folder: Path, *, replicas: int) -> None:
        # Tokenizing one text is faster than waking a thread pool, and the pool would take both cores from a query.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from ctranslate2 import Encoder
        from tokenizers import Tokenizer

        self._normaliser = msgspec.json.decode((folder / weights.NORMALISER).read_bytes(), type=weights.Normaliser)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / weights.TOKENIZER))
        self._coder = TokenCoder(np.load(folder / weights.RARITY))
        self._encoder: Any = Encoder(
            str(folder), device="cpu", compute_type="int8", inter_threads=replicas, intra_threads=1
        )

    def normalise(self, text: str) -> str:
        """`text` as SentencePiece's nmt_nfkc rules leave it: composed, folded, single spaces, none at the end."""
        composed = unicodedata.normalize("NFC", text)
        return SPACES.sub(" ", composed.translate(self._normaliser.characters)).rstrip(" ")

    def windows(self, texts: Sequence[str], kind: Kind) -> list[Window]:
        """One window for each text: start token, prefix and text, end token; at most 512 ids."""
        room = self._normaliser.positions - 2
        longest = room * LONGEST_PIECE
        prepared = [self.normalise(f"{kind.value}: {text}") for text in texts]
        encodings = self._tokenizer.encode_batch_fast([text[:longest] for text in prepared], add_special_tokens=False)
        return [
            Window(
                [self._normaliser.bos, *encoding.ids[:room], self._normaliser.eos],
                len(encoding.ids) > room or len(text) > longest,
            )
            for text, encoding in zip(prepared, encodings, strict=True)
        ]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without prefix, start and end."""
        prepared = [self.normalise(text) for text in texts]
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(prepared, add_special_tokens=False)]

    def states(self, sequences: Sequence[Sequence[int]]) -> list[Vectors]:
        """The last layer's states of each sequence, of shape (len(sequence), 384). Threads may call it side by side."""
        hidden = np.asarray(self._encoder.forward_batch([list(ids) for ids in sequences]).last_hidden_state)
        return [states[: len(ids)] for states, ids in zip(hidden, sequences, strict=True)]

    def forward(self, works: Sequence[Work]) -> list[Encoded]:
        """Mean-pooled unit vectors, for searches neutral and with codes. Threads may call it side by side."""
        return [
            self._encoded(work, states)
            for work, states in zip(works, self.states([work.ids for work in works]), strict=True)
        ]

    def _encoded(self, work: Work, states: Vectors) -> Encoded:
        vector = _unit(states.mean(axis=0))
        if work.searched is None:
            return Encoded(vector, b"")
        code = self._coder.query if work.searched is Kind.QUERY else self._coder.passage
        return Encoded(neutral(vector), code(work.ids, states))

    def close(self) -> None:
        """Frees weights and vocabulary. The object is of no use afterwards."""
        self._encoder = self._tokenizer = None
        give_back_memory()


def _unit(vector: Vectors) -> Vectors:
    return vector / np.float32(np.linalg.norm(vector))


def load(cache_dir: Path, *, replicas: int) -> Embedder:
    """Loads the model in about 1 s; the first time it is converted (about 5 s more)."""
    return Embedder(weights.ensure(cache_dir), replicas=replicas)


def give_back_memory() -> None:
    """Collects cycles and returns what is free to the system."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Returns free memory to the system; glibc keeps it otherwise. Does nothing where there is no malloc_trim."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
