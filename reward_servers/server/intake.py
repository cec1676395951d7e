"""Requests are read whole before they take a place in the service: clients that send half of one hold nobody out.

Ray Serve gives a request its place among those that are served before its body has arrived. `Intake` stands in front of
that, in Serve's proxy, where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `middlewares` (see `rlsys.env`), and in
the application itself, for a Serve that was started elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from reward_servers.server.connections import bound_connections

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

BODY_TIMEOUT_S = 10.0
"""Longest time that a body may take to arrive, in seconds: eight MiB at one MiB a second."""
MAX_UNFINISHED = 256
"""Most bodies that may be arriving at once; beyond it the oldest one is refused, which an honest client never is."""
MAX_PROXY_BODY_BYTES = 64 << 20
"""Most bytes of a body to any application behind the proxy; the reward servers' own limit is `MAX_BODY_BYTES`."""
MAX_PROXY_BYTES = 512 << 20
"""Most bytes of all bodies that are arriving at once."""


class BodyRefused(Exception):
    """A body is too large or too slow; it is answered with `status` and a sentence for the caller."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


class Intake:
    """ASGI middleware that reads each body, within bounds, before it calls `app` with it.

    max_body_bytes, max_bytes: of one body, and of all that are arriving.  max_unfinished: bodies that are arriving.
    Answers 413 to a body that is too large and 408 to one that is too slow, and closes their connections.
    """

    def __init__(
        self,
        app: App,
        *,
        max_body_bytes: int = MAX_PROXY_BODY_BYTES,
        max_bytes: int = MAX_PROXY_BYTES,
        max_unfinished: int = MAX_UNFINISHED,
        timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._app = app
        self._max_body_bytes, self._max_bytes = max_body_bytes, max_bytes
        self._max_unfinished, self._timeout_s = max_unfinished, timeout_s
        self._arriving: dict[int, _Arrival] = {}  # the oldest first
        self._num_arrivals = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except BodyRefused as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        if body is None:
            return  # the caller has gone
        await self._app(scope, _replayed(body, receive), send)

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes | None:
        """Return the body, None when the caller leaves first. Raises BodyRefused."""
        self._refuse_announced(scope)
        self._num_arrivals += 1
        number = self._num_arrivals
        arrival = self._arriving[number] = _Arrival()
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                arrival.limit = limit
                while True:
                    self._make_room()
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    arrival.parts.append(message.get("body", b""))
                    arrival.num_bytes += len(arrival.parts[-1])
                    if arrival.num_bytes > self._max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(arrival.parts)
        except TimeoutError:
            raise BodyRefused(408, arrival.reason or f"the body did not arrive within {self._timeout_s:g} s.") from None
        finally:
            self._arriving.pop(number, None)

    def _refuse_announced(self, scope: MutableMapping[str, Any]) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> BodyRefused:
        return BodyRefused(413, f"the body has more than {self._max_body_bytes} bytes; send fewer rows per request.")

    def _make_room(self) -> None:
        """Refuse the oldest bodies while too many, or too many bytes, are arriving."""
        while len(self._arriving) > self._max_unfinished or (
            len(self._arriving) > 1 and sum(arrival.num_bytes for arrival in self._arriving.values()) > self._max_bytes
        ):
            oldest = self._arriving.pop(next(iter(self._arriving)))
            oldest.reason = "too many unfinished requests are open, of which this is the oldest; send it again at once."
            oldest.refuse()


class _Arrival:
    """A body that is arriving."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.num_bytes = 0
        self.reason = ""
        self.limit: asyncio.Timeout | None = None

    def refuse(self) -> None:
        """End the wait for the rest of it."""
        self.parts.clear()
        if self.limit is not None:
            self.limit.reschedule(asyncio.get_running_loop().time())


def middlewares() -> list[Middleware]:
    """Return what Ray Serve puts in front of its proxy, in whose process it calls this before it listens."""
    bound_connections()
    return [Middleware(Intake)]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the whole body first, and then what the connection gives."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
