"""What late interaction compares: the tokens of a passage as bits, those of a query as numbers.

A passage answers a query when each of the query's tokens finds one like it there (Khattab and Zaharia, ColBERT, 2020).
The states that the pooled vector is the mean of carry that across languages, where words can't: with them zh → en of
xquad rises from .85 to .92 nDCG@10 (tests/eval), within one language they add nothing.

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

from internal.models.neutral import without_language

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
        "czHisAOzMLBXNUWxDzAfMOM1Ra4JMGgqXDQqrzm0tDToM8+sraxMsrUv8iy8skQwhDXuNAeyIDBNNLq11rKgsPMxMbY8NKIwIrMz"
        "tE4zGLYcrccuXTMYNcUvYzJcsJIwprNqsc+vLjS+KSYvNC3etKS18rXLtSEzYTRUsZwtrjAEOL00pDIoMsy0TbDusCY0nCMFs9so"
        "3C3yMFOxLjABtDm01LKfsFItT7IWNaczlrTDNZywszSAMSSwj7Sftae1+7E4NIs0f600NYKyDTMJto+zWjSaMG61eTEqtTq1LzIe"
        "NdYyU7RisuqtDbXEMUyz3C1TsVy04LP0tCSzgTGIMvao6CpVLNcwrygdNPUyyTYds3wxqK/NsBWzDjSysDQ0nzQDMiQ1arMYNUC1"
        "XDOVse02HTAMMsqyy7JGtD4yTTVTtBC00LW4qU2116/BLo01UbKDsh2xgTSmsl0zVKUoMyOwgSlONg41O7BsqQq0w7OPstSzlbCX"
        "L/MwO6dSsU80S7HUs6O0Ry3hsjU0yzHsMwir/q54MBoxlTJWr2y1uDQSs7QyYTLLtGi1sDThsgCxeigeNCyxHTROM4et7y9St7i0"
        "izLLM5q0y7NlM8qy2rDxs8+1HbGztu+pNzSHMlC1d62isocwo7RqNWCzELDML9uo8jT3MO+0XbSWssixwTQ8NNw20LO5MVcrI6/l"
        "NiIyJjMRKEC0HLGHtNqu4bIkLAEyKLTwsn2wcDIMN9mxwrCxMr4o5TJBNLQ0vazcsBc0ebHXsd2s2bJbMiG0ITb9LoCm9jRhtCcz"
        "wqw1sQEzfjDqtx0xLDDnKGsxJC8XN1Uz27BTshow6TTSIZssNbTHswyxpbQOqJ20uTIbNAW0krANNA0sLS9tsAawZjGztVOxcq9Y"
        "M8e03bU3MZMyrLJJMoSuvbSML32uzK5aMXczfLZIMLYz4LHJNLuy7LKpNKo087O3skkzwjB7NZYxOqsbMDIwUbUVNgwySbKxqfGw"
        "mbJIslAzg7TEs04zcTU8Mzo0"
    ),
    "<f2",
).astype(np.float32)
DIRECTION = np.frombuffer(
    base64.b64decode(
        "IKoZpH+peKgZqzal5BuXqWwheSpzGLMoZRVNqBUtRyaJplyZxZoho00pgqX7J44qTK0zK12hyqj/pe6oJ6iBqm+draHjrCKZCKBa"
        "prIn9CNApugkqqx7rrso4ZMFq9Wimi3EpTutwChzoxQl1C5JKcasICJNK6urF6V3sPiaNiLxIrkt9qKpJWCtTKRyrEWebaCyJIuo"
        "cyxmqHStwKktJ9MsaySQqW4omaD5JI4iaakPI0WuAiq0I6OsGqY6pRifT6nRH4YZXq3too4sMjE1LcAq7adyn8QcMS4TnzAmI6Sy"
        "KR6gciwqnnWrYit1rVMsni0QLJ6fXqt3HlwtsaN7La4xCaF1o2qlPC/mKiAkMB1IKN+pLCdjJBStsikHKICiQi2HHcalKSWALIgX"
        "YS3AoK6j76Izqecb766ppZamUqiHKCgo6JPMLU4pNCpVn4Gg0CvbqgKuIa3yo9Qe5h3HqUWqqRX3rKmqzqzPHooNRakuLWms7aZN"
        "JCKc56okHZSntCgWpNKp0ijCKuClTCx9noeljikyIwssYKpDLaMp9CpKKhwbRyofqD0fP6VdLrWqhJavKFylhJ85KpCgZypsIPKv"
        "3quKLIGpBKCwJy8oQJzom9UcjCq5MFerQRx3rdktkavZKmssuYrfqTch2iXQn+ApPK2WqNEpbKLxKlOncyslGLqqeiJ2HEimbp/J"
        "GKioDayrLr0rc6fmJCKoTa1wKLytoqoSrXeq060IrOslRqDLpZenmJ7sJJulgCzdJwIh4SLXqL4sj69fJkYkoicpKa0MQCYRLWWq"
        "T6CHr2WYgS4hLJismyPqK3qbJ6xIqaqnhxRQpmkurSv7rXQooySzqsuaoqheLEsp46zUJdqldaW3rPutmSqEmToW6SUHrgItUjCz"
        "omylY6oIp9+uVqzRqfkUUCc0K6sik6dCntQv6SMCrBWpU6KtJEmh0iFEpyqnzCRLLImhSCSBqGkulajvGMYjbytfqNUj5yfSGF+k"
        "hagQLWEu1ajXpLwZFxyWqagj"
    ),
    "<f2",
).astype(np.float32)
"""From the Chinese mean to the English one, of unit length: beside Chinese passages it would decide for them."""


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
        return np.packbits(without_language(kept, CENTRE, DIRECTION) @ self._rotation > 0, axis=1).tobytes()

    def query(self, ids: Sequence[int], states: Floats) -> bytes:
        """Float16 of shape (tokens, 384), little-endian. A passage's score is the sum, over these, of each one's
        largest dot product with a token of the passage, whose coordinates are ±1."""
        rarity, states = self._text(ids, states)
        weights = np.maximum(rarity - WEIGHTLESS, LEAST_WEIGHT)
        rarest = np.sort(np.argsort(-weights, kind="stable")[:MOST_QUERY_TOKENS])
        weights = weights[rarest] / max(float(weights[rarest].sum()), LEAST_WEIGHT)
        centred = without_language(states[rarest], CENTRE, DIRECTION)
        unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
        return ((unit @ self._rotation) * (weights[:, None] / DIMENSION**0.5)).astype("<f2").tobytes()

    def _text(self, ids: Sequence[int], states: Floats) -> tuple[Floats, Floats]:
        own = slice(PREFIX, len(ids) - END)
        return self._rarity[np.asarray(ids[own], np.intp)].astype(np.float32), states[own]
