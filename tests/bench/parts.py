"""The parts of `make bench`: each is a program of its own, and what it prints is read here as ratios."""

import re
from collections.abc import Callable, Sequence

import msgspec

from tests.bench.installation import Installation
from tests.bench.ratios import Ratio, parse

RECALL_GOALS = {"small": 0.99, "medium": 0.99, "large": 0.97}
SEARCH = re.compile(r"^ *(small|medium|large)(?: +[\d.]+){3} +([\d.]+) +[\d.]+ +([\d.]+)$", re.MULTILINE)
WRITE = re.compile(r"^ *(\d+) +(yes|no) +\d+ +\d+ +([\d.]+) +([\d.]+)$", re.MULTILINE)
DISPATCH = re.compile(r"(\d) worker\(s\): +(\d+) tasks/s .*?([\d.]+) x arq's default .*?([\d.]+) x saq")
UPLOAD = re.compile(r"([\d.]+) pages/s; ratio to the model's own speed ([\d.]+)")
MODELS = re.compile(r'"(query|ingest)_ratio": ([\d.]+)')
WHILE_READING = re.compile(r"idle: ([\d.]+) ×")


class Part(msgspec.Struct, frozen=True):
    """One program; `quick` are its flags for a short run, None where it has none, `usual` those for any other."""

    name: str
    quick: tuple[str, ...] | None
    read: Callable[[str], list[Ratio]]
    address: Callable[[Installation], Sequence[str]] | None = None
    usual: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return f"tests.bench.{self.name}"


def read_search(printed: str) -> list[Ratio]:
    """Times under row-level security against a plain statement past it, and recall, by size of tenant."""
    found = [(size, float(share), float(recall)) for size, share, recall in SEARCH.findall(printed)]
    return [
        *(Ratio(f"search, {size} tenants: under RLS / plain asyncpg, speed", share, 0.9) for size, share, _ in found),
        *(Ratio(f"search, {size} tenants: recall@10", recall, RECALL_GOALS[size]) for size, _, recall in found),
    ]


def read_lines(printed: str) -> list[Ratio]:
    """Of a program that prints ratios itself."""
    return [ratio for line in printed.splitlines() if (ratio := parse(line)) is not None]


def read_bulk_write(printed: str) -> list[Ratio]:
    """Rows a second against raw COPY, by dimension."""
    return [
        Ratio(
            f"bulk write, {dim} dimensions{', HNSW' if indexed == 'yes' else ''}: ours / raw COPY, rows/s",
            float(ratio),
            float(goal),
        )
        for dim, indexed, ratio, goal in WRITE.findall(printed)
    ]


def read_dispatch(printed: str) -> list[Ratio]:
    """Tasks a second against arq's default and against saq, by number of workers, and the most of them in thousands."""
    found = DISPATCH.findall(printed)
    ratios = [
        ratio
        for workers, _, arq, saq in found
        for ratio in (
            Ratio(f"dispatch, {workers} worker(s): ours / arq's default", float(arq), 5.0),
            Ratio(f"dispatch, {workers} worker(s): ours / saq", float(saq), 0.9),
        )
    ]
    best = max((int(rate) for _, rate, _, _ in found), default=0)
    return [*ratios, Ratio("dispatch: thousands of tasks/s", best / 1000, 1.0)] if found else []


def read_upload(printed: str) -> list[Ratio]:
    """A thousand pages against the model alone; searches meanwhile against idle ones."""
    shares = [float(share) for _, share in UPLOAD.findall(printed)]
    return [
        *(Ratio("upload to searchable / the model alone, speed", share, 0.7) for share in shares),
        *(
            Ratio("search while 1,000 pages are read / idle, p95", float(times), 3.0, at_most=True)
            for times in WHILE_READING.findall(printed)
        ),
    ]


def read_models(printed: str) -> list[Ratio]:
    """The model process: queries beside ingest."""
    goals = {"query": ("query beside ingest / idle, p95", 3.0), "ingest": ("ingest beside queries / alone", 0.8)}
    return [
        Ratio(f"model process: {goals[name][0]}", float(value), goals[name][1], at_most=name == "query")
        for name, value in MODELS.findall(printed)
    ]


def _home(installation: Installation) -> Sequence[str]:
    return ("--home", str(installation.home))


def _urls(installation: Installation) -> Sequence[str]:
    up = installation.up
    return ("--url", up["url"], "--api-key", up["api_key"], "--models-url", up["models_url"])


PARTS = (
    Part("search", ("--passages", "4000", "--tenants", "20", "--queries", "30"), read_search),
    Part("http", ("--passages", "1500", "--rounds", "2", "--seconds", "1"), read_lines, _home),
    Part(
        "bulk_write",
        ("--rows", "1000", "--rounds", "1", "--indexed-rows", "500"),
        read_bulk_write,
        usual=("--rows", "10000", "--rounds", "7"),
    ),
    Part("dispatch", ("--rounds", "1"), read_dispatch),
    Part("queue", ("--quick",), read_lines),
    Part("upload", ("--pages", "60"), read_upload, _urls),
    Part("models", None, read_models),
    Part("memory", ("--recalls", "100"), read_lines),
    Part("streams", ("--streams", "50", "--asks", "10"), read_lines),
    Part("caching", ("--asked", "600", "--every", "200"), read_lines),
)
