"""Connections that send half of a request's headers, too slowly or too many, beside those of good clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from reward_servers.server.connections import BoundedConnection, BoundsOnWaiting, bound_connections
from tests.support.pace import patience

HALF = b"GET / HTTP/1.1\r\nHost: test\r\nX-Half: "
WHOLE = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
BASES = (HttpToolsProtocol, H11Protocol)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers after the time that the path names, in seconds."""
    await asyncio.sleep(float(scope["path"].strip("/") or 0))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(base: type[asyncio.Protocol], keep_alive_s: int = 1, **bounds: float) -> AsyncIterator[int]:
    """Run uvicorn in this loop with these bounds, and yield its port."""
    protocol = type("Bounded", (BoundsOnWaiting, base), bounds)
    server = uvicorn.Server(
        uvicorn.Config(application, http=protocol, lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.create_task(server._serve([listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await running


async def answer_to(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back until the server closes, for a client that sends parts and pauses after each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), patience(30.0))
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def ended(crowd: list[asyncio.Task[bytes]], count: int) -> list[bytes]:
    """The answers of the first `count` tasks that end; the others are cancelled."""
    answers = [await task for _, task in zip(range(count), asyncio.as_completed(crowd), strict=False)]
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    return answers


async def is_served(port: int) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=patience(30.0)) as client:
        return (await client.get(f"http://127.0.0.1:{port}/")).text == "ok"


@pytest.mark.parametrize("base", BASES)
def test_headers_that_do_not_arrive_in_time_are_408_however_they_dribble(base: type[asyncio.Protocol]) -> None:
    async def run() -> None:
        async with serving(base, header_timeout_s=0.2) as port:
            half, dribbled, after_another = await asyncio.gather(
                answer_to(port, HALF), answer_to(port, HALF, *[b"x"] * 40, pause_s=0.02), answer_to(port, WHOLE, HALF)
            )
        assert half.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.2 s" in half
        assert dribbled.startswith(b"HTTP/1.1 408 ") or dribbled == b""  # reset, as bytes came after the end
        assert after_another.startswith(b"HTTP/1.1 200 ")

    asyncio.run(run())


@pytest.mark.parametrize("base", BASES)
def test_a_second_request_of_a_connection_has_its_own_time(base: type[asyncio.Protocol]) -> None:
    async def run() -> None:
        async with serving(base, header_timeout_s=0.3) as port:
            answer = await answer_to(port, WHOLE, WHOLE, HALF, pause_s=0.4)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert answer.count(b"HTTP/1.1 408 ") == 1

    asyncio.run(run())


@pytest.mark.parametrize("base", BASES)
def test_a_connection_that_sends_nothing_is_closed_without_an_answer(base: type[asyncio.Protocol]) -> None:
    async def run() -> None:
        async with serving(base, header_timeout_s=0.1) as port:
            assert await answer_to(port) == b""

    asyncio.run(run())


def test_headers_without_an_end_are_431() -> None:
    async def run() -> None:
        async with serving(HttpToolsProtocol, max_header_bytes=1000) as port:
            assert (await answer_to(port, HALF + b"x" * 900, b"x" * 900, pause_s=0.1)).startswith(b"HTTP/1.1 431 ")
            assert await is_served(port)

    asyncio.run(run())


@pytest.mark.parametrize("base", BASES)
def test_a_slow_answer_is_not_cut_short(base: type[asyncio.Protocol]) -> None:
    async def run() -> None:
        async with serving(base, header_timeout_s=0.1) as port:
            answer = await answer_to(port, b"GET /0.5 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"ok")

    asyncio.run(run())


@pytest.mark.parametrize("base", BASES)
def test_half_sent_headers_hold_nobody_out(base: type[asyncio.Protocol]) -> None:
    async def run() -> None:
        async with serving(base, max_waiting=20, header_timeout_s=patience(60.0)) as port:
            crowd = [asyncio.create_task(answer_to(port, HALF)) for _ in range(600)]
            assert all([await is_served(port) for _ in range(20)])
            refused = await ended(crowd, 580)
            assert all(answer == b"" or b"waits longest" in answer for answer in refused)  # b"": had sent nothing yet

    asyncio.run(run())


def test_kept_connections_give_way_too() -> None:
    async def run() -> None:
        async with serving(HttpToolsProtocol, keep_alive_s=600, max_waiting=5) as port:
            readers = []
            for _ in range(12):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(WHOLE)
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
                readers.append((reader, writer))
            for reader, writer in readers[:7]:
                assert await asyncio.wait_for(reader.read(), patience(30.0)) == b""
                writer.close()
            for reader, writer in readers[7:]:
                writer.write(WHOLE)
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
                writer.close()

    asyncio.run(run())


def test_uvicorn_takes_the_bounded_protocol_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    bound_connections()
    config = uvicorn.Config(application, log_config=None)
    config.load()
    assert config.http_protocol_class is BoundedConnection
