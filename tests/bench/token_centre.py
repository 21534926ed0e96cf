"""`python -m tests.bench.token_centre`: the mean token state of this product's own pages, for `token_codes.py`.

Run it only for another model: codes that were stored with one centre can't be compared with those of another.
"""

import base64
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from internal.models import embedding
from internal.models.embedding import DIMENSION, Embedder, Kind
from internal.models.token_codes import END, PREFIX, Floats

ROOT = Path(__file__).parents[2]
LEAST_CHARACTERS = 60


def mean(embedder: Embedder, pages: Iterable[Path]) -> Floats:
    """Over all tokens of the paragraphs, code left out."""
    total, count = np.zeros(DIMENSION), 0
    for page in pages:
        for paragraph in page.read_text().split("\n\n"):
            if len(paragraph) > LEAST_CHARACTERS and not paragraph.startswith("```"):
                states = embedder.states([window.ids for window in embedder.windows([paragraph], Kind.PASSAGE)])[0]
                total += states[PREFIX:-END].sum(axis=0)
                count += len(states) - PREFIX - END
    return (total / count).astype(np.float32)


def main() -> None:
    embedder = embedding.load(ROOT / ".dreamhub" / "models", replicas=1)
    english = mean(
        embedder, sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/adr").glob("*.md")])
    )
    chinese = mean(embedder, [ROOT / "README.zh-CN.md"])
    coded = base64.b64encode(((english + chinese) / 2).astype("<f2").tobytes()).decode()
    print("\n".join(f'        "{line}"' for line in textwrap.wrap(coded, 100)))


if __name__ == "__main__":
    main()
