"""Connections that wait for a request are bounded: clients that send half of its headers hold nobody out.

Uvicorn 0.54, which serves HTTP in Ray Serve's proxy, waits for headers as long as the client likes, without a bound on
their bytes or on the connections, and Serve passes only the time of idle connections on to it. `BoundedConnection` is
uvicorn's protocol with these bounds, `bound_connections` lets uvicorn take it. `reward_servers.server.intake` bounds
bodies.
"""

from __future__ import annotations

import asyncio
import json
import resource
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.config import HTTP_PROTOCOLS, Config
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.server import ServerState

HEADER_TIMEOUT_S = 10.0
"""Longest time from a new connection, or from the first byte of a further request, to its last header, in seconds."""
MAX_HEADER_BYTES = 64 << 10
"""Most bytes of a request's unfinished headers."""
MAX_WAITING = 1024
"""Most connections without a request, new ones and kept ones; beyond it the one that waits longest is closed. Where a
process may open few files they take at most a quarter of them."""

_waiting: WeakKeyDictionary[ServerState, dict[BoundsOnWaiting, None]] = WeakKeyDictionary()


class BoundsOnWaiting(asyncio.Protocol):
    """Bounds for one of uvicorn's HTTP protocols, which stands behind this class in the order of inheritance.

    Answers 408 and 431 to headers that are too slow or too large, and closes their connections. A connection that sent
    nothing is closed without an answer, as HTTP asks.
    """

    header_timeout_s = HEADER_TIMEOUT_S
    max_header_bytes = MAX_HEADER_BYTES
    max_waiting = min(MAX_WAITING, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
    transport: asyncio.Transport
    cycle: Any  # uvicorn's latest request of this connection, with its answer; None before the first

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)  # type: ignore[call-arg]
        self._of_server = _waiting.setdefault(server_state, {})  # the one that waits longest first
        self._num_header_bytes = 0
        self._clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wait()
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering() or self._is_over():
            self._stop_waiting()
            return
        self._num_header_bytes += len(data)
        if self._num_header_bytes > self.max_header_bytes:
            self._refuse(431, f"the headers have more than {self.max_header_bytes} bytes.")
        elif self._clock is None:
            self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        if not (self._is_answering() or self._is_over()):
            self._wait()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_over(self) -> bool:
        """Return whether the connection closes, or has become a WebSocket."""
        return self.transport.is_closing() or self.transport.get_protocol() is not self

    def _wait(self) -> None:
        self._num_header_bytes = 0
        self._of_server[self] = None
        while len(self._of_server) > self.max_waiting:
            oldest = next(iter(self._of_server))
            oldest._refuse(408, "too many connections wait for a request, of which this one waits longest; try again.")

    def _start_clock(self) -> None:
        late = f"the headers did not arrive within {self.header_timeout_s:g} s."
        self._clock = asyncio.get_running_loop().call_later(self.header_timeout_s, self._refuse, 408, late)

    def _stop_waiting(self) -> None:
        self._of_server.pop(self, None)
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _refuse(self, status: int, detail: str) -> None:
        self._stop_waiting()
        if self._num_header_bytes and not self._is_over():
            body = json.dumps({"detail": detail}).encode()
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


class BoundedConnection(BoundsOnWaiting, AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Uvicorn's own HTTP protocol, within bounds."""


def bound_connections() -> None:
    """Let every uvicorn server that starts in this process from now on have bounded connections."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"
