"""What Prometheus sees of the reward servers: Ray exports these next to Serve's own metrics.

`cluster/grafana/reward_servers.json` shows them; a test holds the two together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.util.metrics import Counter, Histogram

EXPORTED = {
    "reward": ("requests", "refused", "rows", "rows_ok", "rows_abstain", "rows_infra", "rows_malformed"),
    "judge": (
        "tasks_ok",
        "tasks_abstain",
        "tasks_infra",
        "tasks_malformed",
        "calls",
        "shared_calls",
        "second_tries",
        "cache_hits",
        "cache_misses",
    ),
}
"""Part -> exported counters of `RewardService.counters` and `Judge.counters`, as rlsys_<part>_<counter>_total."""
SECONDS = "rlsys_judge_seconds"
_BOUNDARIES_S = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
_EVERY_S = 2.0


def flattened(counters: Mapping[str, Any]) -> dict[str, float]:
    """Return `{"cache": {"hits": 1}}` as `{"cache_hits": 1.0}`; values that are not numbers are skipped."""
    flat: dict[str, float] = {}
    for name, value in counters.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}_{key}": number for key, number in flattened(value).items()}
        elif isinstance(value, int | float):
            flat[name] = float(value)
    return flat


class Exported:
    """Copies a replica's counters to Ray's metrics every two seconds. counters: total so far, by name."""

    def __init__(self, part: str, counters: Callable[[], Mapping[str, Any]]) -> None:
        self._counters = counters
        self._exported = {
            name: Counter(f"rlsys_{part}_{name}_total", description=f"{name} of the {part} replicas")
            for name in EXPORTED[part]
        }
        self._exported_so_far = dict.fromkeys(EXPORTED[part], 0.0)
        self._seconds = Histogram(
            SECONDS, description="seconds of one request to the judge, cache hits included", boundaries=_BOUNDARIES_S
        )
        threading.Thread(target=self._copy_in_background, name="exported-metrics", daemon=True).start()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds of the block to the histogram."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds.observe(time.perf_counter() - started_s)

    def _copy_in_background(self) -> None:
        while True:
            counters = flattened(self._counters())
            for name, exported in self._exported.items():
                new = counters.get(name, 0.0) - self._exported_so_far[name]
                if new > 0:
                    exported.inc(new)
                    self._exported_so_far[name] += new
            time.sleep(_EVERY_S)
