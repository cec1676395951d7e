"""Decide when so many scores are lost that training should wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class FailureWindow:
    """Share of lost scores among the last `size` rollouts; over when it is above `max_frac` of a full window."""

    def __init__(self, size: int, max_frac: float) -> None:
        self._max_frac = max_frac
        self._lost: deque[bool] = deque(maxlen=size)

    def add(self, is_lost: Iterable[bool]) -> None:
        self._lost.extend(is_lost)

    def clear(self) -> None:
        """Start over, once the servers have recovered."""
        self._lost.clear()

    @property
    def is_over(self) -> bool:
        is_full = len(self._lost) == self._lost.maxlen
        return is_full and sum(self._lost) > self._max_frac * len(self._lost)

    def message(self, task: str, url: str, last: str) -> str:
        """Return the warning for the run's log; `last` names the endpoint that failed and its error."""
        return (
            f"paused: {sum(self._lost)} of the last {len(self._lost)} rollouts of {task} could not be scored by {url} "
            f"(reward.max_failure_frac={self._max_frac:g}); last error: {last}. Retrying until it works."
        )
