"""A connected chat model that rewrites every question and digests conversations, in the product as it is started."""

import json
import time
from pathlib import Path

import psutil

from tests.e2e.product import Product, finished, start, stop, upload, wait_until_up
from tests.fakes.openai_server import Reply, threaded_fake

MOST_BYTES = 200_000_000


def said(**body: object) -> Reply:
    return Reply(text=json.dumps(body))


def test_questions_are_rewritten_and_conversations_digested_by_the_model(folder: Path) -> None:
    home = folder / "home"
    with threaded_fake() as fake:
        fact = {"exchange": 1, "kind": "fact", "text": "My badge number is 4711", "subject": "badge", "importance": 0.9}
        digest = said(lines=[{"exchange": 1, "text": "The ferry leaves at seven."}], facts=[fact])
        fake.replies += [
            said(question="When does the ferry to Bergen leave?", queries=["渡轮 卑尔根"]),
            Reply(text="It leaves at seven in the morning [1]. Whales sing beneath the frozen sea [1]."),
        ]
        fake.default = digest
        process = start(
            home,
            AI__BASE_URL=fake.base_url,
            AI__API_KEY="k",
            AI__CHAT_MODEL="fake-chat",
            AI__EMBEDDING_MODEL="fake-embedding",
            AI__VISION_MODEL="fake-vision",
            AI__REWRITE="always",
            AI__SUMMARIZER="model",
        )
        wait_until_up(home, process)
        try:
            product = Product(home, process)
            with product.client() as client:
                document = upload(client, "ferry.txt", b"The ferry to Bergen leaves at seven in the morning.")
                assert finished(client, document["task_id"])["status"] == "succeeded"
                conversation = client.post("/api/v1/conversations", json={}).json()["id"]
                asked = {"content": "My badge number is 4711. When does it leave for Bergen?"}
                answer = client.post(f"/api/v1/conversations/{conversation}/messages", json=asked).json()
                assert answer["content"] == "It leaves at seven in the morning [1]. Whales sing beneath the frozen sea."
                assert [item["filename"] for item in answer["citations"]] == ["ferry.txt"]
                until = time.monotonic() + 60
                while True:
                    memory = client.get(f"/api/v1/conversations/{conversation}/memory").json()
                    if memory["items"]:
                        break
                    assert time.monotonic() < until, memory
                    time.sleep(0.2)
                assert [item["text"] for item in memory["items"]] == ["My badge number is 4711"]
                assert memory["summary"] == "The ferry leaves at seven."
                purposes = {"group_by": "purpose"}
                spent = {item["key"]: item for item in client.get("/api/v1/usage", params=purposes).json()["items"]}
                assert spent["chat"]["requests"] == 2
                assert spent["memory"]["prompt_tokens"] > 0

                # No model is in the server's memory, and little else.
                for number in range(40):
                    assert client.post("/api/v1/search", json={"query": f"ferry {number}"}).json()["items"]
                assert client.get("/openapi.json").status_code == 200
            (server,) = product.up["processes"]["server"]
            assert psutil.Process(server).memory_info().rss < MOST_BYTES
        finally:
            stop(process)
