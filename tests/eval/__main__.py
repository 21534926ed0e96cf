"""Quality, through the product's own API: `make eval DATA=../data`.

Each set becomes tenants of its own. A folder of the right form under DATA is a set: see docs/evaluation.md.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.bench.installation import Installation, borrowed
from tests.eval import answers, files, memory, reading, reports, retrieval
from tests.eval.judge import Judge, judge_of
from tests.eval.table import Score, keep, lines, read

KEPT = Path(".dreamhub-eval/last.json")
Evaluate = Callable[[Installation, Judge, Path, int | None], Awaitable[list[Score]]]
"""The last is how many questions or files at most; None for all."""
OTHERS: dict[str, tuple[str, Evaluate]] = {
    "financebench": ("answers/financebench_public.jsonl", reports.financebench),
    "mtrag": ("answers/mtrag_public.jsonl", answers.mtrag),
    "rgb": ("answers/rgb_en_fact.jsonl", answers.rgb),
    "locomo": ("memory/locomo_public.json", memory.locomo),
    "ocr": ("photos/ocr/truth.json", reading.ocr),
    "receipts": ("photos/receipts/receipts.json", reading.receipts),
    "docling": ("documents/docling", reading.documents),
}
FOLDERS = ("documents", "photos", "hostile")


def known(data: Path) -> dict[str, Evaluate]:
    """The sets that the folder holds, by name."""

    def of(name: str) -> Evaluate:
        return lambda installation, judge, data, limit: retrieval.evaluate(installation, judge, data, limit, name)

    found = {name: of(name) for name in retrieval.sets(data)}
    return found | {name: evaluate for name, (place, evaluate) in OTHERS.items() if (data / place).exists()}


async def evaluate(
    installation: Installation, data: Path, chosen: dict[str, Evaluate], kept: Path, limit: int | None
) -> list[Score]:
    """Each set after the other; one that breaks off is told in the table and ends no other. What is there is kept."""
    judge, before = judge_of(data), read(kept)
    scores: list[Score] = []
    for name, run in chosen.items():
        began = time.perf_counter()
        try:
            found = await run(installation, judge, data, limit)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other sets have nothing to do with it
            found = [Score(set=name, metric="-", failed=f"{type(error).__name__}: {error}")]
        scores += found
        print(f"{name}: {time.perf_counter() - began:.0f} s", *lines(found, before)[1:], sep="\n", flush=True)
        keep(kept, scores, before)
    print("", *lines(scores, before), sep="\n", flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--home", type=Path, help="of a running `dreamhub up`; else one is started")
    parser.add_argument("--sets", nargs="*", help="by name; all without it")
    parser.add_argument("--limit", type=int, help="questions or files of each set; all without it")
    parser.add_argument("--folders", nargs="*", default=[], help=f"of files that must end well: {' '.join(FOLDERS)}")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where the last run's figures are")
    flags = parser.parse_args()
    sets = known(flags.data)
    if flags.limit is not None and flags.limit < 1:
        parser.error("--limit is at least 1")
    if unknown := set(flags.sets or ()) - set(sets):
        parser.error(f"there is no set {', '.join(sorted(unknown))}; there are {', '.join(sets)}")
    chosen = {name: run for name, run in sets.items() if flags.sets is None or name in flags.sets}
    right = True
    with borrowed(flags.home) as installation:
        scores = asyncio.run(evaluate(installation, flags.data, chosen, flags.kept, flags.limit))
        right &= not any(score.failed for score in scores)
        for folder in flags.folders:
            right &= asyncio.run(files.evaluate(installation, flags.data / folder))
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
