"""Clients that write down what they were told: an upload counts only when its answer was read."""

import asyncio
import random
import time

import httpx

from tests.chaos.history import Call, Sighting
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
        twins = [self._upload(script) for _ in range(2 if script.twice else 1)]
        document = (await asyncio.gather(*twins))[0]
        if document is None or script.delete_after is None:
            return
        await asyncio.sleep(script.delete_after)
        await self._delete(script, document)
        if script.again_after is not None:
            await asyncio.sleep(script.again_after)
            await self._upload(script)

    async def _upload(self, script: Script) -> str | None:
        """Until it is acknowledged or refused for good; the document's id."""
        while True:
            call = await self._call(script, "upload")
            if call.status in (200, 202):
                return call.document
            if 0 < call.status < 429 and call.status != 409:
                return None
            await asyncio.sleep(self._draw.uniform(*AGAIN_SECONDS))

    async def _delete(self, script: Script, document: str) -> None:
        while True:
            call = await self._call(script, "delete", document)
            if call.status in (202, 404):
                return
            await asyncio.sleep(self._draw.uniform(*AGAIN_SECONDS))

    async def _call(self, script: Script, verb: str, document: str = "") -> Call:
        http = self._tenants[script.tenant].http
        try:
            if verb == "upload":
                files = {"file": (script.file.name, script.file.data)}
                answer = await http.post("/api/v1/documents", files=files)
            else:
                answer = await http.delete(f"/api/v1/documents/{document}")
            status, body = answer.status_code, answer.json()
        except (httpx.HTTPError, ValueError):
            status, body = 0, {}
        call = Call(
            at=time.time(),
            tenant=self._tenants[script.tenant].id,
            file=script.file.name,
            verb=verb,
            status=status,
            document=body.get("document_id") or document,
            task=body.get("task_id", ""),
            code=body.get("code", ""),
        )
        self.calls.append(call)
        return call
