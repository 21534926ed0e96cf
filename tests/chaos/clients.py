"""Clients that write down what they were told: an upload counts only when its answer was read."""

import asyncio
import random
import time

import httpx

from tests.chaos import ways
from tests.chaos.history import Call, Sighting, Verb
from tests.chaos.plan import Script

ANSWER_SECONDS = 8.0
AGAIN_SECONDS = (0.2, 0.8)
SEARCH_PAUSE = 0.08
MOST_HITS = 100
UPLOADS_AT_A_TIME = 12


class Tenant:
    """A tenant's name in the history and a client with its key."""

    def __init__(self, identifier: str, key: str, url: str) -> None:
        self.id = identifier
        self.http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=ANSWER_SECONDS, trust_env=False
        )


class Clients:
    """Everybody who uses the product during a run."""

    def __init__(self, tenants: list[Tenant], seed: int) -> None:
        self.calls: list[Call] = []
        self.sightings: list[Sighting] = []
        self._tenants = tenants
        self._draw = random.Random(f"{seed}/clients")
        self._places = asyncio.Semaphore(UPLOADS_AT_A_TIME)
        self._begun: list[Script] = []

    async def follow(self, scripts: list[Script]) -> None:
        """Every script to its end, however often the product must be asked."""
        began = time.monotonic()

        async def one(script: Script) -> None:
            await asyncio.sleep(max(0.0, began + script.at - time.monotonic()))
            async with self._places:
                await self._play(script)

        await asyncio.gather(*map(one, scripts))

    async def watch(self) -> None:
        """Searches for what was uploaded, again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(SEARCH_PAUSE)
            if not self._begun:
                continue
            script = self._draw.choice(self._begun[-40:])
            found = await self.search(script)
            if found is not None:
                self.sightings.append(
                    Sighting(at=time.time(), tenant=self._tenants[script.tenant].id, file=script.file.name, found=found)
                )

    async def search(self, script: Script) -> dict[str, int] | None:
        """Passages with the file's mark, by document; None when no answer came."""
        body = {"query": script.file.mark, "k": MOST_HITS, "mode": "keyword"}
        try:
            answer = await self._tenants[script.tenant].http.post("/api/v1/search", json=body)
        except httpx.HTTPError:
            return None
        if answer.status_code != httpx.codes.OK:
            return None
        found: dict[str, int] = {}
        for item in answer.json()["items"]:
            found[item["document_id"]] = found.get(item["document_id"], 0) + 1
        return found

    async def _play(self, script: Script) -> None:
        self._begun.append(script)
        twins = [self._until(script, "upload") for _ in range(2 if script.twice else 1)]
        document = (await asyncio.gather(*twins))[0]
        if document is None:
            return
        if script.replacement is not None:
            await self._replace(script, script.replacement, document)
        if script.delete_after is not None:
            await asyncio.sleep(script.delete_after)
            await self._until(script, "delete", document)
        if script.again_after is not None:
            await asyncio.sleep(script.again_after)
            await self._until(script, "upload")

    async def _replace(self, script: Script, replacement: Script, document: str) -> None:
        """Another file takes the document over, perhaps before the first one was read; perhaps that one comes back."""
        await asyncio.sleep(replacement.at)
        self._begun.append(replacement)
        await self._until(replacement, "replace", document)
        if script.restore_after is not None:
            await asyncio.sleep(script.restore_after)
            await self._until(script, "restore", document)

    async def _until(self, script: Script, verb: Verb, document: str = "") -> str | None:
        """Asks until it is acknowledged or refused for good; the document's id."""
        while True:
            status, body = await self._ask(script, verb, document)
            told = body.get("document_id") or document
            for file in (script.file, *script.packed):
                self.calls.append(
                    Call(
                        at=time.time(),
                        tenant=self._tenants[script.tenant].id,
                        file=file.name,
                        verb=verb,
                        status=status,
                        document=told,
                        task=body.get("task_id", ""),
                        code=body.get("code", ""),
                    )
                )
            if status in (200, 202):
                return told
            if 0 < status < 429 and status != 409:
                return None
            await asyncio.sleep(self._draw.uniform(*AGAIN_SECONDS))

    async def _ask(self, script: Script, verb: Verb, document: str) -> ways.Told:
        http = self._tenants[script.tenant].http
        if verb == "delete":
            return await ways.told(http.delete(f"/api/v1/documents/{document}"))
        if verb == "restore":
            return await ways.told(http.post(f"/api/v1/documents/{document}/versions/1/restore"))
        if script.packed:
            return await ways.by_archive(http, [script.file, *script.packed])
        if script.in_pieces:
            return await ways.by_pieces(http, script.file, self._draw, document)
        return await ways.by_form(http, script.file, document)
