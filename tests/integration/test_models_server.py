"""The real model process on a socket: OpenAI's client, both lanes, OCR, bad input, idle release, a clean stop."""

import base64
import io
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw, ImageFont

from internal.models import weights

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
SERVE = """
import sys
from internal.models.server import run
from pkg import config
models = {"cache_dir": sys.argv[2], "idle_seconds": float(sys.argv[3]), "preload": sys.argv[4] == "preload"}
run(config.load(DREAMHUB_HOME=sys.argv[1], models=models))
"""


class Server:
    """One model process and how to reach it."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self.path = path
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)), base_url="http://models", timeout=PATIENCE
        )
        self.openai = openai.OpenAI(base_url="http://models/v1", api_key="unused", http_client=self.http, max_retries=0)

    def health(self) -> dict[str, Any]:
        return self.http.get("/healthz").raise_for_status().json()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def running(
    home: Path, cache: Path, *, idle_seconds: float = 600.0, preload: bool = False, log: Path | None = None
) -> Generator[Server]:
    arguments = [sys.executable, "-c", SERVE, str(home), str(cache), str(idle_seconds), "preload" if preload else ""]
    environment = {name: value for name, value in os.environ.items() if "__" not in name}
    if log is not None:
        environment["LOG__FORMAT"] = "json"
    with nullcontext() if log is None else log.open("wb") as written:
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=written)
    server = Server(process, home / "run" / "models.sock")
    try:
        until(lambda: answers(server))
        yield server
    finally:
        process.kill()
        process.wait()
        server.http.close()


def answers(server: Server) -> bool:
    assert server.process.poll() is None, "the process ended"
    try:
        return server.http.get("/healthz").status_code == 200
    except httpx.ConnectError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Waits for what must happen, without saying how fast."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Beside the base folder of this run, so that runs and parallel workers share one conversion.
    folder = tmp_path_factory.getbasetemp().parent / "dreamhub-models"
    weights.ensure(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Generator[Server]:
    with running(tmp_path_factory.mktemp("m"), cache) as found:
        yield found


def embed(server: Server, texts: list[str] | str, **body: object) -> httpx.Response:
    return server.http.post("/v1/embeddings", json={"model": weights.NAME, "input": texts, **body})


def picture(text: str) -> bytes:
    image = Image.new("RGB", (700, 90), "white")
    ImageDraw.Draw(image).text((20, 20), text, font=ImageFont.load_default(40), fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_openai_client_embeds_both_languages(server: Server) -> None:
    answer = server.openai.embeddings.create(
        model=weights.NAME,
        input=["Customers may return goods for a full refund.", "The office is closed on public holidays."],
    )
    query = server.openai.embeddings.create(model=weights.NAME, input="怎么退钱?", extra_body={"input_type": "query"})
    vectors = np.array([item.embedding for item in answer.data])
    assert [item.index for item in answer.data] == [0, 1]
    assert vectors.shape == (2, 384)
    right, wrong = vectors @ np.array(query.data[0].embedding)
    assert right > wrong
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_numbers_and_base64_are_the_same_vectors(server: Server) -> None:
    numbers = embed(server, "hello").json()["data"][0]["embedding"]
    coded = embed(server, "hello", encoding_format="base64").json()["data"][0]["embedding"]
    assert struct.unpack("<384f", base64.b64decode(coded)) == pytest.approx(numbers, abs=1e-6)


def test_queries_and_passages_differ(server: Server) -> None:
    query, passage = (
        embed(server, "refund", input_type=kind).json()["data"][0]["embedding"] for kind in ("query", "passage")
    )
    assert query != pytest.approx(passage, abs=1e-3)


def test_what_is_searched_comes_with_codes_and_without_its_language(server: Server) -> None:
    texts = ["the zeppelin of the quartermaster", "押金什么时候退还？"]
    plain = embed(server, texts).json()["data"]
    searched = embed(server, texts, for_search=True).json()["data"]
    asked = embed(server, texts, for_search=True, input_type="query").json()["data"]
    assert not any("token_codes" in item for item in plain)
    for mine, other, query in zip(plain, searched, asked, strict=True):
        assert np.linalg.norm(other["embedding"]) == pytest.approx(1, abs=1e-5)
        assert np.dot(mine["embedding"], other["embedding"]) < 0.9
        assert len(base64.b64decode(other["token_codes"])) % 48 == 0
        assert len(base64.b64decode(query["token_codes"])) % (2 * 384) == 0
    apart = [np.dot(*(item["embedding"] for item in found)) for found in (plain, searched)]
    assert apart[0] > 0.7 > 0.3 > apart[1], "all of the model's own vectors look alike"


def test_cut_inputs_are_named_in_the_usage(server: Server) -> None:
    usage = embed(server, ["short", "long " * 900, "short"]).json()["usage"]
    assert usage["truncated"] == [1]
    assert 512 < usage["prompt_tokens"] < 540


def test_lane_follows_header_then_kind(server: Server) -> None:
    def texts(lane: str) -> float:
        name = f'dreamhub_models_texts_total{{lane="{lane}"}} '
        lines = server.http.get("/metrics").text.splitlines()
        return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)

    before = {lane: texts(lane) for lane in ("interactive", "ingest")}
    embed(server, ["a", "b"], input_type="query")
    embed(server, ["a"] * 3, input_type="passage")
    server.http.post(
        "/v1/embeddings", json={"model": weights.NAME, "input": ["a"] * 4}, headers={"X-Lane": "interactive"}
    )
    assert {lane: texts(lane) - before[lane] for lane in before} == {"interactive": 6, "ingest": 3}


def test_concurrent_callers_get_their_own_vectors(server: Server) -> None:
    texts = [f"sentence number {number} of caller {number % 7}" for number in range(48)]
    alone = {text: np.array(embed(server, text).json()["data"][0]["embedding"]) for text in texts[:8]}
    with ThreadPoolExecutor(8) as pool:
        groups = [texts[start : start + 6] for start in range(0, 48, 6)]
        answers = list(pool.map(lambda group: embed(server, group).json()["data"], groups))
    together = {
        text: np.array(item["embedding"])
        for group, data in zip(groups, answers, strict=True)
        for text, item in zip(group, data, strict=True)
    }
    for text, vector in alone.items():
        assert float(vector @ together[text]) > 0.999


def test_tokens_are_counted(server: Server) -> None:
    answer = server.http.post("/v1/tokenize", json={"input": ["hello world", "", "退款政策"] * 1000})
    assert answer.json()["counts"][:3] == answer.json()["counts"][-3:]
    assert answer.json()["counts"][1] == 0
    assert all(count > 0 for count in answer.json()["counts"][::3])


def test_models_are_listed(server: Server) -> None:
    listed = {model.id: model for model in server.openai.models.list()}
    assert weights.NAME in listed
    assert weights.SOURCE_SHA256[:12] in listed[weights.NAME].version


def test_picture_is_read(server: Server) -> None:
    answer = server.http.post("/v1/ocr", content=picture("Invoice 4711 for Alice")).json()
    assert (answer["width"], answer["height"]) == (700, 90)
    assert [line["text"] for line in answer["lines"]] == ["Invoice 4711 for Alice"]
    left, top, right, bottom = answer["lines"][0]["box"]
    assert 0 <= left < right <= 700
    assert 0 <= top < bottom <= 90


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "request.malformed"),
        (b"{", 400, "request.malformed"),
        (b"\xff\xfe", 400, "request.malformed"),
        (b"[]", 400, "request.invalid"),
        (b'{"model":"%s"}', 400, "request.invalid"),
        (b'{"model":"%s","input":[]}', 400, "request.invalid"),
        (b'{"model":"%s","input":""}', 400, "request.invalid"),
        (b'{"model":"%s","input":["a",""]}', 400, "request.invalid"),
        (b'{"model":"%s","input":[1,2]}', 400, "request.invalid"),
        (b'{"model":"%s","input":{"a":1}}', 400, "request.invalid"),
        (b'{"model":"%s","input":"a\\u0000b"}', 400, "request.invalid"),
        (b'{"model":"%s","input":"\\ud800 x"}', 400, "request.malformed"),
        (b'{"model":"%s","input":"\\udc00"}', 400, "request.malformed"),
        (b'{"model":"%s","input":"\xed\xa0\x80"}', 400, "request.malformed"),
        (b'{"model":"%s","input":"a","encoding_format":"hex"}', 400, "request.invalid"),
        (b'{"model":"%s","input":"a","input_type":"x"}', 400, "request.invalid"),
        (b'{"model":"%s","input":"a","dimensions":12}', 400, "request.invalid"),
        (b'{"model":"%s","input":"a","colour":1}', 400, "request.invalid"),
        (b'{"model":"%s","input":[' + b'"a",' * 2048 + b'"a"]}', 400, "request.invalid"),
        (b'{"model":"gpt-4","input":"a"}', 404, "request.not_found"),
    ],
)
def test_bad_embedding_requests_are_refused_in_openais_form(
    server: Server, body: bytes, status: int, code: str
) -> None:
    answer = server.http.post("/v1/embeddings", content=body.replace(b"%s", weights.NAME.encode()))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_openai_client_understands_a_refusal(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="empty"):
        server.openai.embeddings.create(model=weights.NAME, input=[""])


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/v1/ocr", b"", 422, "file.empty"),
        ("POST", "/v1/ocr", b"not a picture", 422, "file.unreadable"),
        ("POST", "/v1/ocr", picture("cut")[:300], 422, "file.unreadable"),
        ("POST", "/v1/tokenize", b'{"input":"a"}', 400, "request.invalid"),
        ("POST", "/v1/tokenize", b'{"input":["a\\u0000"]}', 400, "request.invalid"),
        ("GET", "/v1/embeddings", None, 405, "request.method_not_allowed"),
        ("GET", "/v1/nothing", None, 404, "request.not_found"),
    ],
)
def test_other_bad_requests_are_refused_alike(
    server: Server, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    answer = server.http.request(method, path, content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_unknown_lane_is_refused(server: Server) -> None:
    body = {"model": weights.NAME, "input": "a"}
    assert server.http.post("/v1/embeddings", json=body, headers={"X-Lane": "fast"}).status_code == 400


def test_too_large_body_is_refused(server: Server) -> None:
    answer = server.http.post("/v1/embeddings", content=b"x" * (33 * 1_048_576))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request.too_large")


def test_full_queue_answers_503_and_a_caller_who_leaves_makes_room(server: Server) -> None:
    texts = ["a sentence that takes a moment to embed " * 30] * 2048
    body = {"model": weights.NAME, "input": texts}
    patience = httpx.Timeout(PATIENCE, read=3)
    with ThreadPoolExecutor(2) as pool:
        impatient = [pool.submit(server.http.post, "/v1/embeddings", json=body, timeout=patience) for _ in range(2)]
        until(lambda: server.health()["queues"]["ingest"] == 4096)
        refused = embed(server, "one more")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue.full")
        assert int(refused.headers["Retry-After"]) > 0
        assert embed(server, "a query passes", input_type="query").status_code == 200
        for caller in impatient:
            assert isinstance(caller.exception(), httpx.ReadTimeout)
    until(lambda: server.health()["queues"]["ingest"] == 0)
    assert embed(server, "there is room again").status_code == 200


def test_socket_is_the_owners_alone(server: Server) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


def test_second_process_on_a_socket_is_refused(server: Server, cache: Path) -> None:
    home = server.path.parents[1]
    second = subprocess.run(
        [sys.executable, "-c", SERVE, str(home), str(cache), "600", ""],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode != 0
    assert "another model process listens" in second.stderr
    assert server.health()["status"] == "ok"


@pytest.mark.parametrize(
    ("model", "path", "body", "megabytes"),
    [
        ("embedding", "/v1/embeddings", b'{"model":"%s","input":"hello"}' % weights.NAME.encode(), 250),
        ("ocr", "/v1/ocr", picture("hello"), 30),
    ],
    ids=["embedding", "ocr"],
)
def test_memory_is_released_when_idle_and_the_model_comes_back(
    tmp_path: Path, cache: Path, model: str, path: str, body: bytes, megabytes: int
) -> None:
    with running(tmp_path, cache, idle_seconds=2) as server:
        assert not server.health()["loaded"][model]
        assert server.http.post(path, content=body).status_code == 200
        loaded = server.health()
        assert loaded["loaded"][model]
        until(lambda: server.health()["rss_bytes"] < loaded["rss_bytes"] - megabytes * 1_048_576)
        assert not server.health()["loaded"][model]
        assert server.http.post(path, content=body).status_code == 200


def test_the_embedding_model_is_made_and_loaded_before_anyone_asks(tmp_path: Path) -> None:
    with running(tmp_path, tmp_path / "cache", preload=True) as server:
        first = server.http.get("/readyz")  # it listens at once, long before the weights are converted
        assert (first.status_code, first.json()) == (503, {"status": "loading"})
        assert embed(server, "a caller who comes too early waits").status_code == 200
        until(lambda: server.http.get("/readyz").status_code == 200)
        assert server.health()["loaded"]["embedding"]


def test_ready_is_told_at_once_where_nothing_is_preloaded(server: Server) -> None:
    assert server.http.get("/readyz").json() == {"status": "ok"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_finishes_what_is_in_flight(tmp_path: Path, cache: Path, number: int) -> None:
    with running(tmp_path, cache) as server, ThreadPoolExecutor(1) as pool:
        embed(server, "warm")
        answer = pool.submit(embed, server, ["a sentence that takes a moment to embed"] * 300)
        until(lambda: server.health()["queues"]["ingest"] == 300 or answer.done())
        assert server.stop(number) == 0
        assert answer.result().status_code == 200
        assert len(answer.result().json()["data"]) == 300
        assert not server.path.exists()


def test_socket_left_by_a_crash_is_taken_over(tmp_path: Path, cache: Path) -> None:
    with running(tmp_path, cache) as server:
        server.stop(signal.SIGKILL)
        assert server.path.exists()
        with running(tmp_path, cache) as successor:
            assert successor.health()["status"] == "ok"


def test_port_is_served_too(tmp_path: Path, cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = SERVE.replace("models = {", f'models = {{"url": "http://127.0.0.1:{port}", ')
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(cache), "600", ""], cwd=ROOT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:

            def up() -> bool:
                try:
                    return http.get("/healthz").status_code == 200
                except httpx.ConnectError:
                    return False

            until(up)
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_its_log_is_json_where_that_is_asked_for(tmp_path: Path, cache: Path) -> None:
    log = tmp_path / "models.log"
    with running(tmp_path / "home", cache, log=log) as found:
        assert found.stop() == 0
    lines = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert "models listening" in [line["event"] for line in lines]
    assert {line["process"] for line in lines} == {"models"}
