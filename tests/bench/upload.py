"""From upload to searchable for 1,000 pages, and what interactive searches feel of it.

The limit is the local model itself: as many passages of the same size, embedded as fast as it can with nothing else.
"""

import argparse
import asyncio
import statistics
import time

import httpx
import msgspec

from internal.providers.local_models import model_client
from internal.wiring import LOCAL_MODEL
from tests.bench.pdf import make_pdf

QUERIES = (
    "insurance of a warehouse",
    "年度预算的审批",
    "traffic on the harbour railway",
    "who signs the purchase order",
)
PATIENCE = 1800.0


class Result(msgspec.Struct, frozen=True):
    """Seconds and ratios of one run."""

    pages: int
    chunks: int
    seconds: float
    limit_seconds: float
    idle_p95_ms: float
    busy_p95_ms: float

    def lines(self) -> list[str]:
        return [
            f"upload to searchable   {self.pages} pages, {self.chunks} passages: {self.seconds:.1f} s,"
            f" {self.pages / self.seconds:.1f} pages/s; ratio to the model's own speed"
            f" {self.limit_seconds / self.seconds:.2f}",
            f"search while it reads  p95 {self.busy_p95_ms:.1f} ms against {self.idle_p95_ms:.1f} ms idle:"
            f" {self.busy_p95_ms / self.idle_p95_ms:.2f} × (goal ≤ 3)",
        ]


async def search_times(client: httpx.AsyncClient, until: asyncio.Event | None, count: int) -> list[float]:
    """Milliseconds of searches at a person's pace, `count` of them or until the event."""
    found: list[float] = []
    while (len(found) < count) if until is None else not until.is_set():
        query = f"{QUERIES[len(found) % len(QUERIES)]} {time.monotonic_ns()}"  # no query vector is remembered
        started = time.perf_counter()
        answer = await client.post("/api/v1/search", json={"query": query, "k": 10})
        answer.raise_for_status()
        found.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.05)
    return found


async def model_seconds(models_url: str, texts: list[str]) -> float:
    """How long the model process alone takes for these passages."""
    async with model_client(models_url, timeout=600) as client:
        started = time.perf_counter()
        batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        slots = asyncio.Semaphore(2)

        async def one(batch: list[str]) -> None:
            async with slots:
                body = {"model": LOCAL_MODEL, "input": batch, "encoding_format": "base64"}
                answer = await client.post("/v1/embeddings", json=body)
                answer.raise_for_status()

        await asyncio.gather(*(one(batch) for batch in batches))
        return time.perf_counter() - started


async def measure(url: str, key: str, models_url: str, pages: int) -> Result:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        seed = time.time_ns()
        warm = await client.post("/api/v1/documents", files={"file": ("warm.pdf", make_pdf(20, seed=seed))})
        await finished(client, warm.json()["task_id"])
        idle = await search_times(client, None, 100)
        data = make_pdf(pages, seed=seed + 1)
        started = time.perf_counter()
        answer = await client.post("/api/v1/documents", files={"file": ("thousand.pdf", data)})
        answer.raise_for_status()
        done = asyncio.Event()
        searches = asyncio.create_task(search_times(client, done, 0))
        await finished(client, answer.json()["task_id"])
        seconds = time.perf_counter() - started
        done.set()
        busy = await searches
        texts = await passages(client, answer.json()["document_id"])
        sample = texts[: max(64, len(texts) // 5)]
        limit = await model_seconds(models_url, [f"{text} {seed}" for text in sample]) * len(texts) / len(sample)
        return Result(pages, len(texts), seconds, limit, percentile(idle), percentile(busy))


async def finished(client: httpx.AsyncClient, task_id: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        task = (await client.get(f"/api/v1/tasks/{task_id}")).json()
        if task["status"] == "succeeded":
            return
        assert task["status"] in ("queued", "running"), task
        await asyncio.sleep(0.25)
    raise TimeoutError(task_id)


async def passages(client: httpx.AsyncClient, document_id: str) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": 100, **({"cursor": cursor} if cursor else {})}
        page = (await client.get(f"/api/v1/documents/{document_id}/chunks", params=query)).json()
        found += [item["text"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def percentile(values: list[float], share: float = 0.95) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--models-url", required=True)
    parser.add_argument("--pages", type=int, default=1000)
    flags = parser.parse_args()
    result = asyncio.run(measure(flags.url, flags.api_key, flags.models_url, flags.pages))
    print("\n".join(result.lines()))


if __name__ == "__main__":
    main()
