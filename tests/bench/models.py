"""The local model process under load: queries alone, ingest alone, and both at once, in one run.

`python -m tests.bench.models [HOME]` prints one JSON object. `query_ratio` is the p95 of a query while ingest floods
over its p95 when idle (goal: at most 3); `ingest_ratio` is the texts per second that ingest keeps (goal: at least .8).
"""

import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx

from internal.models.server import run
from internal.models.weights import NAME
from pkg import config

SECONDS = 3.0
FLOODERS = 3
TEXTS = 32
WORDS = (
    "refund policy customer invoice delivery contract 退款 政策 客户 发票 合同 交付 warranty 保修 notice 通知".split()
)
ROUNDS = 4
SPAWN = multiprocessing.get_context("spawn")


def serve(home: str) -> None:
    """The model process."""
    run(config.load(DREAMHUB_HOME=home))


@contextmanager
def server(home: Path) -> Generator[Path]:
    """A running model process; yields its socket."""
    process = SPAWN.Process(target=serve, args=(str(home),))
    process.start()
    try:
        yield home / "run" / "models.sock"
    finally:
        process.terminate()
        process.join()


def client(socket: Path) -> httpx.Client:
    """A client of its own, as each process of the product has."""
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://models", timeout=120)


def text(words: int) -> str:
    """Random words of both languages; about 1.6 tokens each."""
    return " ".join(random.choices(WORDS, k=words))


def embed(http: httpx.Client, texts: list[str], kind: str) -> int:
    """Embeds and returns the number of tokens."""
    body = {"model": NAME, "input": texts, "input_type": kind, "encoding_format": "base64"}
    return http.post("/v1/embeddings", json=body).raise_for_status().json()["usage"]["prompt_tokens"]


def queries(socket: Path, seconds: float) -> dict[str, float]:
    """Latencies in milliseconds of one person's queries, about 20 a second."""
    taken: list[float] = []
    with client(socket) as http:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            started = time.perf_counter()
            embed(http, [text(8)], "query")
            taken.append((time.perf_counter() - started) * 1000)
            time.sleep(random.uniform(0.03, 0.07))
    taken.sort()
    return {"p50": taken[len(taken) // 2], "p95": taken[int(len(taken) * 0.95)]}


def ingest(socket: Path) -> None:
    """One caller that embeds without a pause."""
    with client(socket) as http:
        while True:
            embed(http, [text(60) for _ in range(TEXTS)], "passage")


@contextmanager
def flood(socket: Path) -> Generator[None]:
    """Ingest from several processes at once; it has begun when the block does."""
    callers = [SPAWN.Process(target=ingest, args=(socket,), daemon=True) for _ in range(FLOODERS)]
    for caller in callers:
        caller.start()
    time.sleep(2.0)
    try:
        yield
    finally:
        for caller in callers:
            caller.terminate()
            caller.join()


def tokens(http: httpx.Client) -> float:
    """Tokens that ingest has embedded so far."""
    name = 'dreamhub_models_tokens_total{lane="ingest"} '
    lines = http.get("/metrics").text.splitlines()
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)


class Rate:
    """Tokens per second of ingest since it was made."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._tokens = tokens(http)
        self._started = time.monotonic()

    def value(self) -> float:
        """The mean until now."""
        return (tokens(self._http) - self._tokens) / (time.monotonic() - self._started)


def wait_for(http: httpx.Client) -> None:
    """Returns when the model is loaded; the first time it is converted before."""
    while True:
        try:
            embed(http, ["warm"], "query")
            return
        except httpx.ConnectError:
            time.sleep(0.1)


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds: another program's burst spoils one round only."""
    return {name: round(median(run[name] for run in runs), 1) for name in ("p50", "p95")}


def measure(socket: Path) -> dict[str, object]:
    """Both lanes alone and together, in alternation, so that a busy machine touches all alike."""
    with client(socket) as http:
        wait_for(http)
        idle, busy, alone, beside = [], [], [], []
        for _ in range(ROUNDS):
            idle.append(queries(socket, SECONDS))
            with flood(socket):
                so_far = Rate(http)
                time.sleep(SECONDS)
                alone.append(so_far.value())
                so_far = Rate(http)
                busy.append(queries(socket, SECONDS))
                beside.append(so_far.value())
        rss = http.get("/healthz").json()["rss_bytes"]
    return {
        "query_idle_ms": middle(idle),
        "query_under_ingest_ms": middle(busy),
        "ingest_tokens_per_second_alone": round(median(alone)),
        "ingest_tokens_per_second_beside_queries": round(median(beside)),
        "query_ratio": round(middle(busy)["p95"] / middle(idle)["p95"], 2),
        "ingest_ratio": round(median(beside) / median(alone), 2),
        "rss_mb": rss // 1_048_576,
    }


def main() -> None:
    """Runs in HOME, where the converted model may already lie, or in a folder that is removed."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
        with server(home) as socket:
            print(json.dumps(measure(socket), indent=1))


if __name__ == "__main__":
    main()
