"""Recall from a long conversation without the model's time: `python -m tests.bench.memory`.

Every exchange of the conversation, and a fact of each tenth, is a memory; each recall reads, weighs and orders all of
them. The query's vector is given.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from internal.entities.conversations import NewMessage, Usage
from internal.entities.ids import new_id
from internal.entities.memory import Finding, MemoryKind, NewMemory
from internal.providers.embedding_wire import Embedded
from internal.providers.embeddings import Kind
from internal.providers.turns import Lane
from internal.services.embedder import Embedder
from internal.services.memory import MemoryService
from internal.services.summaries import RuleSummarizer
from internal.services.terms import TermAnalyser
from tests.bench.pdf import WORDS
from tests.bench.ratios import Ratio
from tests.library import SPACE, Library
from tests.servers import Servers, borrowed_database, running_servers

GOAL_MS = 50.0


class Given:
    """Vectors without a model."""

    space = SPACE
    coded = False

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    async def embed(
        self,
        texts: Sequence[str],
        *,
        kind: Kind,
        lane: Lane,
        deadline: float | None = None,
        searched: bool = False,
        partly: bool = False,
    ) -> Embedded:
        made = self._rng.standard_normal((len(texts), SPACE.dim)).astype(np.float32)
        return Embedded(made / np.linalg.norm(made, axis=1, keepdims=True), Usage())

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


async def bench(servers: Servers, turns: int, recalls: int) -> Ratio:
    rng, analyser = np.random.default_rng(4), TermAnalyser()
    async with borrowed_database(servers) as database:
        library = await Library.open(database)
        ctx = await library.tenant()
        embedder = Embedder(Given(rng))
        memory = MemoryService(library.app, embedder, analyser, RuleSummarizer())
        async with library.app.tenant(ctx) as tx:
            conversation = (await tx.conversations.add("long", [])).id
            source = (await tx.messages.add(conversation, NewMessage(role="user", content="all of it"))).id
        space = f"{SPACE.model} {SPACE.version} {SPACE.dim}"
        texts = [" ".join(rng.choice(WORDS, 60)) for _ in range(turns)]
        vectors = (await embedder.embed_batch(ctx, texts)).vectors
        now = datetime.now(UTC)
        async with library.worker.tenant(ctx) as tx:
            for number, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
                terms = analyser.passage(ctx.tenant_id, new_id(), text).terms
                for kind in (MemoryKind.TURN, MemoryKind.FACT)[: 2 if number % 10 == 0 else 1]:
                    finding = Finding(
                        kind=kind,
                        text=text,
                        importance=0.5,
                        source_id=source,
                        created_at=now - timedelta(minutes=number),
                    )
                    await tx.memories.add(conversation, space, NewMemory(finding=finding, terms=terms, vector=vector))
        await library.owner.execute("vacuum analyze memories")
        times: list[float] = []
        recalled = 0
        for number in range(recalls):
            words = texts[rng.integers(turns)].split()
            query = f"{' '.join(rng.choice(words, 8))} {number}"  # no vector is remembered
            began = time.perf_counter()
            found = await memory.recall(ctx, conversation, query, [], None)
            times.append((time.perf_counter() - began) * 1000)
            recalled += len(found.items)
        await library.close()
    assert recalled
    low, high = np.percentile(times, (50, 95))
    print(f"recall among {turns} turns: p50 {low:.1f} ms, p95 {high:.1f} ms")
    return Ratio("memory: recall among 600 turns, ms, p95", float(high), GOAL_MS, at_most=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=600)
    parser.add_argument("--recalls", type=int, default=300)
    flags = parser.parse_args()
    with running_servers() as servers:
        print(asyncio.run(bench(servers, flags.turns, flags.recalls)).line())


if __name__ == "__main__":
    main()
