"""The server is told to stop under load, again and again: no request fails, and every stream says how it ends."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.e2e import product
from tests.e2e.product import Product
from tests.e2e.test_up import pids, until
from tests.fakes.openai_server import Reply, threaded_fake
from tests.servers import reachable_folder

CLIENTS, REQUESTS = 8, 40
SECONDS = 120
SHORT = Reply(pieces=["word "] * 30, seconds_between=0.1)
LONG = Reply(pieces=["word "] * 400, seconds_between=0.1)
"""Takes longer to say than a stopping server waits."""


class Load:
    """Clients that keep their connections and send one request after the other. Whatever fails is raised at the end."""

    def __init__(self, running: Product) -> None:
        self._running = running
        self._stop = threading.Event()
        self.statuses: list[int] = []
        self.closes = 0

    def run(self, number: int) -> None:
        with self._running.client() as client:
            client.timeout = httpx.Timeout(SECONDS)
            for step in range(10**6):
                if self._stop.is_set():
                    return
                answer = self._request(client, f"{number} {step}", upload=step % 3 == 0)
                self.statuses.append(answer.status_code)
                self.closes += answer.headers.get("connection") == "close"

    def _request(self, client: httpx.Client, text: str, *, upload: bool) -> httpx.Response:
        if upload:
            return client.post("/api/v1/documents", files={"file": ("note.txt", f"Heron number {text}.".encode())})
        return client.post("/api/v1/search", json={"query": f"heron {text}", "mode": "keyword"})

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def loaded(running: Product) -> Iterator[Load]:
    load = Load(running)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(load.run, number) for number in range(CLIENTS)]
        try:
            until(lambda: len(load.statuses) > REQUESTS or failed(clients))
            yield load
        finally:
            load.stop()
        for client in clients:
            client.result()


def failed(clients: list[Future[None]]) -> bool:
    return any(client.done() for client in clients)


def follow(client: httpx.Client, begun: Callable[[], object]) -> list[str]:
    """Names of the events of a stream that the server ends."""
    names: list[str] = []
    with client.stream("GET", "/api/v1/events/stream", timeout=SECONDS) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: ") and not names:
                begun()
            if line.startswith(("event: ", "retry: ")):
                names.append(line)
    return names


def ask(client: httpx.Client, begun: Callable[[], object]) -> list[tuple[str, dict[str, object]]]:
    """Events of an answer after its first delta."""
    conversation = client.post("/api/v1/conversations", json={}).json()["id"]
    path, name, events = f"/api/v1/conversations/{conversation}/messages", "", []
    body = {"content": "Where does the heron stand?", "stream": True}
    with client.stream("POST", path, json=body, timeout=SECONDS) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                begun()
                if name != "delta":
                    events.append((name, msgspec.json.decode(line.removeprefix("data: "))))
    return events


def socket_of(running: Product) -> ClientConnection:
    url = running.up["url"].replace("http", "ws", 1) + "/api/v1/events"
    headers = {"Authorization": f"Bearer {running.up['api_key']}"}
    return connect(url, additional_headers=headers, proxy=None, max_queue=None)


def code_of(socket: ClientConnection) -> int:
    """How the server closed it."""
    with pytest.raises(ConnectionClosed) as end:
        while True:
            socket.recv(timeout=SECONDS)
    assert end.value.rcvd is not None, "cut without a word"
    return end.value.rcvd.code


def replace_server(running: Product) -> None:
    """As a person or another program may do it; `up` starts the next one."""
    (before,) = pids(running)["server"]
    os.kill(before, signal.SIGTERM)
    until(lambda: pids(running)["server"] != [before], seconds=60)


def drained_once(running: Product, load: Load) -> tuple[str, dict[str, object]]:
    """One SIGTERM under load, with two followers and an answer being written, whose last event is answered."""
    following, answering = threading.Event(), threading.Event()
    with ExitStack() as stack:
        clients = [stack.enter_context(running.client()) for _ in range(2)]
        socket = stack.enter_context(socket_of(running))
        pool = stack.enter_context(ThreadPoolExecutor(3))
        stream = pool.submit(follow, clients[0], following.set)
        answer = pool.submit(ask, clients[1], answering.set)
        code = pool.submit(code_of, socket)
        assert following.wait(SECONDS)
        assert answering.wait(SECONDS)
        replace_server(running)
        assert code.result(SECONDS) == 1012
        assert stream.result(SECONDS)[-1] == "event: bye"
        last = answer.result(SECONDS)[-1]
    counted = len(load.statuses)
    until(lambda: len(load.statuses) > counted + REQUESTS, seconds=60)
    return last


def test_no_request_fails_while_servers_are_replaced_and_streams_say_how_they_end() -> None:
    with reachable_folder() as folder, threaded_fake() as fake:
        process = product.start(
            folder / "home",
            AI__BASE_URL=fake.base_url,
            AI__CHAT_MODEL="fake",
            LIMITS__RATE_PER_MINUTE="1000000",
        )
        try:
            product.wait_until_up(folder / "home", process)
            running = Product(folder / "home", process)
            with running.client() as client:
                taken = product.upload(client, "note.txt", b"The heron stands in the reeds.")
                product.finished(client, taken["task_id"])
            began = time.monotonic()
            with loaded(running) as load:
                fake.default = SHORT
                name, _ = drained_once(running, load)
                assert name == "done"
                fake.default = LONG
                name, problem = drained_once(running, load)
                assert (name, problem["code"]) == ("error", "server.stopping")
            assert set(load.statuses) <= {200, 202}, sorted(set(load.statuses))
            assert load.closes >= CLIENTS  # connections in use were told that they end
            print(f"{len(load.statuses)} requests in {time.monotonic() - began:.0f} s, none failed")
        finally:
            product.stop(process)
