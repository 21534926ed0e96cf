"""A tenant of a running product, made for one set and spoken to through the API alone."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.bench.installation import Installation

AT_A_TIME = 8
SEARCHES_AT_A_TIME = 4
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 3600.0
BUSY = (429, 503)
HITS = 50
"""Passages of an answer; several may be of one document, whose best counts."""


class Tenant:
    """Uploads, searches and talks; waits where it is told to.

    `results` counts the passages and sources that were answered, `foreign` those of documents that aren't the tenant's.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._uploads = asyncio.Semaphore(AT_A_TIME)
        self._searches = asyncio.Semaphore(SEARCHES_AT_A_TIME)
        self._uploaded: set[str] = set()
        self.results = 0
        self.foreign = 0

    async def load(self, files: Mapping[str, tuple[str, bytes]]) -> dict[str, str]:
        """Uploads files, given by their ids with name and bytes, and waits until all can be found.

        Answers ids by document id; of files with equal bytes the first. Raises RuntimeError if one can't be read.
        """
        answers = await asyncio.gather(*(self.upload(name, data) for name, data in files.values()))
        documents: dict[str, str] = {}
        for item, answer in zip(files, answers, strict=True):
            documents.setdefault(answer["document_id"], item)
        await self.settled()
        for status in ("failed", "dead"):
            failed = (await self.call("GET", "/api/v1/tasks", params={"status": status}))["items"]
            if failed:
                raise RuntimeError(f"a file {status}: {failed[0]['error']}")
        return documents

    async def upload(self, name: str, data: bytes) -> dict[str, Any]:
        """What the API says of one file."""
        async with self._uploads:
            answer = await self.call("POST", "/api/v1/documents", files={"file": (name, data)})
        self._uploaded.add(answer["document_id"])
        return answer

    async def settled(self) -> None:
        """Returns when no task of the tenant waits or runs. Raises RuntimeError after an hour."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            waiting = [
                (await self.call("GET", "/api/v1/tasks", params={"status": status, "limit": 1}))["items"]
                for status in ("queued", "running")
            ]
            if not any(waiting):
                return
            await asyncio.sleep(POLL_SECONDS)
        raise RuntimeError("the uploads aren't finished after an hour")

    async def search(self, query: str, **more: Any) -> list[dict[str, Any]]:
        """Hits, best first."""
        async with self._searches:
            found = await self.call("POST", "/api/v1/search", json={"query": query, "k": HITS, **more})
        return self._own(found["items"])

    async def run(self, documents: Mapping[str, str], queries: Mapping[str, str], **more: Any) -> dict[str, list[str]]:
        """The set's ids for each query, best first."""
        found = await asyncio.gather(*(self.search(text, **more) for text in queries.values()))
        return {
            query: list(dict.fromkeys(documents[hit["document_id"]] for hit in hits if hit["document_id"] in documents))
            for query, hits in zip(queries, found, strict=True)
        }

    async def converse(self, questions: Sequence[str], **more: Any) -> list[dict[str, Any]]:
        """The answers to questions that are asked one after the other in a conversation of their own."""
        conversation = (await self.call("POST", "/api/v1/conversations", json={}))["id"]
        path = f"/api/v1/conversations/{conversation}/messages"
        answers = [await self.call("POST", path, json={"content": question, **more}) for question in questions]
        return [answer | {"citations": self._own(answer["citations"])} for answer in answers]

    async def text(self, document_id: str) -> str:
        """All that was read of a document."""
        return "\n".join([item["text"] for item in await self.pages(f"/api/v1/documents/{document_id}/chunks")])

    async def pages(self, path: str) -> list[dict[str, Any]]:
        """All items of a listing, page after page."""
        items: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = await self.call("GET", path, params={"limit": 100} | ({"cursor": cursor} if cursor else {}))
            items += page["items"]
            cursor = page["next_cursor"]
            if not cursor:
                return items

    async def call(self, method: str, path: str, **arguments: Any) -> Any:
        """One call. Raises RuntimeError with what the API says."""
        while True:
            answer = await self._client.request(method, path, **arguments)
            if answer.status_code not in BUSY:
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
        if answer.is_error:
            raise RuntimeError(f"{method} {path} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json() if answer.content else None

    def _own(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is of the tenant's documents; what isn't is counted."""
        mine = [item for item in found if item["document_id"] in self._uploaded]
        self.results += len(found)
        self.foreign += len(found) - len(mine)
        return mine


@asynccontextmanager
async def new_tenant(installation: Installation, name: str) -> AsyncGenerator[Tenant]:
    """One that is made for the purpose. Raises RuntimeError at the end if something that isn't its own was answered."""
    key = installation.new_tenant(f"eval-{name}".replace("_", "-")).api_key
    headers = {"Authorization": f"Bearer {key}"}
    url = installation.up["url"]
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300, trust_env=False) as client:
        tenant = Tenant(client)
        yield tenant
    if tenant.foreign:
        raise RuntimeError(f"{tenant.foreign} of {tenant.results} results belong to another tenant")
