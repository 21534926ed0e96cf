"""The address that `up` holds for its server: who waits, who is answered, who is told that it can't be had."""

import asyncio
import os
import socket
from collections.abc import Generator

import httpx
import pytest

from dreamhub.embedded import PORTS
from dreamhub.errors import StartError
from dreamhub.listener import Listener
from internal.handlers.server import inherited
from pkg.apperr import SettingsError

LOOPBACK = "127.0.0.1"
OVER = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nover"


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


IPV6 = ["::1"] if has_ipv6() else []


@pytest.fixture
def listener() -> Generator[Listener]:
    held = Listener.open(LOOPBACK, 0)
    yield held
    held.close()


def url_of(listener: Listener) -> str:
    return f"http://{LOOPBACK}:{listener.port}/"


async def get(listener: Listener, seconds: float = 20.0) -> httpx.Response:
    async with httpx.AsyncClient(timeout=seconds, trust_env=False) as client:
        return await client.get(url_of(listener))


async def server_on(listener: Listener) -> asyncio.Server:
    """Stands in for the API server, on copies of the descriptors as a child has them."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OVER.encode())
        writer.close()

    return await asyncio.start_server(answer, sock=inherited(os.dup(listener.descriptors[0])))


async def test_connections_wait_for_the_next_server(listener: Listener) -> None:
    first = await server_on(listener)
    assert (await get(listener)).text == "over"
    first.close()
    waiting = [asyncio.create_task(get(listener)) for _ in range(20)]
    async with listener.meanwhile(0.2):
        done, _ = await asyncio.wait(waiting, timeout=0.2)
    assert not done
    second = await server_on(listener)
    assert {answer.text for answer in await asyncio.gather(*waiting)} == {"over"}
    second.close()


async def test_callers_are_answered_while_the_server_keeps_dying(listener: Listener) -> None:
    waiting = asyncio.create_task(get(listener))
    async with listener.meanwhile(8.4):
        answers = [await waiting, await get(listener)]
        async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
            answers.append(await client.post(url_of(listener), content=b"x" * 5_000_000))
    for answer in answers:
        assert answer.status_code == 503
        assert 1 <= int(answer.headers["retry-after"]) <= 9
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["code"] == "server.unavailable"
        assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    server = await server_on(listener)
    assert (await get(listener)).text == "over"
    server.close()


async def test_a_closed_listener_refuses(listener: Listener) -> None:
    listener.close()
    with pytest.raises(httpx.ConnectError):
        await get(listener)


def test_a_port_in_use_is_told_from_a_free_one(listener: Listener) -> None:
    with pytest.raises(
        StartError, match=rf"^port {listener.port} on 127.0.0.1 is in use; choose another with --port N"
    ):
        Listener.open(LOOPBACK, listener.port)
    listener.close()
    again = Listener.open(LOOPBACK, listener.port)
    assert again.port == listener.port
    assert listener.port in PORTS
    again.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_of_this_machine_is_one_line(host: str) -> None:
    with pytest.raises(StartError, match=rf"^SERVER__HOST: {host} is no address of this machine") as caught:
        Listener.open(host, 8765)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("localhost", [LOOPBACK]),
        ("0.0.0.0", [LOOPBACK]),
        ("", [LOOPBACK, *IPV6]),
        *(("::1", IPV6) for _ in IPV6),
        *(("::", [LOOPBACK, *IPV6]) for _ in IPV6),
    ],
)
async def test_every_address_of_a_name_is_listened_on(host: str, reached: list[str]) -> None:
    listener = Listener.open(host, 0)
    for address in reached:
        _, writer = await asyncio.open_connection(address, listener.port)
        writer.close()
    listener.close()


def test_a_descriptor_that_does_not_listen_is_refused_by_name() -> None:
    with socket.socket() as idle, pytest.raises(SettingsError, match=r"^--fd \d+ is no listening socket"):
        inherited(idle.dup().detach())
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(SettingsError, match="is no listening socket"):
        inherited(reader)
    os.close(reader)


def test_no_program_inherits_it_unasked(listener: Listener) -> None:
    assert not any(os.get_inheritable(descriptor) for descriptor in listener.descriptors)
    copy = os.dup(listener.descriptors[0])
    os.set_inheritable(copy, True)  # as a child finds it
    with inherited(copy) as found:
        assert not found.get_inheritable()
