"""Runs a set of questions with their passages through the product's API and writes predictions for the scorer.

    python -m tests.bench.answers --url http://127.0.0.1:8000 --api-key dh_… --data mtrag_public.jsonl --out pred.jsonl

Every passage is uploaded once as a document of its own; each question (with the turns before it, asked first) is
answered over all of them, or with --own over its own passages only. Rows: id, text, refused, citations (passage ids).
Prints refusals and false answers where the set says what is answerable.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

FINISHED = {"succeeded", "failed", "dead", "cancelled"}
ONE_LINE = 120


class Product:
    """The few calls of the API that the run needs."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def upload(self, name: str, text: str) -> tuple[str, str]:
        """Document and task id."""
        files = {"file": (name, text.encode(), "text/plain")}
        body = (await self._checked("POST", "/api/v1/documents", files=files)).json()
        return body["document_id"], body["task_id"]

    async def wait(self, task: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            body = (await self._checked("GET", f"/api/v1/tasks/{task}")).json()
            if body["status"] in FINISHED:
                if body["status"] != "succeeded":
                    sys.exit(f"task {task} ended as {body['status']}: {body['error']}")
                return
            if time.monotonic() > until:
                sys.exit(f"task {task} is still {body['status']} after {seconds:.0f} s")
            await asyncio.sleep(0.5)

    async def conversation(self, documents: list[str]) -> str:
        answer = await self._checked("POST", "/api/v1/conversations", json={"document_ids": documents})
        return answer.json()["id"]

    async def ask(self, conversation: str, question: str) -> dict[str, Any]:
        path = f"/api/v1/conversations/{conversation}/messages"
        return (await self._checked("POST", path, json={"content": question})).json()

    async def _checked(self, verb: str, path: str, **options: Any) -> httpx.Response:
        answer = await self._client.request(verb, path, **options)
        for _ in range(10):
            if answer.status_code not in (429, 503):
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
            answer = await self._client.request(verb, path, **options)
        if answer.is_error:
            sys.exit(f"{verb} {path} answered {answer.status_code}: {answer.text[:300]}")
        return answer


def passages_of(row: dict[str, Any]) -> dict[str, str]:
    """Passage id to text, for every layout of the sets."""
    found: dict[str, str] = {}
    for field in ("passages", "positive", "negative"):
        for number, item in enumerate(row.get(field) or []):
            if isinstance(item, dict):
                found[item["id"]] = f"{item.get('title', '')}\n{item['text']}".strip()
            else:
                found[f"{row['id']}-{field}-{number}"] = item
    return found


def turns_of(row: dict[str, Any]) -> list[str]:
    """The user's turns; the last one is the question."""
    if "dialogue" in row:
        return [turn["text"] for turn in row["dialogue"] if turn["speaker"] == "user"]
    return [row["question"]]


async def upload_all(product: Product, rows: list[dict[str, Any]], seconds: float) -> dict[str, str]:
    """Passage id to document id, once all of them are searchable."""
    texts = {key: text for row in rows for key, text in passages_of(row).items()}
    documents: dict[str, str] = {}
    tasks: list[str] = []
    for number, (key, text) in enumerate(texts.items()):
        documents[key], task = await product.upload(f"passage-{number:05}.txt", text)
        tasks.append(task)
    for task in tasks:
        await product.wait(task, seconds)
    return documents


async def predict(
    product: Product, row: dict[str, Any], documents: dict[str, str], *, own: bool, turns: int
) -> dict[str, Any]:
    """One row of the predictions."""
    narrow = [documents[key] for key in passages_of(row)] if own else []
    conversation = await product.conversation(narrow)
    answer: dict[str, Any] = {}
    for question in turns_of(row)[-turns:]:
        answer = await product.ask(conversation, question)
    passage_of = {document: key for key, document in documents.items()}
    cited = [passage_of[item["document_id"]] for item in answer["citations"]]
    return {
        "id": row["id"],
        "text": answer["content"],
        "refused": not answer["answered"],
        "citations": list(dict.fromkeys(cited)),
    }


def report(rows: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
    """How often it answered, by what the set says."""
    asked = Counter(row.get("answerability", "ANSWERABLE") for row in rows)
    answered = Counter(
        row.get("answerability", "ANSWERABLE")
        for row, prediction in zip(rows, predictions, strict=True)
        if not prediction["refused"]
    )
    for kind, count in sorted(asked.items()):
        print(f"{kind:16} answered {answered[kind]:4} of {count:4} = {answered[kind] / count:.3f}")


async def run(options: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()][: options.limit]
    headers = {"Authorization": f"Bearer {options.api_key}"}
    async with httpx.AsyncClient(base_url=options.url, headers=headers, timeout=120) as client:
        product = Product(client)
        documents = await upload_all(product, rows, options.seconds)
        print(f"{len(documents)} passages are searchable")
        predictions: list[dict[str, Any]] = []
        for row in rows:
            predictions.append(await predict(product, row, documents, own=options.own, turns=options.turns))
            print(f"{row['id']}: {predictions[-1]['text'][:ONE_LINE]!r}")
    lines = [json.dumps(prediction, ensure_ascii=False) for prediction in predictions]
    Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    report(rows, predictions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--data", required=True, help="a .jsonl file of questions")
    parser.add_argument("--out", default="pred.jsonl")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many questions")
    parser.add_argument("--turns", type=int, default=2, help="of a dialogue, ask the last so many turns")
    parser.add_argument("--own", action="store_true", help="answer each question over its own passages only")
    parser.add_argument("--seconds", type=float, default=600, help="wait so long for a task")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
