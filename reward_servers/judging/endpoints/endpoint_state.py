"""What the owner of the limits knows of one judge endpoint. Time is an argument."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from reward_servers.judging.endpoints.leases import UNUSED, CallReport, Lease
from reward_servers.judging.endpoints.limits import Breaker, Charge, Window

DRAIN_S = 0.25
"""Seconds that the endpoint may keep working on a call after its caller hung up."""
MAX_PAUSE_S = 3600.0
"""The longest Retry-After that is honoured, in seconds."""


@dataclass
class _Held:
    """A lease that is out."""

    expires_at: float
    charge: Charge


@dataclass(eq=False)
class Endpoint:
    """State of one endpoint."""

    url: str
    max_concurrency: int
    lease_s: float
    window: Window
    breaker: Breaker
    paused_until: float = -math.inf
    pause_reason: str = ""
    held: dict[str, _Held] = field(default_factory=dict)
    draining: deque[float] = field(default_factory=deque)
    granted_at: float = -math.inf
    outcomes: Counter[str] = field(default_factory=Counter)
    last_error: str = ""
    last_error_at: float = -math.inf
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=512))

    @property
    def in_flight(self) -> int:
        return len(self.held) + len(self.draining)

    def is_away(self, now: float) -> bool:
        """Return whether no call may go to it, however few are in flight."""
        return now < self.paused_until or not self.breaker.admits(now)

    def is_spent(self, now: float, tokens: int) -> bool:
        return self.window.free_at(now, tokens) > now

    def has_room(self, now: float, tokens: int) -> bool:
        return self.in_flight < self.max_concurrency and not self.is_spent(now, tokens)

    def grant(self, lease_id: str, tokens: int, now: float) -> Lease:
        self.held[lease_id] = _Held(now + self.lease_s, self.window.add(now, tokens))
        self.breaker.started(lease_id, now)
        self.granted_at = now
        return Lease(lease_id=lease_id, url=self.url)

    def end(self, lease_id: str, report: CallReport, now: float) -> None:
        held = self.held.pop(lease_id)
        if report == UNUSED:
            self.window.settle(held.charge, now, tokens=0, calls=0)
            self.breaker.ended_unknown(lease_id)
            return
        over_at = now + DRAIN_S if report.hung_up else now
        if report.hung_up:
            self.draining.append(over_at)
        self.window.settle(held.charge, over_at, held.charge.tokens if report.tokens is None else report.tokens)
        self.outcomes[report.outcome] += 1
        if report.outcome in ("ok", "abstain", "malformed") or (report.outcome == "abandoned" and report.hung_up):
            # an abandoned call would have taken longer still; without it hedging would lower its own percentile
            self.seconds.append(report.seconds)
        if report.error:
            self.last_error, self.last_error_at = report.error, now
        self._judge(lease_id, report, now)

    def _judge(self, lease_id: str, report: CallReport, now: float) -> None:
        """Update the breaker and the pause from the outcome of a call."""
        if report.retry_after_s > 0:
            self.pause(now + min(report.retry_after_s, MAX_PAUSE_S), "it requested a pause")
        if report.outcome == "abandoned" or (report.outcome == "infra" and report.retry_after_s > 0):
            # one that names a time to come back is busy, not broken: the pause is enough
            self.breaker.ended_unknown(lease_id)
        elif report.outcome == "infra":
            self.breaker.failed(lease_id, now, at_once=report.is_lasting)
        else:
            self.breaker.succeeded(lease_id)

    def pause(self, until: float, reason: str) -> None:
        if until > self.paused_until:
            self.paused_until, self.pause_reason = until, reason

    def expire(self, now: float) -> None:
        """Take back leases whose holders are gone. They all last equally long, so the oldest end first."""
        while self.draining and self.draining[0] <= now:
            self.draining.popleft()
        while self.held:
            lease_id, held = next(iter(self.held.items()))
            if held.expires_at > now:
                break
            del self.held[lease_id]
            self.outcomes["lost"] += 1
            self.breaker.ended_unknown(lease_id)

    def next_change_s(self, now: float) -> float:
        """Return the second at which time alone may let another call in; inf when only the end of a call can."""
        oldest = next(iter(self.held.values()), None)
        times = [
            self.paused_until,
            self.breaker.opens_at,
            self.draining[0] if self.draining else None,
            oldest.expires_at if oldest else None,
            self.window.next_drop_s(),
        ]
        return min((when for when in times if when is not None and when > now), default=math.inf)

    def state(self, now: float) -> str:
        """Return why a call cannot go here now, for a person."""
        breaker = self.breaker.state(now)
        if now < self.paused_until:
            text = f"paused for {self.paused_until - now:.1f} s more ({self.pause_reason})"
        elif breaker == "open":
            text = f"paused for {(self.breaker.opens_at or now) - now:.1f} s more after failures in a row"
        elif breaker == "half_open":
            text = "being tried with one call after failures in a row"
        elif self.in_flight >= self.max_concurrency:
            text = f"busy with {self.in_flight} of {self.max_concurrency} calls (reward.judge.max_concurrency)"
        else:
            text = "at its limit of calls or tokens per minute"
        return f"{self.url} is {text}" + (f"; last error: {self.last_error}" if self.last_error else "")

    def snapshot(self, now: float) -> dict[str, Any]:
        self.window.drop_old(now)
        return {
            "state": "paused" if now < self.paused_until else self.breaker.state(now),
            "in_flight": self.in_flight,
            "calls": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
            "calls_in_window": self.window.calls,
            "tokens_in_window": self.window.tokens,
            "paused_s": max(0.0, self.paused_until - now),
            "open_s": max(0.0, (self.breaker.opens_at or now) - now),
            "last_error": self.last_error,
            "last_error_age_s": now - self.last_error_at if self.last_error else None,
            "p50_s": quantile(self.seconds, 0.5),
            "p95_s": quantile(self.seconds, 0.95),
        }


def quantile(values: Collection[float], share: float) -> float | None:
    """Return the nearest-rank quantile; None of nothing."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
