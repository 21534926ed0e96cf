"""`make bench`: speed as ratios to limits measured in the same run. Flags by ARGS="--quick" or ARGS="--only http".

Starts one product for the parts that need one; the others start their own servers. A missed goal is reported and no
failure: only a part that breaks off makes the exit status 1. Run it on a machine that does nothing else.
"""

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack
from threading import Timer

from tests.bench.installation import Installation, borrowed
from tests.bench.parts import PARTS, Part
from tests.bench.ratios import Ratio, table

PART_SECONDS = 900.0
"""A part that takes longer hangs."""


class BrokenPartError(Exception):
    """A part ended early, or printed no ratio."""


def run(part: Part, flags: list[str]) -> list[Ratio]:
    """Runs a part and shows what it prints. Raises BrokenPartError."""
    began = time.monotonic()
    print(f"\n{part.name} {' '.join(flag for flag in flags if not flag.startswith('dh_'))}", flush=True)
    printed: list[str] = []
    with subprocess.Popen([sys.executable, "-m", part.module, *flags], stdout=subprocess.PIPE, text=True) as process:
        clock = Timer(PART_SECONDS, process.kill)
        clock.start()
        for line in process.stdout or ():
            printed.append(line)
            print(f"  {line}", end="", flush=True)
        clock.cancel()
    if process.returncode != 0:
        raise BrokenPartError(f"{part.name} ended with status {process.returncode}")
    ratios = part.read("".join(printed))
    if not ratios:
        raise BrokenPartError(f"{part.name} printed no ratio")
    print(f"  {time.monotonic() - began:.0f} s")
    return ratios


def bench(parts: list[Part], *, quick: bool) -> tuple[list[Ratio], list[str]]:
    """All ratios, and why the parts that broke did."""
    ratios: list[Ratio] = []
    broken: list[str] = []
    with ExitStack() as stack:
        product: Installation | None = None
        for part in parts:
            flags = list(part.quick or () if quick else part.usual)
            if part.address:
                product = product or stack.enter_context(borrowed(None))
                flags += part.address(product)
            try:
                ratios += run(part, flags)
            except BrokenPartError as error:
                broken.append(str(error))
    return ratios, broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts")
    parser.add_argument("--quick", action="store_true", help="at most three minutes; the figures are rough")
    given = parser.parse_args()
    chosen = [part for part in PARTS if part.name in given.only] if given.only else list(PARTS)
    if given.quick and not given.only:
        chosen = [part for part in chosen if part.quick is not None]
    began = time.monotonic()
    ratios, broken = bench(chosen, quick=given.quick)
    print(f"\n{table(ratios)}\n\n{sum(ratio.met for ratio in ratios)} of {len(ratios)} goals met", end=" ")
    print(f"in {time.monotonic() - began:.0f} s")
    for why in broken:
        print(f"BROKEN {why}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
