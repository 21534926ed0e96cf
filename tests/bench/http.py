"""A search over HTTP beside its limits, as ratios of one run: `python -m tests.bench.http [--home DIR]`.

full   the product's server: authentication, rate limit, log line, metrics, problem mapping
bare   one Litestar handler in a process of its own that calls the same search (tests/bench/bare.py)
raw    asyncpg alone with its arguments at hand (tests/bench/raw.py): for vector searches a plain statement of a role
       that no policy binds, for hybrid ones the product's own function

All three answer the same searches over the same passages; vectors of queries are remembered, so that no model is
measured. Whole runs take turns, each kind's median counts. The load comes from a process of its own.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import httpx
import msgspec
import numpy as np

from dreamhub.embedded import free_port
from internal.providers.embeddings import LocalEmbeddings
from internal.services.terms import TermAnalyser
from pkg.ctxutil import Context, Role
from tests.bench.installation import Installation, Tenant, borrowed
from tests.bench.load import Load
from tests.bench.pdf import WORDS
from tests.bench.ratios import Ratio
from tests.bench.search import PLAIN
from tests.library import SPACE, Library

QUERIES = 64
CLIENTS = 8
PER_DOCUMENT = 50
BASES = 320
"""Passages that are really embedded; the others lie around them, as similar texts do."""
DEPTHS = {"vector": (10, 20, 20, 0), "hybrid": (10, 100, 20, 100)}
FUNCTION = (
    f"select * from {SPACE.function}($1, $2, $3, $4, $5, $6, $7, $8, $9, null, null, null, null, null, null, false)"
)
ITERATIVE = {"jit": "off", "hnsw.iterative_scan": "relaxed_order", "hnsw.ef_search": "100"}


class Query(msgspec.Struct, frozen=True):
    """A text with what a server would make of it."""

    text: str
    vector: list[float]
    terms: list[int]
    counts: list[float]


class Sizes(msgspec.Struct, frozen=True):
    """How much is written, and how long is measured."""

    passages: int
    rounds: int
    seconds: float


async def fill(installation: Installation, tenant: Tenant, passages: int) -> list[Query]:
    """Writes passages past the API, around real embeddings; answers the queries to ask."""
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(WORDS, 80)) for _ in range(passages)]
    asked = [" ".join(rng.choice(WORDS, 6)) for _ in range(QUERIES)]
    provider = LocalEmbeddings(installation.up["models_url"], SPACE)
    bases = (await provider.embed(texts[:BASES], kind="passage", lane="ingest", searched=True)).vectors
    queries = (await provider.embed(asked, kind="query", lane="ingest", searched=True)).vectors
    await provider.close()
    near = bases[np.arange(passages) % BASES] + 0.01 * rng.standard_normal((passages, SPACE.dim))
    vectors = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    library = await Library.open(installation.database)
    ctx = Context(tenant_id=tenant.id, user_id=tenant.user, role=Role.OWNER, request_id="bench", trace_id="0" * 32)
    for start in range(0, passages, PER_DOCUMENT):
        part = slice(start, start + PER_DOCUMENT)
        await library.add(ctx, texts[part], name=f"{start}.txt", embeddings=vectors[part])
    for table in ("documents", "chunks", "chunk_terms", "term_frequencies", SPACE.table):
        await library.owner.execute(f"vacuum analyze {table}")
    await library.close()
    analyser = TermAnalyser()
    found = [analyser.query(tenant.id, text) for text in asked]
    return [
        Query(text, vector.tolist(), terms.terms, [float(count) for count in terms.counts])
        for text, vector, terms in zip(asked, queries, found, strict=True)
    ]


@contextmanager
def bare_endpoint(installation: Installation, tenant: Tenant) -> Generator[str]:
    """Runs tests.bench.bare; its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.bare", str(tenant.id), str(tenant.user), str(port)],
        env={
            **os.environ,
            "DB__DSN": installation.database.app,
            "MODELS__URL": installation.up["models_url"],
        },
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def measured(*command: str) -> Load:
    """Runs a load generator and reads what it prints."""
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Load)


class Comparison:
    """Full, bare and raw on the same searches."""

    def __init__(self, installation: Installation, tenant: Tenant, queries: list[Query], bare: str) -> None:
        self._database = installation.database
        self._tenant = tenant
        self._queries = queries
        self._urls = {"full": f"{installation.up['url']}/api/v1/search", "bare": f"{bare}/api/v1/search"}

    def warm_up(self, mode: str) -> None:
        """Each query once, so that both servers remember its vector; both must find the same."""
        with httpx.Client(timeout=60, trust_env=False, transport=httpx.HTTPTransport(retries=5)) as client:
            for body in self._bodies(mode):
                found = [self._ask(client, url, body) for url in self._urls.values()]
                assert found[0] == found[1], "the bare endpoint finds something else"

    def run(self, kind: str, mode: str, clients: int, seconds: float) -> Load:
        """One kind's load for so many seconds."""
        with tempfile.NamedTemporaryFile() as file:
            if kind == "raw":
                Path(file.name).write_bytes(msgspec.json.encode(self._job(mode, clients, seconds)))
                return measured("tests.bench.raw", file.name)
            Path(file.name).write_bytes(msgspec.json.encode(self._bodies(mode)))
            key = self._tenant.api_key
            return measured("tests.bench.load", self._urls[kind], key, str(clients), str(seconds), file.name)

    def _ask(self, client: httpx.Client, url: str, body: dict[str, Any]) -> list[UUID]:
        answer = client.post(url, json=body, headers={"Authorization": f"Bearer {self._tenant.api_key}"})
        answer.raise_for_status()
        return [item["chunk_id"] for item in answer.json()["items"]]

    def _bodies(self, mode: str) -> list[dict[str, Any]]:
        return [{"query": query.text, "k": 10, "mode": mode} for query in self._queries]

    def _job(self, mode: str, clients: int, seconds: float) -> dict[str, Any]:
        """What tests.bench.raw reads."""
        plain = mode == "vector"
        ids = [self._tenant.id, self._tenant.user]
        return {
            "dsn": self._database.backup if plain else self._database.app,
            "statement": PLAIN if plain else FUNCTION,
            "settings": ITERATIVE if plain else {},
            "clients": clients,
            "seconds": seconds,
            "arguments": [
                [*ids, query.vector] if plain else [*ids, query.vector, query.terms, query.counts, *DEPTHS[mode]]
                for query in self._queries
            ],
        }


def compare(comparison: Comparison, mode: str, sizes: Sizes) -> list[Ratio]:
    """Runs in turn, at 8 clients and at one; prints medians with their spread, and answers the ratios."""
    comparison.warm_up(mode)
    loads: dict[tuple[str, int], list[Load]] = {}
    for _ in range(sizes.rounds):
        for clients in (CLIENTS, 1):
            for kind in ("full", "bare", "raw"):
                found = comparison.run(kind, mode, clients, sizes.seconds)
                loads.setdefault((kind, clients), []).append(found)
    for (kind, clients), runs in loads.items():
        rates = sorted(run.rps for run in runs)
        p50, p95 = median(run.p50_ms for run in runs), median(run.p95_ms for run in runs)
        print(
            f"{mode:>7} {kind:>5} {clients} client(s): {median(rates):6.0f} searches/s"
            f" ({rates[0]:.0f}-{rates[-1]:.0f}), p50 {p50:6.2f} ms, p95 {p95:6.2f} ms"
        )
    many, one = f"{mode} search, {CLIENTS} clients", f"{mode} search, one client"
    return [
        Ratio(f"{many}: full stack / bare endpoint, RPS", _rps(loads, "full", "bare"), 0.75),
        Ratio(f"{many}: full stack / raw asyncpg, RPS", _rps(loads, "full", "raw"), 0.35),
        Ratio(f"{one}: full stack / raw asyncpg, p50", _p50(loads, "full", "raw"), 2.8, at_most=True),
    ]


def _rps(loads: dict[tuple[str, int], list[Load]], ours: str, limit: str) -> float:
    """The median of the rounds' ratios: what disturbs a round disturbs both of its runs."""
    pairs = zip(loads[ours, CLIENTS], loads[limit, CLIENTS], strict=True)
    return median(own.rps / other.rps for own, other in pairs)


def _p50(loads: dict[tuple[str, int], list[Load]], ours: str, limit: str) -> float:
    return median(own.p50_ms / other.p50_ms for own, other in zip(loads[ours, 1], loads[limit, 1], strict=True))


def wait_for(url: str, process_seconds: float = 30.0) -> None:
    """Until something answers there, whatever it says."""
    until = time.monotonic() + process_seconds
    while True:
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.ConnectError:
            assert time.monotonic() < until, f"{url} doesn't answer"
            time.sleep(0.1)


def bench(installation: Installation, sizes: Sizes) -> list[Ratio]:
    """Everything, on a tenant of its own."""
    tenant = installation.new_tenant("bench-http")
    queries = asyncio.run(fill(installation, tenant, sizes.passages))
    with bare_endpoint(installation, tenant) as bare:
        wait_for(bare)
        comparison = Comparison(installation, tenant, queries, bare)
        return [ratio for mode in ("vector", "hybrid") for ratio in compare(comparison, mode, sizes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="of a running `dreamhub up`; else one is started")
    parser.add_argument("--passages", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    flags = parser.parse_args()
    with borrowed(flags.home) as installation:
        ratios = bench(installation, Sizes(flags.passages, flags.rounds, flags.seconds))
    print("\n".join(ratio.line() for ratio in ratios))


if __name__ == "__main__":
    main()
