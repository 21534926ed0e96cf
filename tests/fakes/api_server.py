"""A small HTTP server that keeps the contract of the API, for tests of programs that talk to it.

What happens to an uploaded file is told by its first bytes: `MZ` is refused, `broken` fails, all else succeeds after
a few looks at its task.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

KEY, PLATFORM = "dh_key", "platform-token"
FILENAME = re.compile(rb'filename="([^"]*)"')
LOOKS = 2
PAGE = 2


class FakeApi:
    """State, faults to come, and what was asked. `url` is where it listens."""

    def __init__(self) -> None:
        self.url = ""
        self.documents: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.forms: list[dict[str, list[str]]] = []
        self.bodies: list[Any] = []
        self.calls: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.faults: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.hits: list[dict[str, Any]] = []
        self.answer: list[tuple[str, Any]] = []
        self.hang_after_answer = threading.Event()
        self.reader_left = threading.Event()
        self.lock = threading.Lock()

    def upload(self, name: str, data: bytes) -> tuple[int, dict[str, Any]]:
        if data.startswith(b"MZ"):
            return 415, _problem(415, "file.type_not_allowed", "Programs are not taken.")
        digest = hashlib.sha256(data).hexdigest()
        for document in self.documents.values():
            if document["sha256"] == digest:
                task = self.tasks[document["task_id"]]
                return 200, _receipt(document, task, duplicate=True)
        task = {"id": str(uuid4()), "status": "queued", "stage": "queued", "progress": 0.0, "error": None, "looks": 0}
        task["broken"] = data.startswith(b"broken")
        document = {"id": str(uuid4()), "filename": name, "sha256": digest, "status": "ready", "task_id": task["id"]}
        self.tasks[task["id"]] = task
        self.documents[document["id"]] = document
        return 202, _receipt(document, task, duplicate=False)

    def look(self, task: dict[str, Any]) -> dict[str, Any]:
        """A task moves on each time that it is looked at."""
        task["looks"] += 1
        if task["looks"] >= LOOKS:
            failed = task["broken"]
            task["status"], task["progress"] = ("failed", 0.5) if failed else ("succeeded", 1.0)
            if failed:
                task["error"] = {"code": "file.unreadable", "message": "The file is damaged; save it again."}
        else:
            task |= {"status": "running", "stage": "embed", "progress": 0.4}
        return task


@contextmanager
def running_api() -> Generator[FakeApi]:
    """Listens on a free port of loopback until the block ends."""
    api = FakeApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FakeApi

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def _handle(self, verb: str) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        route = f"{verb} {url.path}"
        with self.api.lock:
            self.api.calls[route] += 1
            faults = self.api.faults.get(route)
            fault = faults.pop(0) if faults else None
        if fault is not None:
            status, headers = fault
            return self._answer(status, _problem(status, "fault", "Come back later."), headers)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != (PLATFORM if route == "POST /api/v1/tenants" else KEY):
            return self._answer(401, _problem(401, "auth.invalid_token", "This key is not valid."))
        return self._serve(route, url.path, {name: values[0] for name, values in parse_qs(url.query).items()}, body)

    def _serve(self, route: str, path: str, query: dict[str, str], body: bytes) -> None:
        api = self.api
        match route:
            case "GET /api/v1/me":
                self._answer(200, {"tenant": {"id": "t1", "name": "Acme"}, "user": {"id": "u1"}})
            case "POST /api/v1/tenants":
                asked = json.loads(body)
                owner = {"id": "u2", "email": asked["owner_email"], "password": "made up"}
                self._answer(201, {"id": "t2", "name": asked["name"], "api_key": "dh_new", "owner": owner})
            case "POST /api/v1/documents":
                self._upload(body)
            case "GET /api/v1/documents":
                at = int(query.get("cursor", 0))
                items = list(api.documents.values())[at : at + PAGE]
                more = str(at + PAGE) if at + PAGE < len(api.documents) else None
                self._answer(200, {"items": items, "next_cursor": more})
            case "GET /api/v1/tasks":
                with api.lock:
                    self._answer(200, {"items": [dict(api.look(task)) for task in api.tasks.values()]})
            case "POST /api/v1/search":
                api.bodies.append(json.loads(body))
                self._answer(200, {"items": api.hits, "took_ms": 1.0, "cache": "miss"})
            case "POST /api/v1/conversations":
                self._answer(201, {"id": "c1", "title": ""})
            case _ if route.startswith("GET /api/v1/tasks/"):
                with api.lock:
                    self._answer(200, dict(api.look(api.tasks[path.rpartition("/")[2]])))
            case _ if route.startswith("POST /api/v1/conversations/") and path.endswith("/messages"):
                api.bodies.append({"path": path} | json.loads(body))
                self._stream(api.answer)
            case _:
                self._answer(404, _problem(404, "request.not_found", "There is no such path."))

    def _upload(self, body: bytes) -> None:
        message = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
        form: dict[str, list[str]] = {}
        name, data = "", b""
        for part in message.get_payload():
            field = str(part.get_param("name", header="content-disposition"))
            if field == "file":
                name, data = FILENAME.search(body)[1].decode(), part.get_payload(decode=True)
            else:
                form.setdefault(field, []).append(part.get_payload(decode=True).decode())
        api = self.api
        with api.lock:
            api.at_once += 1
            api.most_at_once = max(api.most_at_once, api.at_once)
        time.sleep(0.05)
        with api.lock:
            api.at_once -= 1
            api.forms.append(form | {"name": [name]})
            status, answer = api.upload(name, data)
        self._answer(status, answer)

    def _stream(self, parts: Iterable[tuple[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for kind, data in parts:
            self.wfile.write(f": keep-alive\r\nevent: {kind}\r\ndata: {json.dumps(data)}\r\n\r\n".encode())
        self.wfile.flush()
        self.close_connection = True
        if self.api.hang_after_answer.is_set():
            self.connection.recv(1)  # answers at once when the reader goes away
            self.api.reader_left.set()

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _receipt(document: dict[str, Any], task: dict[str, Any], *, duplicate: bool) -> dict[str, Any]:
    return {
        "document_id": document["id"],
        "task_id": task["id"],
        "status": task["status"],
        "duplicate": duplicate,
        "added_later": "a newer server may say more",
    }


def _problem(status: int, code: str, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": "Refused", "status": status, "detail": detail, "code": code}
