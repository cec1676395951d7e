"""Bodies that are half sent, too large or too slow, in front of an application that counts what it gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from uvicorn.config import HTTP_PROTOCOLS

from reward_servers.server.intake import Intake, Message, Receive, Send, middlewares
from tests.support.pace import patience

ANSWERED = b"answered"


class Application:
    """Answers 200 to every request. bodies: what it was given."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": ANSWERED})


async def ask(
    intake: Intake, parts: AsyncIterator[bytes], length: int | None = None, method: str = "POST"
) -> tuple[int, bytes, dict[bytes, bytes]]:
    """Status, body and headers of the answer to a request whose body arrives in `parts`, and never ends by itself."""
    sent: list[Message] = []

    async def receive() -> Message:
        try:
            return {"type": "http.request", "body": await anext(parts), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    await intake({"type": "http", "method": method, "headers": headers}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent), dict(sent[0]["headers"])


async def whole(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def half(size: int = 10) -> AsyncIterator[bytes]:
    yield b"h" * size
    await asyncio.sleep(3600)


def test_a_body_is_given_whole_however_it_arrived() -> None:
    application = Application()
    status, body, _ = asyncio.run(ask(Intake(application), whole(b"a", b"", b"bc")))
    assert (status, body, application.bodies) == (200, ANSWERED, [b"abc"])


def test_a_body_that_does_not_arrive_in_time_is_408_and_never_reaches_the_application() -> None:
    application = Application()
    status, body, headers = asyncio.run(ask(Intake(application, timeout_s=0.05), half()))
    assert status == 408 and b"did not arrive within 0.05 s" in body and headers[b"connection"] == b"close"
    assert application.bodies == []


@pytest.mark.parametrize("length", [None, 11, 10**30])
def test_a_body_that_is_too_large_is_413_as_soon_as_that_is_known(length: int | None) -> None:
    parts = whole(*[b"12345"] * 3) if length is None else half()
    status, body, _ = asyncio.run(ask(Intake(Application(), max_body_bytes=10), parts, length))
    assert status == 413 and b"more than 10 bytes" in body


def test_half_sent_bodies_hold_nobody_out() -> None:
    async def crowd() -> None:
        application = Application()
        intake = Intake(application, max_unfinished=20, timeout_s=patience(30.0))
        crowd = [asyncio.create_task(ask(intake, half())) for _ in range(500)]
        for _ in range(20):
            status, *_ = await asyncio.wait_for(ask(intake, whole(b"good")), patience(10.0))
            assert status == 200
        refused = [task.result() for task in crowd if task.done()]
        assert len(refused) >= 480
        assert all(status == 408 and b"the oldest" in body for status, body, _ in refused)
        assert application.bodies == [b"good"] * 20
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)

    asyncio.run(crowd())


def test_the_bytes_of_unfinished_bodies_are_bounded_together() -> None:
    async def crowd() -> None:
        intake = Intake(Application(), max_bytes=1000, timeout_s=patience(30.0))
        crowd = [asyncio.create_task(ask(intake, half(300))) for _ in range(10)]
        status, *_ = await asyncio.wait_for(ask(intake, whole(b"good")), patience(10.0))
        assert status == 200
        await asyncio.sleep(0)
        assert sum(arrival.num_bytes for arrival in intake._arriving.values()) <= 1300
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)

    asyncio.run(crowd())


def test_a_caller_who_leaves_leaves_nothing_behind() -> None:
    async def leave() -> None:
        intake = Intake(Application())

        async def gone() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            raise AssertionError("nobody is there")

        await intake({"type": "http", "method": "POST", "headers": []}, gone, send)
        assert not intake._arriving

    asyncio.run(leave())


def test_requests_without_a_body_pass_through() -> None:
    status, *_ = asyncio.run(ask(Intake(Application(), max_body_bytes=0), whole(b""), method="GET"))
    assert status == 200


def test_ray_serve_is_given_the_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])  # which it bounds
    assert [middleware.cls for middleware in middlewares()] == [Intake]
