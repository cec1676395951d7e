"""Confidence intervals by resampling videos: rows of one video are not independent of each other.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, percentile intervals; the cluster bootstrap draws
whole videos with replacement (Davison and Hinkley, 1997, §3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.protocol import Protocol_
from rlsys.evaluation.protocols.weighted import ScoredRow, Weighted

Interval = tuple[float, float]
"""Lower and upper end; NaN where there is no value to resample."""
_VALUES_AT_ONCE = 4_000_000


def videos_of(rows: Sequence[Answered]) -> list[str]:
    """Return the cluster of each row: its label "video", else its own id."""
    return [str(row.labels.get("video") or row.row_id) for row in rows]


def _drawn(num_clusters: int, num: int, seed: int) -> np.ndarray:
    """Return i64 [num, num_clusters], the clusters that each of `num` resamples draws."""
    return np.random.default_rng(seed).integers(num_clusters, size=(num, num_clusters))


def draw_counts(num_clusters: int, num: int, seed: int) -> np.ndarray:
    """Return f64 [num, num_clusters], how often each cluster is drawn in each of `num` resamples."""
    places = _drawn(num_clusters, num, seed) + num_clusters * np.arange(num)[:, None]
    counts = np.bincount(places.ravel(), minlength=num * num_clusters)
    return counts.reshape(num, num_clusters).astype(np.float64)


def numbered(clusters: Sequence[Hashable]) -> np.ndarray:
    """Return i64 [N], a number for each row's cluster, from 0 in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def bootstrap(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    aggregate: Callable[[np.ndarray], float] | None = None,
    *,
    num: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the interval that holds `level` of the aggregates of `num` resamples of the clusters.

    values: f64 [N] or [N, K], one row of figures per row of the evaluation; a row with a NaN is left out.
    clusters: N names of videos.  aggregate: from the rows drawn, f64 [M, K] or [M] as `values`, to a number, for
    aggregates that are no mean; None is the mean, computed for all resamples at once.
    Raises ValueError if `values` and `clusters` differ in length, or for values of two dimensions and no aggregate.
    """
    rows = np.asarray(values, dtype=np.float64)
    if len(rows) != len(clusters):
        raise ValueError(f"{len(rows)} values for {len(clusters)} clusters: give one video name per row.")
    if rows.ndim == 2 and aggregate is None:
        raise ValueError("values of two dimensions have no mean of their own; give an aggregate.")
    if not len(rows):
        return float("nan"), float("nan")
    kept = np.flatnonzero(~np.isnan(rows.reshape(len(rows), -1)).any(axis=1))
    if not kept.size:
        return float("nan"), float("nan")
    rows, members = rows[kept], numbered([clusters[index] for index in kept])
    size = int(members.max()) + 1
    if aggregate is None:
        sums, sizes = np.bincount(members, weights=rows, minlength=size), np.bincount(members, minlength=size)
        counts = draw_counts(size, num, seed)
        return percentiles((counts @ sums) / (counts @ sizes), level)
    order = np.argsort(members, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(members, minlength=size))[:-1])
    draws = _drawn(size, num, seed)
    results = [aggregate(rows[np.concatenate([parts[index] for index in one])]) for one in draws]
    return percentiles(np.array(results), level)


def percentiles(results: np.ndarray, level: float = 0.95) -> Interval:
    """Return the central interval that holds `level` of `results` (f64 [D]); NaN results are left out."""
    found = results[~np.isnan(results)]
    if not found.size:
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(
    protocol: Protocol_, rows: Sequence[ScoredRow], *, num: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return f64 [num] for each metric of `protocol`: its values on `num` resamples of the videos of `rows`.

    Metrics that are no means of rows (F1 of averages, means over subtasks) are computed anew on each resample.
    Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("no rows to resample: an interval needs at least one scored row.")
    clusters = numbered(videos_of([row for row, _ in rows]))
    size = int(clusters.max()) + 1
    counts = draw_counts(size, num, seed)
    step = max(1, _VALUES_AT_ONCE // size)
    parts = [
        protocol.summarise(Weighted(rows, clusters, counts[start : start + step])) for start in range(0, num, step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def intervals(
    protocol: Protocol_, rows: Sequence[ScoredRow], *, num: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Return the confidence interval of every metric of `protocol` over `rows`, by metric; {} without rows."""
    if not rows:
        return {}
    found = resampled(protocol, rows, num=num, seed=seed)
    return {name: percentiles(results, level) for name, results in found.items()}
