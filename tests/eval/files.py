"""Uploads every file of a folder and tells how each ended: searchable, or with a named error; nothing else is right.

`python -m tests.eval.files FOLDER… [--home DIR]`. Files are only read and sent, never opened or unpacked.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.bench.installation import Installation, Tenant, borrowed
from tests.e2e.product import FINISHED

AT_A_TIME = 4
BUSY = (429, 503)
TRIES = 20
LOOKED_AT = 40
"""Unfinished tasks that are asked after at a time."""
PATIENCE = 300.0
"""Seconds without any file ending: then the rest counts as hanging."""
SLOWEST = 10


class Outcome(msgspec.Struct):
    """How one file ended. `verdict` is `succeeded`, an error's code, or `hangs`; `seconds` are the task's own."""

    path: Path
    verdict: str
    seconds: float = 0.0
    detail: str = ""

    @property
    def named(self) -> bool:
        """Searchable, or refused with a code that tells the user what is wrong with the file."""
        return self.verdict == "succeeded" or self.verdict.startswith("file.")


class Api:
    """A tenant's calls; waits when told to."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def upload(self, path: Path) -> httpx.Response:
        """Sends a file's bytes under its own name."""
        return await self.call("POST", "/api/v1/documents", files={"file": (path.name, path.read_bytes())})

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any answer but 429 and 503, which are waited out for a while."""
        answer = await self._client.request(method, path, **options)
        for _ in range(TRIES):
            if answer.status_code not in BUSY:
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
            answer = await self._client.request(method, path, **options)
        return answer


@contextlib.asynccontextmanager
async def api_of(installation: Installation, tenant: Tenant) -> AsyncGenerator[Api]:
    headers = {"Authorization": f"Bearer {tenant.api_key}"}
    url = installation.up["url"]
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
        yield Api(client)


async def upload_all(api: Api, paths: list[Path]) -> list[Outcome]:
    """Uploads some at a time, then waits until each has ended or nothing ends any more."""
    places = asyncio.Semaphore(AT_A_TIME)
    waiting: dict[str, list[Outcome]] = {}

    async def one(path: Path) -> Outcome:
        async with places:
            answer = await api.upload(path)
        body = answer.json()
        if answer.is_error:
            return Outcome(path, body.get("code", f"status {answer.status_code}"), detail=body.get("detail", ""))
        outcome = Outcome(path, "hangs")
        waiting.setdefault(body["task_id"], []).append(outcome)  # files with the same bytes have one task
        return outcome

    outcomes = await asyncio.gather(*(one(path) for path in paths))
    await settle(api, waiting)
    return outcomes


async def settle(api: Api, waiting: dict[str, list[Outcome]]) -> None:
    """Fills in how the tasks ended; they run about in the order of their uploads."""
    ended = time.monotonic()
    while waiting and time.monotonic() < ended + PATIENCE:
        for task_id in tuple(waiting)[:LOOKED_AT]:
            task = (await api.call("GET", f"/api/v1/tasks/{task_id}")).json()
            if task["status"] in FINISHED:
                ended = time.monotonic()
                for outcome in waiting.pop(task_id):
                    record(outcome, task)
        await asyncio.sleep(0.5)


def record(outcome: Outcome, task: dict[str, Any]) -> None:
    """How a finished task ended."""
    if task["status"] == "succeeded":
        outcome.verdict = "succeeded"
    else:
        error = task["error"] or {"code": task["status"], "message": ""}
        outcome.verdict, outcome.detail = error["code"], error["message"]
    if task["started_at"] and task["finished_at"]:
        began, ended = (datetime.fromisoformat(task[name]) for name in ("started_at", "finished_at"))
        outcome.seconds = (ended - began).total_seconds()


def report(name: str, outcomes: list[Outcome], seconds: float) -> None:
    """The tally, the slowest, and every file that ended otherwise than it should."""
    print(f"\n{name}: {len(outcomes)} files in {seconds:.0f} s")
    for verdict, count in Counter(outcome.verdict for outcome in outcomes).most_common():
        print(f"  {count:5} {verdict}")
    print("  the slowest:")
    for outcome in sorted(outcomes, key=lambda item: -item.seconds)[:SLOWEST]:
        print(f"  {outcome.seconds:7.1f} s {outcome.verdict:<22} {outcome.path.parent.name}/{outcome.path.name}")
    for outcome in outcomes:
        if not outcome.named:
            print(f"  NOT NAMED {outcome.verdict}: {outcome.path} {outcome.detail}")


async def evaluate(installation: Installation, folder: Path) -> bool:
    """Uploads a folder to a tenant of its own. False when a file ended wrongly or a process died."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    before = installation.up["processes"]
    began = time.perf_counter()
    async with api_of(installation, installation.new_tenant(f"corpus-{folder.name}")) as api:
        outcomes = await upload_all(api, paths)
    report(folder.name, outcomes, time.perf_counter() - began)
    after = installation.up["processes"]
    died = [role for role, pids in before.items() if after.get(role) != pids]
    print(f"  processes that died: {', '.join(died) or 'none'}")
    return not died and all(outcome.named for outcome in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--home", type=Path, help="of a running `dreamhub up`; else one is started")
    flags = parser.parse_args()
    with borrowed(flags.home) as installation:
        right = [asyncio.run(evaluate(installation, folder)) for folder in flags.folders]
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
