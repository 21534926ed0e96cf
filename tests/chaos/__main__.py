"""`make chaos SEED=1 MINUTES=5`: the product under kills, pauses and outages, and whether anything was lost.

Prints seed, schedule and verdict; the same seed plays the same schedule again. Without SEED one is drawn. On failure
the whole history is written to a file.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

from tests.chaos import plan
from tests.chaos.run import Outcome, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="replays a schedule; drawn where it isn't given")
    parser.add_argument("--minutes", type=float, help="how long things are broken; 0.75 where it isn't given")
    parser.add_argument("--full", action="store_true", help="1,000 kills and 200 pauses over 2,000 files")
    parser.add_argument("--history", type=Path, help="write the history here, whatever the verdict")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    scale = plan.FULL if given.full else plan.SHORT
    if given.minutes:
        scale = plan.scaled(scale, given.minutes)
    steps = plan.steps(seed, scale)
    print(f"seed {seed}: {scale.files} files in {scale.seconds:.0f} s, leases of {scale.lease_seconds:.0f} s")
    print("  " + ", ".join(f"{count} {kind}" for kind, count in Counter(step.kind for step in steps).most_common()))
    for step in steps:
        print(f"  {step.at:8.2f} s  {step.kind:<9}{step.target:<10}{f'{step.seconds:.2f} s' if step.seconds else ''}")
    sys.stdout.flush()
    began = time.monotonic()
    outcome = asyncio.run(run(seed, scale))
    sys.exit(report(outcome, time.monotonic() - began, given.history))


def report(outcome: Outcome, seconds: float, path: Path | None) -> int:
    """Prints the verdict; answers the exit status."""
    problems = outcome.verdict.problems
    print(f"\nseed {outcome.history.seed}, {seconds:.0f} s")
    for name, value in outcome.verdict.figures.items():
        print(f"  {name:<32}{value:g}")
    if problems and path is None:
        path = Path(f"chaos-{outcome.history.seed}.json")
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(outcome.history), indent=1))
        print(f"history in {path}")
    for problem in problems[:40]:
        print(f"WRONG {problem}")
    print(f"{len(problems)} problems" if problems else "nothing lost, nothing doubled, nothing torn")
    return 1 if problems else 0


if __name__ == "__main__":
    main()
