"""What `make bench` claims: verdicts, and the figures that it reads from what its parts print."""

import asyncio
import json

import msgspec
import pytest

from tests.bench import load, parts
from tests.bench.ratios import Ratio, parse, table

DISPATCHED = """\
dispatch, 1 worker(s):     693 tasks/s through the ledger,  3.1 x arq's default (220 jobs/s),  0.50 x saq (1400 jobs/s)
dispatch, 2 worker(s):    1184 tasks/s through the ledger,  5.4 x arq's default (220 jobs/s),  0.91 x saq (1300 jobs/s)
"""
SEARCHED = """\
 tenants    ours  plain  unbound   of plain  of unbound  recall@10
    large   0.95   2.40     0.88       2.52        0.93      0.981
    small   0.59   0.51     0.62       0.87        1.05      1.000
"""
WRITTEN = """\
  dim  HNSW   ours/s   COPY/s  ratio  goal
  384    no    72733   118782   0.61  0.75
  384   yes     1211     1094   1.11   0.9
"""
UPLOADED = """\
upload to searchable   1000 pages, 864 passages: 96.0 s, 10.4 pages/s; ratio to the model's own speed 0.77
search while it reads  p95 69.1 ms against 40.8 ms idle: 1.69 × (goal ≤ 3)
"""


@pytest.mark.parametrize("ratio", [Ratio("full stack / bare, RPS", 0.75, 0.75), Ratio("p50", 12.5, 2.8, at_most=True)])
def test_a_printed_ratio_is_read_again(ratio: Ratio) -> None:
    assert parse(ratio.line()) == ratio


def test_other_lines_are_no_ratios() -> None:
    assert parse("ratio of something") is None


@pytest.mark.parametrize(
    ("value", "at_most", "met"), [(0.75, False, True), (0.749, False, False), (0.75, True, True), (0.751, True, False)]
)
def test_verdict(value: float, at_most: bool, met: bool) -> None:
    ratio = Ratio("a ratio", value, 0.75, at_most)
    assert ratio.met is met
    assert table([ratio]).endswith("met" if met else "MISSED")


def test_each_part_is_read() -> None:
    assert [(ratio.value, ratio.met) for ratio in parts.read_dispatch(DISPATCHED)] == [
        (3.1, False),
        (0.5, False),
        (5.4, True),
        (0.91, True),
        (1.184, True),
    ]
    assert [(ratio.value, ratio.goal) for ratio in parts.read_search(SEARCHED)] == [
        (2.52, 0.9),
        (0.87, 0.9),
        (0.981, 0.97),
        (1.0, 0.99),
    ]
    assert [ratio.met for ratio in parts.read_bulk_write(WRITTEN)] == [False, True]
    assert [(ratio.value, ratio.at_most) for ratio in parts.read_upload(UPLOADED)] == [(0.77, False), (1.69, True)]
    models = parts.read_models(json.dumps({"query_ratio": 2.51, "ingest_ratio": 0.98}, indent=1))
    assert [(ratio.value, ratio.met) for ratio in models] == [(2.51, True), (0.98, True)]


@pytest.mark.parametrize("part", parts.PARTS, ids=lambda part: part.name)
def test_a_part_that_printed_nothing_has_no_ratio(part: parts.Part) -> None:
    assert part.read("started\n") == []


async def test_load_is_counted() -> None:
    """Two clients, some of whose answers come in two pieces."""
    served = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        while head := await reader.read(1000):
            assert head.endswith(b'{"query":"a"}')
            served += 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
            await asyncio.sleep(0.001)
            writer.write(b"cd")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/search"
    found = await load.run(url, [load.request(url, "key", msgspec.Raw(b'{"query":"a"}'))], 2, 0.2)
    server.close()
    assert served == round(found.rps * found.seconds)
    assert found.p50_ms >= 1


async def test_an_error_ends_the_load() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\nno")

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/search"
    with pytest.raises(RuntimeError, match="429"):
        await load.run(url, [load.request(url, "key", msgspec.Raw(b"{}"))], 1, 0.2)
    server.close()
