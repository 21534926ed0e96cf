"""Retrieval quality through the product's own API: `python -m tests.bench.retrieval --url … --data …`.

Each set becomes a tenant of its own: every passage is uploaded as a text file, then every query is searched, and the
data's own judge scores the run beside its BM25.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

AT_A_TIME = 8
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 1800.0
UNFINISHED = ("queued", "running")
SETS = ("docqa_zh", "xquad_public_zh_en", "cranfield", "rgb_zh_refine_public", "scifact_train")


class Tenant:
    """One set in one tenant of a running product."""

    def __init__(self, client: httpx.AsyncClient, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._places = asyncio.Semaphore(AT_A_TIME)

    async def upload(self) -> dict[str, str]:
        """Uploads every passage that has text; answers passage ids by document id, texts that are equal once."""
        passages = [row for row in rows(self._folder / "corpus.jsonl") if text_of(row)]
        answers = await asyncio.gather(*(self._upload_one(row) for row in passages))
        documents: dict[str, str] = {}
        for row, answer in zip(passages, answers, strict=True):
            documents.setdefault(answer["document_id"], row["id"])
        return documents

    async def finished(self) -> None:
        """Returns when no task waits or runs. Raises RuntimeError when one failed, or after half an hour."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            waiting = [(await self._ask("GET", "/api/v1/tasks", params={"status": s}))["items"] for s in UNFINISHED]
            if not any(waiting):
                return
            await asyncio.sleep(POLL_SECONDS)
        raise RuntimeError("the uploads aren't finished after half an hour")

    async def run(self, documents: dict[str, str], mode: str, path: Path) -> list[float]:
        """Writes the run of every query and answers how long the product took for each, in milliseconds."""
        queries = rows(self._folder / "queries.jsonl")
        took: list[float] = []
        with path.open("w", encoding="utf-8") as out:
            for query in queries:
                answer = await self._ask("POST", "/api/v1/search", json={"query": query["text"], "k": 50, "mode": mode})
                took.append(answer["took_ms"])
                ranked = dict.fromkeys(documents[item["document_id"]] for item in answer["items"])
                for rank, passage in enumerate(ranked, 1):
                    out.write(f"{query['id']}\t{passage}\t{rank}\t{1 / rank:.6f}\n")
        return took

    async def _upload_one(self, row: dict[str, Any]) -> dict[str, Any]:
        name = re.sub(r"[^\w.-]", "_", row["id"])[:100]
        async with self._places:
            return await self._ask(
                "POST", "/api/v1/documents", files={"file": (f"{name}.txt", text_of(row).encode(), "text/plain")}
            )

    async def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """One call; waits out rate limits and a full queue."""
        while True:
            answer = await self._client.request(method, path, **arguments)
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
        if answer.is_error:
            raise RuntimeError(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def text_of(row: dict[str, Any]) -> str:
    return "\n\n".join(part.strip() for part in (row.get("title") or "", row["text"]) if part.strip())


@asynccontextmanager
async def tenant(given: argparse.Namespace, name: str) -> AsyncGenerator[Tenant]:
    """A new tenant made with the platform token, or the given key's."""
    key = given.api_key
    async with httpx.AsyncClient(base_url=given.url, timeout=120) as client:
        if given.platform_token:
            answer = await client.post(
                "/api/v1/tenants",
                headers={"Authorization": f"Bearer {given.platform_token}"},
                json={"name": f"{name} {time.time():.0f}", "owner_email": f"bench-{time.time_ns()}@example.com"},
            )
            answer.raise_for_status()
            key = answer.json()["api_key"]
        client.headers["Authorization"] = f"Bearer {key}"
        yield Tenant(client, given.data / "retrieval" / name)


async def bench(given: argparse.Namespace, name: str) -> None:
    async with tenant(given, name) as one:
        began = time.perf_counter()
        documents = await one.upload()
        await one.finished()
        print(f"\n{name}: {len(documents)} passages searchable after {time.perf_counter() - began:.0f} s", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run.tsv"
            took = sorted(await one.run(documents, given.mode, run))
            print(f"took_ms p50 {took[len(took) // 2]:.1f}, p95 {took[len(took) * 95 // 100]:.1f}", flush=True)
            judge = given.data / "checks" / "score.py"
            subprocess.run([sys.executable, str(judge), "retrieval", "--set", name, "--run", str(run)], check=True)


async def main(given: argparse.Namespace) -> None:
    for name in given.sets:
        await bench(given, name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds retrieval/ and checks/")
    parser.add_argument("--platform-token", default="", help="makes a tenant for each set")
    parser.add_argument("--api-key", default="", help="of a tenant to use instead; one set, and nothing else in it")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--mode", choices=("hybrid", "vector", "keyword"), default="hybrid")
    given_arguments = parser.parse_args()
    if not given_arguments.platform_token and not given_arguments.api_key:
        parser.error("give --platform-token or --api-key")
    asyncio.run(main(given_arguments))
