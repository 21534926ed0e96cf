"""What late interaction compares: the tokens of a passage as bits, those of a query as numbers.

A passage answers a query when each of the query's tokens finds one like it there (Khattab and Zaharia, ColBERT, 2020).
The states that the pooled vector is the mean of carry that across languages, where words can't: with them zh → en of
xquad rises from .85 to .92 nDCG@10 (tests/bench/evaluate.py), within one language they add nothing.

A token of a passage is stored as the signs of its centred state after a random rotation, 48 bytes; the query's tokens
stay numbers (asymmetric, as in RaBitQ, Gao and Long, 2024). Both lose .00 to .02 against float32. Rare pieces count
more: the Unigram model's own log probability tells which, without a corpus. The commonest pieces of a passage, a third
of an English text, are left out, at no loss.
"""

import base64
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DIMENSION = 384
BLOCK = 128
"""Width of a Hadamard matrix; three of them make 384."""
PREFIX, END = 4, 1
"""Tokens of a window that aren't the text's: start token, "query" or "passage", ":" and what parts them; end token."""
COMMON = 8.0
"""Pieces likelier than e^-8 are left out of passages."""
WEIGHTLESS, LEAST_WEIGHT = 4.0, 0.1
MOST_QUERY_TOKENS = 32
"""The rarest; a longer query covers its passages by words."""

# The mean state of prose: half of it this product's English pages, half its Chinese one, as
# tests/bench/token_centre.py computes it. Without it all states look alike.
CENTRE = np.frombuffer(
    base64.b64decode(
        "dzHSsAezILBaNUOxJTAYMOM1Ma7mL3IqYzQ0rze0szT0M6msv6w7suwv3CzHskkwgzXpNBKyLDBXNLy177KgsOUxN7ZGNJowCrM7"
        "tFIzHLbwrKwugTMbNbQvZDJksH0wqbNvscWvLTTnKRovMC3itKe18rXQtR0zZjRgsaktpjAFOL80rTIhMsy0TrD/sCc0cyMEs7Eo"
        "0i3nMFyxLDAItD20zbKZsGUtT7ITNZwzjrTHNZ2wtTSGMRywk7Sgtaa1+LE5NIw0iK0tNX2yJTMJto2zZDSOMHa1dTEntTa1JDIf"
        "NcwyV7Rrsu2tCrXCMVmzuS1jsVe09LPrtC2zjDF3Mh+p3ip2LOQwpigbNOIyvzYNs3Exoq/SsBqzCTSssEI0mzT3MSY1ZrMaNUC1"
        "XjOtsfM2/i8JMtOyy7JHtEQySDVDtBi01LVqqVG10K+yLpg1WrJ6shaxgzSuslozQ6U8MxmwcylXNg41PrCvqQe0w7OessKzkbCl"
        "L/4w7aZbsU40N7HQs6K0ay32sjM0vDHoMw2r9a6BMCwxkTIwr221vDQVs6UyVTLVtGu1rTTjsv+wdCgoNCSxEzRMM4+t4y9St7O0"
        "kTLMM5y00rN6M8ay4LDps8+1F7GxtqepNTR+MlC1iK2ispcworRoNVizE7CyL9So8DToMPG0X7SGss6xxTRANNs2tbO5MXUrHq/l"
        "Nh4yJjMBJz60FbGMtOGu3rIzLAwyK7Tssn6wcjISN+OxubCnMtMo1jJTNLM0zKzasB40frHosbesw7JhMiK0IzYWLxWm+jRhtCcz"
        "0qw7sRczgTDrtx4xGTD0KHgxKS8TN1UzuLBOsikw6TQnIo8sOLTFswuxpbQtqJe0uzIVNAy0oLAONCQsLS9qsPOvZDGvtWWxZq9d"
        "M72037VFMYkyubJOMpyuxLSaL42u+a5QMXMzfbZPMJwz67HDNMiy9rKoNKI0BbSvskgzvDCANY0xWqsoMCwwT7URNgIyP7IEqv+w"
        "jrJDslIzebS/s1gzcDU+MzI0"
    ),
    "<f2",
).astype(np.float32)


def _rotation() -> Floats:
    """An orthogonal matrix of shape (384, 384): signs, Hadamard blocks and a shuffle, three times.

    Made of digests and exact steps: what is stored is compared years later on another machine.
    """
    hadamard = np.ones((1, 1), np.float32)
    while len(hadamard) < BLOCK:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    blocks = np.kron(np.eye(DIMENSION // BLOCK, dtype=np.float32), hadamard)
    shuffle = np.arange(DIMENSION).reshape(-1, BLOCK).T.ravel()
    made = np.eye(DIMENSION, dtype=np.float32)
    for step in range(3):
        drawn = hashlib.shake_256(f"token codes {step}".encode()).digest(DIMENSION // 8)
        signs = np.unpackbits(np.frombuffer(drawn, np.uint8)).astype(np.float32) * 2 - 1
        made = ((made * signs) @ blocks)[:, shuffle]
    return made / np.float32(BLOCK**1.5)


class TokenCoder:
    """Codes the states of one model. `rarity` is the negative log probability of each piece, by id."""

    def __init__(self, rarity: npt.NDArray[np.float16]) -> None:
        self._rarity = rarity
        self._rotation = _rotation()

    def passage(self, ids: Sequence[int], states: Floats) -> bytes:
        """48 bytes for each kept token of a window's `states`, of shape (len(ids), 384); all of them where all are
        common."""
        rarity, states = self._text(ids, states)
        rare = rarity >= COMMON
        kept = states[rare] if rare.any() else states
        # The length of a state doesn't change its signs.
        return np.packbits((kept - CENTRE) @ self._rotation > 0, axis=1).tobytes()

    def query(self, ids: Sequence[int], states: Floats) -> bytes:
        """Float16 of shape (tokens, 384), little-endian. A passage's score is the sum, over these, of each one's
        largest dot product with a token of the passage, whose coordinates are ±1."""
        rarity, states = self._text(ids, states)
        weights = np.maximum(rarity - WEIGHTLESS, LEAST_WEIGHT)
        rarest = np.sort(np.argsort(-weights, kind="stable")[:MOST_QUERY_TOKENS])
        weights = weights[rarest] / max(float(weights[rarest].sum()), LEAST_WEIGHT)
        centred = states[rarest] - CENTRE
        unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
        return ((unit @ self._rotation) * (weights[:, None] / DIMENSION**0.5)).astype("<f2").tobytes()

    def _text(self, ids: Sequence[int], states: Floats) -> tuple[Floats, Floats]:
        own = slice(PREFIX, len(ids) - END)
        return self._rarity[np.asarray(ids[own], np.intp)].astype(np.float32), states[own]
