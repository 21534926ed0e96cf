"""An upload as its follower sees it, through the real worker and relay."""

import secrets
import threading

import msgspec
import pytest

from tests.e2e.following import WAYS, Follow, told
from tests.e2e.product import Product, upload


@pytest.mark.parametrize("follow", WAYS)
def test_an_upload_is_followed_from_the_queue_to_its_end(product: Product, follow: Follow):
    made = product.new_tenant(f"followed-{secrets.token_hex(4)}")
    ready = threading.Event()
    sent: dict[str, str] = {}

    def send() -> None:
        ready.wait(60)
        with product.client(made["api_key"]) as client:
            sent.update(upload(client, "ships.txt", b"The harbour counts eleven ships today."))

    sending = threading.Thread(target=send)
    sending.start()
    seen = []
    for message in follow(product, made["api_key"]):
        ready.set()
        seen.append(msgspec.json.decode(message))
        if seen[-1]["type"].startswith("task.") and seen[-1]["data"]["status"] == "succeeded":
            break
    sending.join()
    types = [item["type"] for item in seen]
    assert types[:2] == ["ready", "task.queued"]
    assert types[-2:] == ["document.ready", "task.succeeded"]
    assert set(types[2:-2]) == {"task.progress"}
    assert {item["data"]["document_id"] for item in seen[1:]} == {sent["document_id"]}
    assert {item["data"]["task_id"] for item in seen[1:] if "task_id" in item["data"]} == {sent["task_id"]}
    again = [msgspec.json.decode(item) for item in told(follow, product, made["api_key"], until=sent["document_id"])]
    assert again[-1] == seen[1]
