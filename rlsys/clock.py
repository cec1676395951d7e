"""Wall time by phase, and turns at something shared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Clock:
    """Adds up the seconds spent in named phases: `with clock("update"): …`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A time for which one process held a GPU that it shares, in seconds of its machine's monotonic clock."""

    start_s: float
    end_s: float
    holder: str = ""
