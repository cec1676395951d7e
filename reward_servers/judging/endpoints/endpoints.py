"""The one owner of the limits of all judge endpoints: who may call which of them, and when.

A caller asks for a lease, makes one call, and reports how it went. `EndpointBoard` is plain asyncio and lives in one
event loop; what goes in and out can be pickled, so that one Ray actor can hold it for a whole cluster.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from reward_servers.judging.endpoints.addresses import Address
from reward_servers.judging.endpoints.endpoint_state import Endpoint, quantile
from reward_servers.judging.endpoints.leases import UNUSED, CallReport, Lease, NoEndpoint
from reward_servers.judging.endpoints.limits import Breaker, Window
from rlsys.config.run import ConfigError, JudgeConfig
from rlsys.urls import has_secret

WINDOW_S = 60.0
ARRIVAL_S = 5.0
"""A call reaches its endpoint at most this long after its lease; a connection must stand by then."""
LEASE_GRACE_S = 10.0
"""A lease ends by itself this long after its call must have ended: then its holder is gone."""
_MIN_SAMPLES = 20  # calls before there is a 95th percentile
_SHORTEST_TIMER_S = 0.001  # keeps rounding from turning a timer into a busy loop


@dataclass(eq=False)
class _Waiter:
    tokens: int
    avoid: frozenset[str]
    lease: asyncio.Future[Lease]


class EndpointBoard:
    """Leases for the endpoints of `config.urls`, in the order of asking.

    clock: seconds that never go backwards.  quiet_s: grant nothing for so long, because calls of an owner before this
    one may still run; with limits per minute at least a window.  window_s: length of the window of those limits.
    Raises ConfigError for URLs that cannot be called.
    """

    def __init__(
        self,
        config: JudgeConfig,
        clock: Callable[[], float] = time.monotonic,
        quiet_s: float = 0.0,
        window_s: float = WINDOW_S,
    ) -> None:
        self._clock = clock
        self._endpoints = {url: _endpoint(url, config, window_s) for url in checked_urls(config.urls)}
        self._waiters: dict[int, _Waiter] = {}
        self._num_asked = 0
        self._prefix = secrets.token_hex(4)  # a lease of an owner before a restart must not pass for one of this
        self._timer: asyncio.TimerHandle | None = None
        if quiet_s > 0:
            limited_s = window_s if config.requests_per_minute or config.tokens_per_minute else 0.0
            for endpoint in self._endpoints.values():
                endpoint.pause(clock() + max(quiet_s, limited_s), "the owner of the limits restarted")

    async def acquire(self, tokens: int, avoid: tuple[str, ...], wait_s: float) -> Lease:
        """Return a lease for a call of about `tokens`, as soon as it is this caller's turn.

        The least loaded endpoint that has room, outside `avoid` unless all others are paused, unavailable or
        out of quota.
        Raises NoEndpoint after `wait_s`; 0 takes what is free at once. Cancelling it gives the lease back.
        """
        loop = asyncio.get_running_loop()
        self._num_asked += 1
        key = self._num_asked
        waiter = _Waiter(tokens, frozenset(avoid), loop.create_future())
        self._waiters[key] = waiter
        self._dispatch()
        timer = loop.call_later(max(0.0, wait_s), self._give_up, waiter, wait_s) if not waiter.lease.done() else None
        try:
            if wait_s <= 0:
                self._give_up(waiter, wait_s)
            return await waiter.lease
        except asyncio.CancelledError:
            if waiter.lease.done() and not waiter.lease.cancelled() and waiter.lease.exception() is None:
                self._end(waiter.lease.result().lease_id, UNUSED)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if self._waiters.pop(key, None) is not None:
                self._dispatch()  # who stood behind may go

    async def release(self, lease_id: str, report: CallReport) -> None:
        """End a lease. One that has run out, or is of an owner before a restart, is ignored."""
        self._end(lease_id, report)
        self._dispatch()

    async def hedge_after_s(self) -> float | None:
        """Return the 95th percentile of the seconds that recent calls took; None before there are enough of them."""
        seconds = [value for endpoint in self._endpoints.values() for value in endpoint.seconds]
        return quantile(seconds, 0.95) if len(seconds) >= _MIN_SAMPLES else None

    async def snapshot(self) -> dict[str, Any]:
        """Return the number of `waiting` callers, and under `endpoints` what there is to know of each.

        By URL: state, load, outcomes, last error and percentiles.
        """
        self._dispatch()
        now = self._clock()
        return {
            "waiting": len(self._waiters),
            "endpoints": {url: endpoint.snapshot(now) for url, endpoint in self._endpoints.items()},
        }

    async def adopt(self, config: JudgeConfig) -> None:
        """Adopt new limits for the same endpoints after a redeployment; running calls continue."""
        for endpoint in self._endpoints.values():
            endpoint.max_concurrency = config.max_concurrency
            endpoint.lease_s = config.call_timeout_s + LEASE_GRACE_S
            endpoint.window.max_calls, endpoint.window.max_tokens = config.requests_per_minute, config.tokens_per_minute
            endpoint.breaker.max_failures, endpoint.breaker.open_s = config.breaker_failures, config.breaker_open_s
        self._dispatch()

    def _end(self, lease_id: str, report: CallReport) -> None:
        for endpoint in self._endpoints.values():
            if lease_id in endpoint.held:
                endpoint.end(lease_id, report, self._clock())
                return

    def _give_up(self, waiter: _Waiter, wait_s: float) -> None:
        if not waiter.lease.done():
            now = self._clock()
            states = "; ".join(endpoint.state(now) for endpoint in self._endpoints.values())
            waiter.lease.set_exception(NoEndpoint(f"no judge endpoint was available within {wait_s:.1f} s: {states}"))

    def _dispatch(self) -> None:
        """Grant what can be granted now, and set the timer for when time alone may change that."""
        now = self._clock()
        for endpoint in self._endpoints.values():
            endpoint.expire(now)
        here = [endpoint for endpoint in self._endpoints.values() if not endpoint.is_away(now)]
        reserved: set[str] = set()  # endpoints that a caller further ahead waits for
        granted: list[int] = []
        for key, waiter in self._waiters.items():
            if all(endpoint.url in reserved for endpoint in here):
                break
            if waiter.lease.done():
                continue
            wanted = _wanted(here, waiter, now)
            free = [e for e in wanted if e.url not in reserved and e.has_room(now, waiter.tokens)]
            if not free:
                reserved.update(endpoint.url for endpoint in wanted)
                continue
            least = min(free, key=lambda e: (e.in_flight, e.granted_at))
            waiter.lease.set_result(least.grant(f"{self._prefix}-{key}", waiter.tokens, now))
            granted.append(key)
            here = [endpoint for endpoint in here if not endpoint.is_away(now)]
        for key in granted:
            del self._waiters[key]
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = min((endpoint.next_change_s(now) for endpoint in self._endpoints.values()), default=math.inf)
        if self._waiters and when < math.inf:
            delay_s = max(when - now, _SHORTEST_TIMER_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._dispatch)


def checked_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """Return the base URLs without a slash at the end; a query such as `?api-version=` stays.

    Raises ConfigError when one cannot be called or may show a secret.
    """
    checked = [url.strip().rstrip("/") for url in urls]
    for url in checked:
        if any(mark in url for mark in "@#") or has_secret(url):
            place = url.rsplit("@", 1)[-1].partition("?")[0].partition("#")[0]
            raise ConfigError(
                f"reward.judge.urls: the one at {place!r} holds a user, a secret or a fragment; URLs show up in logs, "
                "so give the key in the environment variable that reward.judge.api_key_env names."
            )
        if not _is_base_url(url):
            raise ConfigError(f"reward.judge.urls: {url!r} is no base URL; write one such as http://host:8000/v1.")
    if not checked or len({Address.of(url) for url in checked}) < len(checked):
        raise ConfigError(
            f"reward.judge.urls={checked}: name at least one endpoint, and each once, or it would get twice its limits."
        )
    return tuple(checked)


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        return False


def _endpoint(url: str, config: JudgeConfig, window_s: float) -> Endpoint:
    return Endpoint(
        url=url,
        max_concurrency=config.max_concurrency,
        lease_s=config.call_timeout_s + LEASE_GRACE_S,
        window=Window(window_s, ARRIVAL_S, config.requests_per_minute, config.tokens_per_minute),
        breaker=Breaker(config.breaker_failures, config.breaker_open_s),
    )


def _wanted(here: list[Endpoint], waiter: _Waiter, now: float) -> list[Endpoint]:
    """Return what `waiter` takes: endpoints it does not avoid if one has calls and tokens left, else all."""
    liked = [endpoint for endpoint in here if endpoint.url not in waiter.avoid]
    return liked if any(not endpoint.is_spent(now, waiter.tokens) for endpoint in liked) else here
