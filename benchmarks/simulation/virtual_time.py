"""Virtual time, which passes only when a result is awaited: an event queue, and futures that advance it."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from rlsys.types import ScoredGroup


class Events:
    """A queue of future events. now: seconds since the start. Simultaneous events occur in the order of planning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Plan `action` for `seconds` from now."""
        heapq.heappush(self._planned, (self.now + seconds, next(self._serial), action))

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Let time pass until `is_done`. Raises RuntimeError if no event is left before that."""
        while not is_done():
            if not self._planned:
                raise RuntimeError(f"at {self.now:g} s a result is awaited that no event will produce.")
            self._next()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        stop = self.now + seconds
        while self._planned and self._planned[0][0] <= stop:
            self._next()
        self.now = stop

    def _next(self) -> None:
        self.now, _, action = heapq.heappop(self._planned)
        action()


class VirtualFuture(Future[ScoredGroup]):
    """The future of a group, whose `result` lets time pass until the group is there.

    arrive: called with the future when its result is requested; it is done when that returns.
    on_cancel: called when the group is no longer wanted.
    """

    def __init__(self, arrive: Callable[[VirtualFuture], None], on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._arrive, self._on_cancel = arrive, on_cancel

    def cancel(self) -> bool:
        """Cancel the group and return whether it was not done yet, see `Future.cancel`."""
        is_in_time = super().cancel()
        if is_in_time:
            self._on_cancel()
        return is_in_time

    def result(self, timeout: float | None = None) -> ScoredGroup:
        """Return the group, see `Future.result`. `timeout` is ignored, as virtual time has no deadlines."""
        if not self.done():
            self._arrive(self)
        return super().result(timeout)


class Meter:
    """A meter of busy time."""

    def __init__(self, events: Events) -> None:
        self._events, self._level, self._since, self._total = events, 0, 0.0, 0.0

    def change(self, by: int) -> None:
        """Change the number of busy workers by `by` from now on."""
        self._total, self._since = self.total_s, self._events.now
        self._level += by

    @property
    def total_s(self) -> float:
        """Return the busy seconds so far, summed over workers."""
        return self._total + self._level * (self._events.now - self._since)


@dataclass(frozen=True, eq=False)
class _Task:
    seconds: float
    on_done: Callable[[], None]


class Servers:
    """Equal servers with one queue, first come first served. count: number of servers; 0 serves all at once."""

    def __init__(self, events: Events, count: int) -> None:
        self._events, self._count, self._num_busy = events, count, 0
        self._waiting: deque[_Task] = deque()
        self.busy = Meter(events)

    def submit(self, seconds: float, on_done: Callable[[], None]) -> None:
        """Queue a task that takes `seconds`; `on_done` is called at its end."""
        self._waiting.append(_Task(seconds, on_done))
        self._advance()

    def _advance(self) -> None:
        while self._waiting and (self._count == 0 or self._num_busy < self._count):
            task = self._waiting.popleft()
            self._num_busy += 1
            self.busy.change(1)
            self._events.after(task.seconds, lambda task=task: self._end(task))  # type: ignore[misc]

    def _end(self, task: _Task) -> None:
        self._num_busy -= 1
        self.busy.change(-1)
        task.on_done()
        self._advance()
