"""What is remembered of a conversation: found by the worker, shown, corrected, forgotten, and nobody else's."""

import time
from typing import Any

import httpx
import pytest

from tests.e2e.product import Product, finished, upload


def begin(client: httpx.Client) -> str:
    return client.post("/api/v1/conversations", json={}).json()["id"]


def say(client: httpx.Client, conversation: str, text: str) -> str:
    """What is answered."""
    answer = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": text})
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]


def remembered(client: httpx.Client, conversation: str) -> dict[str, Any]:
    answer = client.get(f"/api/v1/conversations/{conversation}/memory")
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(client: httpx.Client, conversation: str, *texts: str) -> dict[str, Any]:
    """What is remembered, once it is these memories, the newest first."""
    end = time.monotonic() + 60
    while True:
        found = remembered(client, conversation)
        if [item["text"] for item in found["items"]] == list(texts):
            return found
        assert time.monotonic() < end, found
        time.sleep(0.1)


def test_facts_follow_answers_and_contradictions_supersede(client: httpx.Client) -> None:
    conversation = begin(client)
    assert remembered(client, conversation) == {"summary": "", "items": []}
    say(client, conversation, "我叫张伟。合同什么时候到期？")
    say(client, conversation, "My office is in Berlin. What is the notice period?")
    found = until(client, conversation, "My office is in Berlin.", "我叫张伟。")
    assert "What is the notice period?" in found["summary"]
    assert "合同什么时候到期？" in found["summary"]
    questions = client.get(f"/api/v1/conversations/{conversation}/messages").json()["items"]
    assert [item["source"] for item in found["items"]] == [questions[2]["id"], questions[0]["id"]]
    assert all(0 < item["importance"] <= 1 for item in found["items"])
    say(client, conversation, "My office is in Hamburg now.")
    until(client, conversation, "My office is in Hamburg now.", "我叫张伟。")


def test_a_user_corrects_and_forgets(client: httpx.Client) -> None:
    conversation = begin(client)
    say(client, conversation, "My badge number is 4711.")
    say(client, conversation, "My desk is on floor 9.")
    desk, badge = until(client, conversation, "My desk is on floor 9.", "My badge number is 4711.")["items"]
    path = f"/api/v1/conversations/{conversation}/memory"
    answer = client.patch(f"{path}/{badge['id']}", json={"text": "My badge number is 4712.", "importance": 1})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["text"], answer.json()["importance"]) == ("My badge number is 4712.", 1)
    assert client.delete(f"{path}/{desk['id']}").status_code == 204
    found = remembered(client, conversation)
    assert [item["text"] for item in found["items"]] == ["My badge number is 4712."]
    assert "4711" not in found["summary"]
    assert "floor 9" not in found["summary"]
    said = say(client, conversation, "What is my badge number?")
    assert "4712" in said
    assert "4711" not in said
    # What comes later is remembered beside it, and brings nothing back.
    say(client, conversation, "My locker is number 3.")
    found = until(client, conversation, "My locker is number 3.", "My badge number is 4712.")
    assert "floor 9" not in found["summary"]
    assert client.delete(f"{path}/{desk['id']}").status_code == 404
    for body in ({"text": ""}, {"text": " \n "}, {"text": "x" * 2001}, {"importance": 2}, {"kind": "fact"}):
        assert client.patch(f"{path}/{badge['id']}", json=body).status_code in (400, 422), body


def test_what_was_drawn_from_a_document_is_forgotten_with_it(client: httpx.Client) -> None:
    text = b"The lighthouse of Varnholm was built in 1871 by the engineer Brandt."
    document = upload(client, "lighthouse.txt", text)
    assert finished(client, document["task_id"])["status"] == "succeeded"
    conversation = begin(client)
    assert "1871" in say(client, conversation, "When was the lighthouse of Varnholm built?")
    say(client, conversation, "My badge number is 4711.")
    found = until(client, conversation, "My badge number is 4711.")
    assert "1871" in found["summary"]
    assert "lighthouse.txt" in found["summary"]
    assert client.delete(f"/api/v1/documents/{document['document_id']}").status_code == 202
    found = remembered(client, conversation)
    assert "1871" not in found["summary"]
    assert [item["text"] for item in found["items"]] == ["My badge number is 4711."]


def test_memories_are_their_users_alone(client: httpx.Client, colleague: httpx.Client, product: Product) -> None:
    conversation = begin(client)
    say(client, conversation, "My badge number is 4711.")
    [item] = until(client, conversation, "My badge number is 4711.")["items"]
    path = f"/api/v1/conversations/{conversation}/memory"
    with product.client(product.new_tenant("other")["api_key"]) as foreign:
        for stranger in (colleague, foreign):
            assert stranger.get(path).json()["code"] == "conversation.not_found"
            assert stranger.patch(f"{path}/{item['id']}", json={"text": "x"}).status_code == 404
            assert stranger.delete(f"{path}/{item['id']}").status_code == 404
            own = begin(stranger)
            answer = stranger.delete(f"/api/v1/conversations/{own}/memory/{item['id']}")
            assert answer.json()["code"] == "memory.not_found"
    assert remembered(client, conversation)["items"] == [item]
    # Nobody asked for this work, so it is in nobody's list.
    kinds = {task["kind"] for task in client.get("/api/v1/tasks").json()["items"]}
    assert "digest_conversation" not in kinds
    assert client.delete(f"/api/v1/conversations/{conversation}").status_code == 204
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("wanted", [True, False])
def test_across_conversations_only_where_the_user_turned_it_on(client: httpx.Client, wanted: bool) -> None:
    assert client.get("/api/v1/memory/settings").json() == {"across_conversations": False}
    answer = client.put("/api/v1/memory/settings", json={"across_conversations": wanted})
    assert answer.json() == {"across_conversations": wanted}
    assert client.get("/api/v1/memory/settings").json() == {"across_conversations": wanted}
    assert client.put("/api/v1/memory/settings", json={}).status_code == 400
