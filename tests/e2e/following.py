"""What a follower of events is told, over a WebSocket and as server-sent events, up to a message that is waited for."""

from collections.abc import Callable, Iterator

import msgspec
from websockets.sync.client import connect

from tests.e2e.product import Product

SOCKET, STREAM = "/api/v1/events", "/api/v1/events/stream"
SECONDS = 60

Follow = Callable[[Product, str], Iterator[bytes]]


def by_socket(product: Product, key: str) -> Iterator[bytes]:
    """Every message from the tenant's first one on."""
    url = product.up["url"].replace("http", "ws", 1) + f"{SOCKET}?last_event_id=0"
    with connect(url, additional_headers={"Authorization": f"Bearer {key}"}, proxy=None, max_queue=None) as socket:
        while True:
            text = socket.recv(timeout=SECONDS)
            yield text.encode() if isinstance(text, str) else text


def by_stream(product: Product, key: str) -> Iterator[bytes]:
    """The same."""
    headers = {"Last-Event-ID": "0"}
    with product.client(key) as client, client.stream("GET", STREAM, headers=headers, timeout=SECONDS) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ").encode()


WAYS: tuple[Follow, ...] = (by_socket, by_stream)


def told(follow: Follow, product: Product, key: str, *, until: str, kind: str = "task.queued") -> list[bytes]:
    """Messages up to the first of a type about a document."""
    found: list[bytes] = []
    for message in follow(product, key):
        found.append(message)
        event = msgspec.json.decode(message)
        if event["type"] == kind and event["data"].get("document_id") == until:
            return found
    raise AssertionError(f"the stream ended after {found[-3:]}")
