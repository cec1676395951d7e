"""Fifteen hundred clients that never finish what they send, each kind in its way, beside honest ones."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil
import pytest

from reward_servers.server.connections import MAX_HEADER_BYTES, MAX_WAITING
from reward_servers.server.intake import MAX_UNFINISHED
from tests.support.pace import patience
from tests.support.paths import REPO

pytestmark = pytest.mark.stack

NUM_CLIENTS = 1500
SENT = 1 << 10
"""Bytes that a client sends of its body."""
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
LONG = HEAD + b"Content-Length: 8000000\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
Sending = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Server:
    port: int
    process: psutil.Process

    def memory(self) -> int:
        return int(self.process.memory_info().rss)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 4 * NUM_CLIENTS:
        pytest.skip(f"a process may open {hard} files only")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        os.set_inheritable(listener.fileno(), True)
        command = [sys.executable, "-m", "tests.support.bounded_reward_server", str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=(listener.fileno(),), cwd=REPO)
        port = listener.getsockname()[1]
    try:
        yield Server(port, psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def sends(*parts: bytes, pause_s: float = 0.0, closes: bool = False) -> Sending:
    """A client that sends parts with pauses, and then waits; closes: after it has ended its own direction."""

    async def send(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if closes:
            writer.write_eof()

    return send


CROWDS: dict[str, Sending] = {
    "half a body": sends(LONG + b" " * SENT),
    "half a body, byte by byte": sends(LONG, *[b" "] * 40, pause_s=0.2),
    "half a chunk": sends(CHUNKED + b"400\r\n" + b" " * 100),
    "chunks, one after the other for ever": sends(CHUNKED, *[b"1\r\n \r\n"] * 40, pause_s=0.2),
    "a chunk of 10^15 bytes": sends(CHUNKED + b"38d7ea4c68000\r\n" + b" " * SENT),
    "chunks without numbers": sends(CHUNKED + b"xyz\r\n" + b" " * 100),
    "half of the headers": sends(HEAD + b"X-Half: "),
    "headers, byte by byte": sends(*[bytes([one]) for one in HEAD[:40]], pause_s=0.2),
    "headers for ever": sends(HEAD, *[b"X-More: " + b"x" * 500 + b"\r\n"] * 40, pause_s=0.2),
    "a body that is longer than it says": sends(HEAD + b"Content-Length: 2\r\n\r\n{}" + b" " * SENT),
    "a body that is shorter than it says": sends(LONG + b"{}", closes=True),
    "two lengths": sends(HEAD + b"Content-Length: 2\r\nContent-Length: 900\r\n\r\n{}"),
    "a length and chunks": sends(HEAD + b"Content-Length: 900\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}"),
    "a length below 0": sends(HEAD + b"Content-Length: -5\r\n\r\n{}"),
    "the beginning of TLS": sends(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))),
    "the beginning of HTTP/2": sends(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20)),
    "binary garbage": sends(bytes(range(256)) * 4),
    "garbage without a line end": sends(b"\xff" * 4096),
    "nothing": sends(),
}

OFTEN = {"half a body", "half a chunk", "headers for ever", "nothing"}
"""Crowds that every run of the suite sees; all of them are in the last test."""


async def client(port: int, send: Sending, is_over: asyncio.Event) -> None:
    """Send, and stay connected until the server closes or all is over."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with suppress(OSError):
                await send(writer)
            over = asyncio.create_task(is_over.wait())
            gone = asyncio.create_task(reader.read())
            await asyncio.wait((over, gone), return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            gone.cancel()
            with suppress(OSError, asyncio.CancelledError):
                await gone
        finally:
            writer.close()


async def answers(port: int, number: int) -> None:
    """Ask honestly, on a connection of its own each time, and require the right answer."""
    row = {"rollout_id": "a", "task": "temporal_grounding", "text": "<answer>1.0 to 3.0</answer>", "truth": [1.0, 2.0]}
    for _ in range(number):
        async with httpx.AsyncClient(trust_env=False, timeout=patience(30.0)) as honest:
            reply = await honest.post(f"http://127.0.0.1:{port}/v1/score", json={"rows": [row], "timeout_s": 10.0})
        assert reply.status_code == 200, reply.text
        assert json.loads(reply.text)[0]["scores"]["iou"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "kind", [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.long) for kind in CROWDS]
)
def test_honest_clients_are_answered_beside_a_crowd_and_its_memory_is_bounded(kind: str, server: Server) -> None:
    async def run() -> int:
        await answers(server.port, 3)
        before, is_over = server.memory(), asyncio.Event()
        crowd = [asyncio.create_task(client(server.port, CROWDS[kind], is_over)) for _ in range(NUM_CLIENTS)]
        await answers(server.port, 10)
        grown = server.memory() - before
        is_over.set()
        await asyncio.gather(*crowd)
        await answers(server.port, 3)
        return grown

    # so many connections are open at most, each with its protocol's objects, and so many bodies have begun to arrive, a
    # socket's buffer of each; of the headers that were refused the allocator keeps some
    most = MAX_WAITING * (16 << 10) + MAX_UNFINISHED * (64 << 10) + 64 * MAX_HEADER_BYTES
    assert asyncio.run(run()) < most


def test_memory_is_flat_over_crowd_after_crowd(server: Server) -> None:
    async def crowd() -> None:
        is_over = asyncio.Event()
        tasks = [
            asyncio.create_task(client(server.port, send, is_over))
            for send in list(CROWDS.values())
            for _ in range(NUM_CLIENTS // len(CROWDS))
        ]
        await answers(server.port, 5)
        is_over.set()
        await asyncio.gather(*tasks)

    asyncio.run(crowd())  # the allocator's pools are full
    before = server.memory()
    for _ in range(3):
        asyncio.run(crowd())
    # 4,500 connections more: a leak of one kilobyte for each would be seen
    assert server.memory() - before < 4_500 << 10
