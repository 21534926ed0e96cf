"""Answers over HTTP, as JSON and as server-sent events, with a scripted search and model."""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from internal.entities.conversations import Prompt, Usage
from internal.entities.parsed import Location
from internal.entities.search import SearchHit, SearchRequest, SearchResult
from internal.services.chat import ChatService
from internal.services.chunking_sentences import sentences
from internal.services.quotes import Quoter
from pkg.ctxutil import Context
from tests.integration.api import Running, served, settings_for
from tests.servers import Database, Servers

UNKNOWN = "01900000-0000-7000-8000-000000000000"


class ScriptedSearch:
    """One passage for whatever is asked."""

    async def search(self, ctx: Context, request: SearchRequest) -> SearchResult:
        hit = SearchHit(
            chunk_id=uuid.UUID(UNKNOWN),
            document_id=uuid.UUID(UNKNOWN),
            filename="a.txt",
            source_type="document",
            text="Water boils at 100 degrees.",
            score=1.0,
            location=Location(page=1),
        )
        return SearchResult(items=[hit], took_ms=1.0)


class ScriptedModel:
    """Says three words, with a pause that a test may wait in."""

    name = "scripted"
    reads_on = False

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.closed = asyncio.Event()

    async def stream(self, ctx: Context, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        try:
            yield "Water boils "
            await asyncio.sleep(self.pause)
            yield "at 100 degrees [1]."
            yield Usage(prompt_tokens=5, completion_tokens=3, cost_usd=Decimal("0.0001"))
        finally:
            self.closed.set()

    def estimate(self, prompt: Prompt, text: str) -> Usage:
        return Usage(estimated=True)


@pytest.fixture
async def chatting(
    servers: Servers, module_database: Database, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Running, ScriptedModel, httpx.AsyncClient]]:
    pause: float = getattr(request, "param", 0.0)
    model = ScriptedModel(pause)
    settings = settings_for(module_database, servers.redis_url, tmp_path, rate_per_minute=100_000)

    def change(api: Any, store: Any, embedder: Any) -> Any:
        chat = ChatService(store, ScriptedSearch(), model, Quoter(embedder, sentences))
        return msgspec.structs.replace(api, chat=chat)

    async with served(settings, change) as running:
        made = await running.new_tenant(f"chat-{uuid.uuid4().hex[:6]}")
        async with running.client(made["api_key"]) as client:
            yield running, model, client


async def ask(client: httpx.AsyncClient) -> str:
    return (await client.post("/api/v1/conversations", json={})).json()["id"]


async def test_an_answer_as_json(chatting: tuple[Running, ScriptedModel, httpx.AsyncClient]) -> None:
    _, _, client = chatting
    conversation = await ask(client)
    answer = await client.post(
        f"/api/v1/conversations/{conversation}/messages", json={"content": "When does water boil?"}
    )
    assert answer.status_code == 200, answer.text
    message = answer.json()
    assert message["role"] == "assistant"
    assert "100 degrees" in message["content"]
    assert message["citations"][0]["quote"] in "Water boils at 100 degrees."
    assert message["usage"]["cost_usd"] == "0.0001"
    assert message["usage"]["prompt_tokens"] == 5
    listed = (await client.get(f"/api/v1/conversations/{conversation}/messages")).json()["items"]
    assert [item["role"] for item in listed] == ["user", "assistant"]
    rated = await client.post(
        f"/api/v1/conversations/{conversation}/messages/{message['id']}/feedback", json={"rating": 1, "comment": "good"}
    )
    assert rated.status_code == 204


async def test_an_answer_as_events(chatting: tuple[Running, ScriptedModel, httpx.AsyncClient]) -> None:
    _, _, client = chatting
    conversation = await ask(client)
    async with client.stream(
        "POST", f"/api/v1/conversations/{conversation}/messages", json={"content": "When?", "stream": True}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = (await answer.aread()).decode()
    events = [block.split("\n") for block in text.strip().split("\n\n")]
    names = [lines[0].removeprefix("event: ") for lines in events]
    assert names[0] == "delta"
    assert names[-2:] == ["citations", "done"]
    deltas = "".join(
        json.loads(lines[1].removeprefix("data: "))["text"] for lines in events if lines[0] == "event: delta"
    )
    done = json.loads(events[-1][1].removeprefix("data: "))
    assert done["content"] == deltas
    assert done["status"] == "complete"


async def test_answers_are_replayed_with_the_type_they_had(
    chatting: tuple[Running, ScriptedModel, httpx.AsyncClient],
) -> None:
    _, _, client = chatting
    messages = f"/api/v1/conversations/{await ask(client)}/messages"
    for number, body in enumerate(({"content": "When?", "stream": True}, {"content": "When?"})):
        headers = {"Idempotency-Key": f"type-{number}"}
        first, again = [await client.post(messages, json=body, headers=headers) for _ in range(2)]
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers.get_list("content-type") == first.headers.get_list("content-type")
        assert again.content == first.content
    rated = [
        await client.post(
            f"{messages}/{first.json()['id']}/feedback", json={"rating": 1}, headers={"Idempotency-Key": "rated"}
        )
        for _ in range(2)
    ]
    assert [answer.status_code for answer in rated] == [204, 204]
    assert "idempotency-replayed" in rated[1].headers
    assert [answer.headers.get("content-type") for answer in rated] == [None, None]


@pytest.mark.parametrize("chatting", [30.0], indirect=True)
async def test_a_reader_who_leaves_ends_the_models_call(
    chatting: tuple[Running, ScriptedModel, httpx.AsyncClient],
) -> None:
    _, model, client = chatting
    conversation = await ask(client)
    async with client.stream(
        "POST", f"/api/v1/conversations/{conversation}/messages", json={"content": "When?", "stream": True}
    ) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                break
    await asyncio.wait_for(model.closed.wait(), 5)
    for _ in range(100):
        listed = (await client.get(f"/api/v1/conversations/{conversation}/messages")).json()["items"]
        if len(listed) == 2:
            break
        await asyncio.sleep(0.05)
    assert listed[1]["status"] == "cut"
    assert "Water boils" in listed[1]["content"]


async def test_an_answer_made_anew_and_a_question_in_other_words_come_as_a_new_one_does(chatting) -> None:
    _, _, client = chatting
    talk = (await client.post("/api/v1/conversations", json={})).json()["id"]
    path = f"/api/v1/conversations/{talk}/messages"
    first = (await client.post(path, json={"content": "When does water boil?"})).json()
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"stream": True}
    streamed = await client.post(f"{path}/{first['id']}/regenerate", json=body, headers=key)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert "event: delta" in streamed.text
    again = await client.post(f"{path}/{first['id']}/regenerate", json=body, headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.text == streamed.text
    question, answer = (await client.get(path)).json()["items"]
    assert answer["siblings"] == [first["id"], answer["id"]]
    edited = (await client.patch(f"{path}/{question['id']}", json={"content": "When does water freeze?"})).json()
    asked, shown = (await client.get(path)).json()["items"]
    # The document that is cited doesn't exist, so its words are shown to nobody who reads the answer again.
    assert shown == edited | {"citations": [item | {"quote": "", "available": False} for item in edited["citations"]]}
    assert asked["siblings"] == [question["id"], asked["id"]]
    refused = await client.patch(f"{path}/{answer['id']}", json={"content": "x"})
    assert (refused.status_code, refused.json()["code"]) == (409, "message.not_a_question")
    made = await client.post(f"/api/v1/conversations/{talk}/branch", json={"message_id": first["id"]})
    assert made.status_code == 201
    assert made.json()["title"] == "When does water boil? (branch)"
    moved = await client.patch(f"/api/v1/conversations/{talk}", json={"current_message_id": first["id"]})
    assert moved.json()["current_message_id"] == first["id"]
