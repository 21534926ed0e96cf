"""A conversation as a file: whole, harmless, its user's alone, and without what was deleted."""

import json

import httpx

from tests.e2e.product import Product, finished, upload

PASSAGE = "The harbour master of Zorblatt is Ingrid Olsen. She has her office on pier nine."


def ask(client: httpx.Client, conversation: str, question: str) -> dict[str, object]:
    answer = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": question})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_export_is_whole_and_its_users_alone(
    product: Product, client: httpx.Client, colleague: httpx.Client
) -> None:
    document = upload(client, "harbour [1].txt", PASSAGE.encode())
    assert finished(client, document["task_id"])["status"] == "succeeded"
    conversation = client.post("/api/v1/conversations", json={"title": 'Häfen "a/b"'}).json()["id"]
    path = f"/api/v1/conversations/{conversation}/export"
    first = ask(client, conversation, "Who is the harbour master of Zorblatt?")
    assert first["citations"]
    client.post(f"/api/v1/conversations/{conversation}/messages/{first['id']}/regenerate", json={})

    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    assert "H%C3%A4fen" in answer.headers["content-disposition"]
    lines = answer.text.splitlines()
    assert lines[0] == '# Häfen "a/b"'
    assert [line.partition(" · ")[0] for line in lines if line.startswith("## ")] == ["## Question", "## Answer"]
    assert "Who is the harbour master of Zorblatt?" in lines
    assert "[^2-1]: **harbour \\[1\\].txt**: “The harbour master of Zorblatt is Ingrid Olsen.”" in answer.text

    told = client.get(path, params={"format": "json"})
    assert told.headers["content-type"] == "application/json"
    body = json.loads(told.text)
    assert body["conversation"]["id"] == conversation
    assert [item["role"] for item in body["messages"]] == ["user", "assistant", "assistant"]
    assert body["messages"][2]["siblings"] == [item["id"] for item in body["messages"][1:]]

    assert client.get(path, params={"format": "pdf"}).json()["code"] == "request.invalid"
    with product.client(product.new_tenant("harbours")["api_key"]) as stranger:
        for other in (colleague, stranger):
            assert other.get(path).json()["code"] == "conversation.not_found"

    assert client.delete(f"/api/v1/documents/{document['document_id']}").status_code == 202
    (_, cited) = client.get(f"/api/v1/conversations/{conversation}/messages").json()["items"]
    assert [(item["quote"], item["available"]) for item in cited["citations"]] == [("", False)]
    assert "*the source is no longer available*" in client.get(path).text
    assert "pier nine" not in client.get(path).text + client.get(path, params={"format": "json"}).text


def test_an_empty_conversation_is_a_file_too(client: httpx.Client) -> None:
    conversation = client.post("/api/v1/conversations", json={}).json()["id"]
    assert client.get(f"/api/v1/conversations/{conversation}/export").text.startswith("# Conversation\n")
    body = client.get(f"/api/v1/conversations/{conversation}/export", params={"format": "json"}).json()
    assert body["messages"] == []


def test_a_long_conversation_is_exported_to_its_end(client: httpx.Client) -> None:
    conversation = client.post("/api/v1/conversations", json={}).json()["id"]
    for number in range(120):
        ask(client, conversation, f"What is the colour of ship {number}?")
    path = f"/api/v1/conversations/{conversation}/export"
    text = client.get(path).text
    assert [f"of ship {number}?" in text for number in range(120)] == [True] * 120
    assert text.index("ship 99?") < text.index("ship 100?")
    assert len(client.get(path, params={"format": "json"}).json()["messages"]) == 240
