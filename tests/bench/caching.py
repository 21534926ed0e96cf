"""Remembered searches beside computed ones: `python -m tests.bench.caching`.

repeat   a hybrid search that is remembered against one for other words each time, as `took_ms` tells and as the
         client's clock does, which adds the same HTTP to both
replay   questions by Zipf's law (exponent 1.1 over 200) from several readers, a document published after every 2,000;
         the share that was answered from memory, and what PostgreSQL was spared, by its own count of blocks that were
         looked at. A publication makes all answers worthless, so the share is what repeats between two of them.
"""

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median

import asyncpg
import httpx
import numpy as np

from tests.bench.installation import Installation, Tenant, borrowed
from tests.bench.pdf import WORDS
from tests.bench.ratios import Ratio
from tests.e2e.product import finished

REPEATS = 200
QUESTIONS = 200
EXPONENT = 1.1
READERS = 4
PASSAGES = 1500
SETTINGS = {"CACHE__SEARCHES": "true"}


def text(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


def client_of(installation: Installation, key: str) -> httpx.Client:
    return httpx.Client(
        base_url=installation.up["url"], headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False
    )


def fill(client: httpx.Client, rng: np.random.Generator) -> None:
    """One document of many passages, read by the product."""
    body = "\n\n".join(text(rng, 300) for _ in range(PASSAGES // 2)).encode()
    publish(client, body)


def publish(client: httpx.Client, body: bytes) -> None:
    """Uploads and waits until it is found."""
    answer = client.post("/api/v1/documents", files={"file": ("a.txt", body)}).raise_for_status().json()
    assert finished(client, answer["task_id"], seconds=600)["status"] == "succeeded"


def ask(client: httpx.Client, query: str) -> tuple[float, float, bool]:
    """Milliseconds of the search and of the whole request, and whether the answer was remembered."""
    began = time.perf_counter()
    answer = client.post("/api/v1/search", json={"query": query}).raise_for_status().json()
    return answer["took_ms"], (time.perf_counter() - began) * 1000, answer["cache"] == "hit"


def repeat(client: httpx.Client, rng: np.random.Generator) -> Ratio:
    """Medians of requests that take turns, and their spread."""
    known = text(rng, 8)
    ask(client, known)
    hits, misses = [], []
    for _ in range(REPEATS):
        for query, found in ((known, hits), (text(rng, 8), misses)):
            took, request, remembered = ask(client, query)
            assert remembered == (query == known)
            found.append((took, request))
    for name, times in (("remembered", hits), ("computed", misses)):
        for what, column in zip(("search", "request"), zip(*times, strict=True), strict=True):
            low, high = np.percentile(column, (5, 95))
            print(f"{name}, {what}: {median(column):.2f} ms, {low:.2f} to {high:.2f}")
    took, request = (
        median(pair[column] for pair in misses) / median(pair[column] for pair in hits) for column in (0, 1)
    )
    print(f"by the client's clock {request:.1f} times")
    return Ratio("search, computed / remembered, p50", took, 10.0)


def replay(installation: Installation, tenant: Tenant, rng: np.random.Generator, asked: int, every: int) -> list[Ratio]:
    """The same questions twice: by a product that remembers, and once more past what is remembered."""
    questions = [text(rng, 8) for _ in range(QUESTIONS)]
    shares = 1 / np.arange(1, QUESTIONS + 1) ** EXPONENT
    drawn = rng.choice(QUESTIONS, asked, p=shares / shares.sum())
    with client_of(installation, tenant.api_key) as owner:
        keys = [
            owner.post("/api/v1/api-keys", json={"name": f"reader {number}", "role": "viewer"}).json()["key"]
            for number in range(READERS)
        ]
        readers = [client_of(installation, key) for key in keys]
        before, hits = asyncio.run(blocks(installation)), 0
        for number, question in enumerate(drawn):
            hits += ask(readers[number % READERS], questions[question])[2]
            if number % every == every - 1:
                publish(owner, text(rng, 50).encode())
        remembered = asyncio.run(blocks(installation)) - before
        # The same once more, each with a mark of its own, so that nothing is remembered.
        before = asyncio.run(blocks(installation))
        for number, question in enumerate(drawn):
            ask(readers[number % READERS], f"{questions[question]} {number}")
            if number % every == every - 1:
                publish(owner, text(rng, 50).encode())
        computed = asyncio.run(blocks(installation)) - before
        for reader in readers:
            reader.close()
    print(f"{asked} questions, a publication after each {every}: {computed} blocks computed, {remembered} remembered")
    return [
        Ratio("replay: answered from memory", hits / asked, 0.85),
        Ratio("replay: blocks that PostgreSQL was spared", 1 - remembered / computed, 0.7),
    ]


async def blocks(installation: Installation) -> int:
    """Blocks that PostgreSQL has looked at in all tables and indexes, in memory or on disk."""
    conn = await asyncpg.connect(installation.up["postgres_dsn"])
    try:
        await conn.execute("select pg_stat_force_next_flush()")
        return await conn.fetchval(
            "select sum(blks_hit + blks_read)::bigint from pg_stat_database where datname = current_database()"
        )
    finally:
        await conn.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="of a running `dreamhub up`; else one is started")
    parser.add_argument("--asked", type=int, default=10_000, help="questions of the replay")
    parser.add_argument("--every", type=int, default=2000, help="questions between two publications")
    flags = parser.parse_args()
    rng = np.random.default_rng(11)
    with borrowed(flags.home, **SETTINGS) as installation:
        tenant = installation.new_tenant("caching")
        with client_of(installation, tenant.api_key) as client:
            fill(client, rng)
            ratios = [repeat(client, rng), *replay(installation, tenant, rng, flags.asked, flags.every)]
        for ratio in ratios:
            print(ratio.line())


if __name__ == "__main__":
    main()
