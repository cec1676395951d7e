"""Arithmetic of limits at one endpoint: calls and tokens per window, and a circuit breaker. Time is an argument."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(slots=True, eq=False)
class Charge:
    """What one call takes of a window. leaves_at: second from which it no longer counts."""

    leaves_at: float
    calls: int
    tokens: int
    is_counted: bool = True


class Window:
    """Calls and tokens that reached the endpoint during the last `seconds`, against the most of each; 0 is no limit.

    It slides: in no stretch of that length is there more than the limit, whereas a bucket that refills evenly
    lets through twice as much in the stretch after a rest. When a call reaches the endpoint is not known, only that
    it does between its start and its end, and not later than `arrival_s` after the start. So it counts for `seconds`
    after the earlier of those: then the endpoint, which counts arrivals, sees the limit kept too.
    """

    def __init__(self, seconds: float, arrival_s: float, max_calls: int, max_tokens: int) -> None:
        self.seconds, self.arrival_s = seconds, arrival_s
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.calls = self.tokens = 0
        self._charges: list[Charge] = []  # the first to leave is the first

    def add(self, now: float, tokens: int) -> Charge:
        """Count a call of `tokens` that starts; `now` never goes backwards."""
        self.drop_old(now)
        charge = Charge(now + self.arrival_s + self.seconds, 1, tokens)
        insort(self._charges, charge, key=_leaves_at)
        self.calls += 1
        self.tokens += tokens
        return charge

    def settle(self, charge: Charge, now: float, tokens: int, calls: int = 1) -> None:
        """Correct the `charge` of a call that is over and took `tokens`; calls 0: it was never made."""
        if not charge.is_counted:
            return
        self.tokens += tokens - charge.tokens
        self.calls += calls - charge.calls
        charge.tokens, charge.calls = tokens, calls
        at = bisect_left(self._charges, charge.leaves_at, key=_leaves_at)
        del self._charges[self._charges.index(charge, at)]
        charge.leaves_at = min(charge.leaves_at, now + self.seconds)
        insort(self._charges, charge, key=_leaves_at)

    def free_at(self, now: float, tokens: int) -> float:
        """Return the second at which one more call of `tokens` fits at the latest; `now` when it does.

        That is if none starts before. A call that is larger than the limit itself fits once the window is empty.
        """
        self.drop_old(now)
        when, calls, held = now, self.calls, self.tokens
        wanted = min(tokens, self.max_tokens)
        for charge in self._charges:
            if self._fits(calls, held, wanted):
                return when
            when, calls, held = charge.leaves_at, calls - charge.calls, held - charge.tokens
        return when

    def next_drop_s(self) -> float | None:
        """Return the second at which the next call leaves the window; None when it is empty or nothing is limited."""
        is_limited = self.max_calls or self.max_tokens
        return self._charges[0].leaves_at if self._charges and is_limited else None

    def drop_old(self, now: float) -> None:
        count = bisect_right(self._charges, now, key=_leaves_at)
        for charge in self._charges[:count]:
            charge.is_counted = False
            self.calls -= charge.calls
            self.tokens -= charge.tokens
        del self._charges[:count]

    def _fits(self, calls: int, held: int, wanted: int) -> bool:
        return (not self.max_calls or calls < self.max_calls) and (
            not self.max_tokens or held + wanted <= self.max_tokens
        )


def _leaves_at(charge: Charge) -> float:
    return charge.leaves_at


class Breaker:
    """A circuit breaker: no calls for `open_s` after `max_failures` in a row, and then one that tries the endpoint.

    closed: every call may go. open: none. half_open: one, the probe, and its end decides. Ends of calls that began
    before it opened carry no new information and are ignored.
    """

    def __init__(self, max_failures: int, open_s: float) -> None:
        self.max_failures, self.open_s = max_failures, open_s
        self._open_until: float | None = None  # None: closed
        self._probe: str | None = None
        self.failures_in_row = 0

    def state(self, now: float) -> BreakerState:
        if self._open_until is None:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def admits(self, now: float) -> bool:
        state = self.state(now)
        return state == "closed" or (state == "half_open" and self._probe is None)

    @property
    def opens_at(self) -> float | None:
        """Return the second at which a probe may go; None when it is closed."""
        return self._open_until

    def started(self, call: str, now: float) -> None:
        """Record that the call named `call` starts; `admits` must have allowed it."""
        if self.state(now) == "half_open":
            self._probe = call

    def succeeded(self, call: str) -> None:
        """Note that the endpoint answered."""
        if self._open_until is None or call == self._probe:
            self._open_until = self._probe = None
            self.failures_in_row = 0

    def failed(self, call: str, now: float, *, at_once: bool = False) -> None:
        """Note that the endpoint failed; at_once: in a way that will last, so that one time is enough."""
        is_probe = call == self._probe
        if self._open_until is not None and not is_probe:
            return
        self.failures_in_row += 1
        if is_probe or at_once or self.failures_in_row >= self.max_failures:
            self._open_until, self._probe = now + self.open_s, None

    def ended_unknown(self, call: str) -> None:
        """Note that the call ended without information about the endpoint; a probe may be tried again."""
        if call == self._probe:
            self._probe = None
