"""Virtual time, which passes only when a result is awaited: events in order, and futures that run them."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from rlsys.types import ScoredGroup


class Events:
    """What will happen when. now: seconds since the start. Events of one instant happen in the order of planning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Plan `action`."""
        heapq.heappush(self._planned, (self.now + seconds, next(self._serial), action))

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Let time pass until `is_done`. Raises RuntimeError when nothing is planned that could bring it about."""
        while not is_done():
            if not self._planned:
                raise RuntimeError(f"at {self.now:g} s a result is awaited that no event will produce.")
            self._next()

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        stop = self.now + seconds
        while self._planned and self._planned[0][0] <= stop:
            self._next()
        self.now = stop

    def _next(self) -> None:
        self.now, _, action = heapq.heappop(self._planned)
        action()


class VirtualFuture(Future[ScoredGroup]):
    """A group that is on its way. Asking for the result lets time pass until it is there.

    arrive: called with the future when its result is requested; it is done when that returns.
    on_cancel: called when the group is no longer wanted.
    """

    def __init__(self, arrive: Callable[[VirtualFuture], None], on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._arrive, self._on_cancel = arrive, on_cancel

    def cancel(self) -> bool:
        """See `Future.cancel`: whether it was in time."""
        is_in_time = super().cancel()
        if is_in_time:
            self._on_cancel()
        return is_in_time

    def result(self, timeout: float | None = None) -> ScoredGroup:
        """See `Future.result`. Virtual time has no deadlines: `timeout` is for the real clock."""
        if not self.done():
            self._arrive(self)
        return super().result(timeout)


class Meter:
    """How much was busy for how long."""

    def __init__(self, events: Events) -> None:
        self._events, self._level, self._since, self._total = events, 0, 0.0, 0.0

    def change(self, by: int) -> None:
        """So many more are busy from now on."""
        self._total, self._since = self.total_s, self._events.now
        self._level += by

    @property
    def total_s(self) -> float:
        """Busy seconds so far, summed over everything that was."""
        return self._total + self._level * (self._events.now - self._since)


@dataclass(frozen=True, eq=False)
class _Task:
    seconds: float
    on_done: Callable[[], None]


class Servers:
    """Equal servers with one queue, first come first served. count: 0 serves all at once."""

    def __init__(self, events: Events, count: int) -> None:
        self._events, self._count, self._num_busy = events, count, 0
        self._waiting: deque[_Task] = deque()
        self.busy = Meter(events)

    def submit(self, seconds: float, on_done: Callable[[], None]) -> None:
        """Serve something that takes so long, then call `on_done`."""
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
