"""An embedding endpoint that counts what it was paid for, and misbehaves as long as it is told to."""

import asyncio
import hashlib
from collections import Counter
from typing import Any

import numpy as np

from tests.fakes.openai_server import FakeOpenAI, HungUpError, Reply, Request, _send

DIMENSION = 32
ANSWER_SECONDS = 0.12
"""A model takes its time, and a worker is killed while it waits more often than not."""


class Endpoint(FakeOpenAI):
    """`mode` is ok, 429, 500, hang or away."""

    def __init__(self) -> None:
        super().__init__(dimension=DIMENSION)
        self.mode = "ok"
        self.paid: Counter[str] = Counter()
        self._well = asyncio.Event()

    def turn(self, mode: str) -> None:
        """Changes the mode; whoever hangs is hung up on."""
        self.mode = mode
        self._well.set()
        self._well = asyncio.Event()

    async def _embed(self, request: Request, reply: Reply, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(ANSWER_SECONDS)
        if self.mode == "away":
            raise HungUpError
        if self.mode == "hang":
            await self._well.wait()
            raise HungUpError
        if self.mode != "ok":
            await _send(writer, int(self.mode), {"error": reply.error}, retry_after="1")
            return
        texts: list[str] = request.body["input"]
        self.paid.update(hashlib.sha256(text.encode()).hexdigest() for text in texts)
        data: list[dict[str, Any]] = [
            {"object": "embedding", "index": index, "embedding": _vector(text)} for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        await _send(writer, 200, {"object": "list", "model": request.body["model"], "data": data, "usage": usage})


def _vector(text: str) -> list[float]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return [float(value) for value in np.random.default_rng(seed).standard_normal(DIMENSION)]
