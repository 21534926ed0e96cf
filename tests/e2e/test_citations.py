"""Citations of the running product: the exact words, and the page and heading at which these words stand."""

import json
from collections.abc import Generator
from typing import Any

import httpx
import pytest

from tests.e2e.product import Product, finished, upload
from tests.fixtures.files import build

SECTIONS = (
    ("Opening hours", "The canteen is open from half past eleven to two."),
    ("Parking", "Visitors park their cars on the roof of the west building."),
    ("Lost property", "Umbrellas that were left behind are kept by the porter for nine weeks."),
)
HANDBOOK_ZH = """# 员工手册

## 请假

年假为二十八个工作日，可结转五天。

## 报销

差旅报销单据应在四周内提交给财务部。

## 停车

访客车辆停放在西楼的楼顶停车场。
"""


@pytest.fixture(scope="module")
def client(product: Product) -> Generator[httpx.Client]:
    pages = [build.show((72, 760, 22, name), (72, 700, 11, text)) for name, text in SECTIONS]
    with product.client(product.new_tenant("citations")["api_key"]) as found:
        for name, data in (("house.pdf", build.pdf(*pages)), ("手册.md", HANDBOOK_ZH.encode())):
            task = finished(found, upload(found, name, data)["task_id"])
            assert task["status"] == "succeeded", task
        yield found


def chunks(client: httpx.Client, name: str) -> list[dict[str, Any]]:
    (document,) = client.get("/api/v1/documents", params={"name": name}).json()["items"]
    return client.get(f"/api/v1/documents/{document['id']}/chunks").json()["items"]


def ask(client: httpx.Client, question: str, *, stream: bool) -> dict[str, Any]:
    """The message, which is the last event of a stream."""
    conversation = client.post("/api/v1/conversations", json={}).json()["id"]
    answer = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": question, "stream": stream})
    assert answer.status_code == 200, answer.text
    if not stream:
        return answer.json()
    events = [lines.split("\ndata: ", 1) for lines in answer.text.strip().split("\n\n") if "\ndata: " in lines]
    told = {kind.rpartition("event: ")[2]: json.loads(data) for kind, data in events}
    assert told["citations"] == told["done"]["citations"]
    return told["done"]


def test_sections_of_three_pages_share_a_chunk_that_tells_where_each_stands(client: httpx.Client) -> None:
    (chunk,) = chunks(client, "house.pdf")
    assert (chunk["location"]["page"], chunk["location"]["heading"]) == (1, "Opening hours")
    for page, (name, text) in enumerate(SECTIONS, 1):
        start = chunk["text"].index(text)
        part = [part for part in chunk["parts"] if part["start"] <= start][-1]
        assert (part["location"]["page"], part["location"]["heading"]) == (page, name)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("question", "quote", "page", "heading"),
    [
        ("How many weeks are umbrellas kept by the porter?", SECTIONS[2][1], 3, "Lost property"),
        ("Where do visitors park their cars?", SECTIONS[1][1], 2, "Parking"),
        ("差旅报销单据应在多久之内提交？", "差旅报销单据应在四周内提交给财务部。", None, "员工手册 > 报销"),
    ],
)
def test_a_citation_names_the_page_and_heading_of_its_quote(
    client: httpx.Client, question: str, quote: str, page: int | None, heading: str, stream: bool
) -> None:
    message = ask(client, question, stream=stream)
    (citation,) = [item for item in message["citations"] if item["quote"] == quote]
    assert citation["location"].get("page") == page
    assert citation["location"]["heading"] == heading
    assert f"[{citation['index']}]" in message["content"]
    found = chunks(client, citation["filename"])
    assert citation["quote"] in next(item["text"] for item in found if item["id"] == citation["chunk_id"])
    if page:
        x0, y0, x1, y1 = citation["location"]["box"]
        assert 0.1 < x0 < x1 < 0.9
        assert 0.1 < y0 < y1 < 0.2
        assert [round(side, 4) for side in (x0, y0, x1, y1)] == [x0, y0, x1, y1]


def test_a_hit_has_the_page_of_its_passage_that_has_the_words(client: httpx.Client) -> None:
    answer = client.post("/api/v1/search", json={"query": "umbrellas kept by the porter", "k": 1}).json()
    (hit,) = answer["items"]
    assert (hit["location"]["page"], hit["location"]["heading"]) == (3, "Lost property")
