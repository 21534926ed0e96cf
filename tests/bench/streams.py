"""Answers as they stream: how long the first word takes beyond the model's own, and many answers at once.

`python -m tests.bench.streams [--streams 200] [--asks 60]`. Two products are started, each with a chat model that
speaks OpenAI's wire format on a socket: one with the built-in embedding model, whose answers are measured beside the
same stream without a product, by turns; and one whose embeddings come from that endpoint too, for the server's memory
while many streams are open at once, in one server process.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil

from tests.bench.installation import UNLIMITED
from tests.bench.ratios import Ratio
from tests.e2e.product import Product, running_product
from tests.eval.tenant import Tenant
from tests.fakes.openai_server import FakeOpenAI, Reply, threaded_fake

PASSAGES = 200
PIECES = 40
MODEL_SECONDS = 0.05
"""Before the model's first piece."""
PAUSE_SECONDS = 0.15
"""Between its pieces, where many streams are open at once."""
MEGABYTE = 1024 * 1024
SUBJECTS = ("harbour", "library", "canteen", "garage", "garden", "office", "workshop", "archive", "museum", "school")


def passage(number: int) -> str:
    subject = SUBJECTS[number % len(SUBJECTS)]
    return f"The {subject} of house {number} opens at {number % 12 + 1} o'clock. Its keeper is Mrs Number{number}."


def question(number: int) -> str:
    return (
        f"When does the {SUBJECTS[number % len(SUBJECTS)]} of house {number} open, and who keeps it in week {number}?"
    )


async def first_of(client: httpx.AsyncClient, path: str, body: dict[str, Any], sign: str) -> float:
    """Seconds until a line has come that holds `sign`; the rest is read, too."""
    began = time.perf_counter()
    first = 0.0
    async with client.stream("POST", path, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not first and sign in line:
                first = time.perf_counter() - began
    return first


@asynccontextmanager
async def client_of(url: str, key: str) -> AsyncGenerator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300, trust_env=False, limits=limits) as client:
        yield client


async def loaded(client: httpx.AsyncClient) -> None:
    """Uploads what is asked about."""
    await Tenant(client).load({str(number): (f"{number}.txt", passage(number).encode()) for number in range(PASSAGES)})


async def begin(client: httpx.AsyncClient) -> str:
    """The path of a new conversation's messages."""
    answer = await client.post("/api/v1/conversations", json={})
    return f"/api/v1/conversations/{answer.json()['id']}/messages"


async def first_words(product: Product, fake: FakeOpenAI, asks: int) -> list[Ratio]:
    """Through the product and beside it, by turns."""
    fake.default = Reply(pieces=["It opens at one [1]."] * 3, seconds_before=MODEL_SECONDS)
    bare_body = {"model": "fake-chat", "stream": True, "messages": [{"role": "user", "content": passage(1) * 40}]}
    ours, bare = list[float](), list[float]()
    async with client_of(product.up["url"], product.up["api_key"]) as client, client_of(fake.base_url, "k") as direct:
        await loaded(client)
        for number in range(asks + 5):
            path = await begin(client)
            body = {"content": question(number), "stream": True}
            ours.append(await first_of(client, path, body, '"text"'))
            bare.append(await first_of(direct, "/chat/completions", bare_body, "It opens"))
    over = sorted((one - other) * 1000 for one, other in zip(ours[5:], bare[5:], strict=True))
    median, late = statistics.median(over), over[int(len(over) * 0.95)]
    print(f"first word: {statistics.median(ours[5:]) * 1000:.0f} ms, bare {statistics.median(bare[5:]) * 1000:.0f} ms")
    return [
        Ratio("first word, overhead over the bare stream, ms, median", median, 100, at_most=True),
        Ratio("first word, overhead over the bare stream, ms, p95", late, 100, at_most=True),
    ]


class Memory:
    """What the server processes hold."""

    def __init__(self, pids: list[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self.peak = 0.0

    def now(self) -> float:
        """In megabytes, of the largest of them."""
        found = max(process.memory_info().rss for process in self._processes) / MEGABYTE
        self.peak = max(self.peak, found)
        return found


async def many(product: Product, fake: FakeOpenAI, streams: int) -> list[Ratio]:
    """So many at once, each a conversation of its own; whole ones alone count."""
    memory = Memory(product.up["processes"]["server"])
    async with client_of(product.up["url"], product.up["api_key"]) as client:
        await loaded(client)
        idle = memory.now()
        for start in range(0, 2000, 8):
            bodies = [{"query": question(number)} for number in range(start, start + 8)]
            await asyncio.gather(*(client.post("/api/v1/search", json=body) for body in bodies))
        searched = memory.now()
        fake.default = Reply(pieces=[f"word{number} " for number in range(PIECES)], seconds_between=PAUSE_SECONDS)

        async def one(number: int) -> tuple[float, bool]:
            began = time.perf_counter()
            first, said, ended = 0.0, "", False
            path = await begin(client)
            async with client.stream("POST", path, json={"content": question(number), "stream": True}) as answer:
                kind = ""
                async for line in answer.aiter_lines():
                    if line.startswith("event: "):
                        kind = line.removeprefix("event: ")
                    elif line.startswith("data: ") and kind == "delta":
                        first = first or time.perf_counter() - began
                        said += json.loads(line.removeprefix("data: "))["text"]
                    elif line.startswith("data: ") and kind == "done":
                        ended = True
            return first, ended and said.startswith("".join(f"word{place} " for place in range(PIECES)).strip())

        async def watch() -> None:
            while True:
                memory.now()
                await asyncio.sleep(0.2)

        watching = asyncio.create_task(watch())
        rounds: list[float] = []
        whole = 0
        for _ in range(3):
            ended = await asyncio.gather(*(one(number) for number in range(streams)))
            whole += sum(right for _, right in ended)
            rounds.append(memory.now())
        watching.cancel()
        firsts = sorted(first for first, _ in ended)
    print(f"server: {idle:.0f} MB idle, {searched:.0f} MB after 2,000 searches, {memory.peak:.0f} MB at most,")
    print(f"  {', '.join(f'{held:.0f}' for held in rounds)} MB after each round of {streams} streams")
    usual, late = firsts[len(firsts) // 2], firsts[len(firsts) * 95 // 100]
    print(f"first word of {streams} that are asked at once: p50 {usual:.2f} s, p95 {late:.2f} s")
    return [
        Ratio("server with remote models, MB after 2,000 searches", searched, 200, at_most=True),
        Ratio(f"{streams} streams at once, share that came whole", whole / streams / 3, 1.0),
        Ratio(f"{streams} streams at once, server's MB at most", memory.peak, 200, at_most=True),
        Ratio("last round of streams, growth of the server in MB", rounds[-1] - rounds[-2], 10, at_most=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--asks", type=int, default=60)
    flags = parser.parse_args()
    room = UNLIMITED | {"LIMITS__STREAMS_PER_KEY": "100000", "LIMITS__STREAMS_PER_TENANT": "100000"}
    with threaded_fake(dimension=384) as fake:
        chat = {"AI__BASE_URL": fake.base_url, "AI__API_KEY": "k", "AI__CHAT_MODEL": "fake-chat"}
        with running_product(**room, **chat) as product:
            ratios = asyncio.run(first_words(product, fake, flags.asks))
        with running_product(**room, **chat, AI__EMBEDDING_MODEL="fake-embedding") as product:
            ratios += asyncio.run(many(product, fake, flags.streams))
    for ratio in ratios:
        print(ratio.line())


if __name__ == "__main__":
    main()
