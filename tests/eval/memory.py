"""Memory over long talks: each turn is said in a conversation, then it is asked what is recalled for a question."""

import asyncio
import json
from pathlib import Path

from tests.bench.installation import Installation
from tests.eval.judge import Judge
from tests.eval.table import Score, mean
from tests.eval.tenant import Tenant, new_tenant

FIRST = 5
GAIN_GOAL = 1.15
"""Times BM25's recall."""
DIGESTED_SECONDS = 300.0


async def locomo(installation: Installation, judge: Judge, data: Path, limit: int | None) -> list[Score]:
    """Recall of the turns that hold the answer, among the first five that are recalled.

    What both speakers say is said by the user, and there are no documents: so each turn is an exchange.
    """
    talks = json.loads((data / "memory" / "locomo_public.json").read_text(encoding="utf-8"))
    ours, plain = list[float](), list[float]()
    for talk in talks:
        turns = {
            turn["id"]: f"{turn['speaker']}: {turn['text']}"
            for session in talk["sessions"]
            for turn in session["turns"]
        }
        asked = [item for item in talk["questions"] if item["evidence"] and item.get("answer") is not None]
        asked = [item | {"evidence": set(item["evidence"]) & set(turns)} for item in asked]
        asked = [item for item in asked if item["evidence"]][: None if limit is None else limit - len(ours)]
        if not asked:
            continue
        index = judge.BM25(turns)
        async with new_tenant(installation, f"locomo-{talk['id']}") as tenant:
            conversation = (await tenant.call("POST", "/api/v1/conversations", json={}))["id"]
            said = await _say(tenant, conversation, turns)
            for item in asked:
                path = f"/api/v1/conversations/{conversation}/memory"
                recalled = (await tenant.call("GET", path, params={"question": item["question"]}))["items"]
                tenant.results += len(recalled)
                tenant.foreign += sum(memory["source"] not in said for memory in recalled)
                found = list(dict.fromkeys(said.get(memory["source"], "") for memory in recalled))[:FIRST]
                ours.append(len(item["evidence"] & set(found)) / len(item["evidence"]))
                best = {turn for turn, _ in index.rank(item["question"], FIRST)}
                plain.append(len(item["evidence"] & best) / len(item["evidence"]))
    bm25 = sum(plain) / len(plain)
    gain = sum(ours) / len(ours) / bm25
    return [
        *mean("locomo_public", "turns recalled, recall@5", ours, bm25=bm25),
        Score(set="locomo_public", metric="that over BM25's", value=gain, count=len(ours), goal=GAIN_GOAL),
    ]


async def _say(tenant: Tenant, conversation: str, turns: dict[str, str]) -> dict[str, str]:
    """Says each turn and waits until the last is digested; answers the turns' ids by those of the messages."""
    for text in turns.values():
        await tenant.call("POST", f"/api/v1/conversations/{conversation}/messages", json={"content": text})
    messages = await tenant.pages(f"/api/v1/conversations/{conversation}/messages")
    questions = sorted((item for item in messages if item["role"] == "user"), key=lambda item: item["created_at"])
    said = {message["id"]: turn for message, turn in zip(questions, turns, strict=True)}
    last = list(turns.values())[-1]
    path = f"/api/v1/conversations/{conversation}/memory"
    until = asyncio.get_running_loop().time() + DIGESTED_SECONDS
    while questions[-1]["id"] not in {
        memory["source"] for memory in (await tenant.call("GET", path, params={"question": last[:2000]}))["items"]
    }:
        if asyncio.get_running_loop().time() > until:
            raise RuntimeError("the conversation isn't digested after five minutes")
        await asyncio.sleep(1)
    return said
