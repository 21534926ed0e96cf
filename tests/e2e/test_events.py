"""An upload as its follower sees it, through the real worker and relay."""

import secrets
import threading

import msgspec
import pytest

from tests.e2e.following import WAYS, Follow, told
from tests.e2e.product import Product, upload

# Long enough to be embedded for a while: what is read at once has no progress to tell.
SHIPS = "\n\n".join(
    f"On day {day} the harbour counts {day * 7} ships of {day + 3} lines." for day in range(1500)
).encode()


@pytest.mark.parametrize("follow", WAYS)
def test_an_upload_is_followed_from_the_queue_to_its_end(product: Product, follow: Follow):
    made = product.new_tenant(f"followed-{secrets.token_hex(4)}")
    ready = threading.Event()
    sent: dict[str, str] = {}

    def send() -> None:
        ready.wait(60)
        with product.client(made["api_key"]) as client:
            sent.update(upload(client, "ships.txt", SHIPS))

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
    assert types[-1] == "task.succeeded"
    # Progress is told to whoever listens already, which takes a moment, and once more when the document is ready.
    assert set(types[2:-1]) - {"task.progress"} == {"document.ready"}
    assert types.count("document.ready") == 1
    told_so_far = [item["data"]["progress"] for item in seen if item["type"] == "task.progress"]
    assert told_so_far == sorted(told_so_far)
    assert {item["data"]["document_id"] for item in seen[1:]} == {sent["document_id"]}
    assert {item["data"]["task_id"] for item in seen[1:] if "task_id" in item["data"]} == {sent["task_id"]}
    again = [msgspec.json.decode(item) for item in told(follow, product, made["api_key"], until=sent["document_id"])]
    assert again[-1] == seen[1]
