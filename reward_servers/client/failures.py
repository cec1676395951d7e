"""Decide when so many scores are lost that training should wait."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from reward_servers.schema import ScoreReply, ScorerFault

FIRST_REQUESTS = 2
"""Requests after which a custom scorer that has failed for every row, each time in the same way, is held to be broken:
one group may be odd, and waiting longer would only pause the run."""


class ScorerTrial:
    """Tells a custom scorer that never worked, which ends a run, from one that fails for some rows."""

    def __init__(self) -> None:
        self._worked: set[str] = set()
        self._kinds: dict[str, set[str]] = defaultdict(set)
        self._num_requests: dict[str, int] = defaultdict(int)
        self._num_rows: dict[str, int] = defaultdict(int)

    def add(self, replies: Sequence[ScoreReply]) -> str | None:
        """Note the replies of one request. Return why the run must end, with the user's traceback, or None."""
        for reply in replies:
            self._worked.update(reply.scores)
        faults = {reply.fault.scorer: reply.fault for reply in replies if reply.fault is not None}
        for name, fault in faults.items():
            if name in self._worked:
                continue
            mine = [reply.fault for reply in replies if reply.fault is not None and reply.fault.scorer == name]
            self._kinds[name].update(fault.kind for fault in mine)
            if len(mine) < len(replies):  # rows that failed for another reason say nothing of this scorer
                continue
            self._num_requests[name] += 1
            self._num_rows[name] += len(mine)
            if self._num_requests[name] >= FIRST_REQUESTS and self._is_deterministic(name):
                return self._message(fault)
        return None

    def _is_deterministic(self, name: str) -> bool:
        return len(self._kinds[name]) == 1 and self._kinds[name] != {"late"}  # a late one may only warm up

    def _message(self, fault: ScorerFault) -> str:
        return (
            f"reward.scorers.{fault.scorer}: the scorer {fault.kind} for all {self._num_rows[fault.scorer]} responses "
            f"of the first {self._num_requests[fault.scorer]} requests and never returned a score; correct it and "
            f"start again.\n{fault.details}"
        )


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
