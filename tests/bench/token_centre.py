"""`python -m tests.bench.token_centre`: what is common to texts of a language, from this product's own pages.

Prints the mean, and the direction in which English and Chinese differ: of token states for token_codes.py, of vectors
for neutral.py. Run it only for another model: what was stored with one can't be compared with what another makes.
"""

import base64
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from internal.models import embedding
from internal.models.embedding import DIMENSION, Embedder, Kind
from internal.models.token_codes import END, PREFIX, Floats

ROOT = Path(__file__).parents[2]
LEAST_CHARACTERS = 60


class Means(NamedTuple):
    """Over all tokens, and over the unit vectors of all paragraphs, code left out."""

    token: Floats
    vector: Floats


def means(embedder: Embedder, pages: Iterable[Path]) -> Means:
    tokens, count, vectors = np.zeros(DIMENSION), 0, []
    for page in pages:
        for paragraph in page.read_text().split("\n\n"):
            if len(paragraph) > LEAST_CHARACTERS and not paragraph.startswith("```"):
                states = embedder.states([window.ids for window in embedder.windows([paragraph], Kind.PASSAGE)])[0]
                tokens += states[PREFIX:-END].sum(axis=0)
                count += len(states) - PREFIX - END
                pooled = states.mean(axis=0)
                vectors.append(pooled / np.linalg.norm(pooled))
    return Means((tokens / count).astype(np.float32), np.mean(vectors, axis=0).astype(np.float32))


def show(name: str, values: Floats) -> None:
    coded = base64.b64encode(values.astype("<f2").tobytes()).decode()
    print(name)
    print("\n".join(f'        "{line}"' for line in textwrap.wrap(coded, 100)))


def main() -> None:
    embedder = embedding.load(ROOT / ".dreamhub" / "models", replicas=1)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/adr").glob("*.md")]
    english, chinese = means(embedder, sorted(pages)), means(embedder, [ROOT / "README.zh-CN.md"])
    for name, one, other in (
        ("token", english.token, chinese.token),
        ("vector", english.vector, chinese.vector),
    ):
        show(f"{name} centre", (one + other) / 2)
        show(f"{name} direction", (one - other) / np.linalg.norm(one - other))


if __name__ == "__main__":
    main()
