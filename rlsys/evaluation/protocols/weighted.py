"""Weighted means over the rows of an evaluation, for one weighting or for many resampled ones at once.

Every metric of a protocol is computed from such means, so that its value and its bootstrap distribution come from
the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlsys.evaluation.answered import Answered

ScoredRow = tuple[Answered, Mapping[str, float]]
"""A row with its scores by name."""
Metrics = dict[str, np.ndarray]
"""Metric name -> f64 [D], one value per weighting."""


class Weighted:
    """The scores of N rows under D weightings, each of which gives every one of C clusters of rows a weight.

    rows: N rows.  clusters: i64 [N], the cluster of each row, 0 to C - 1.  counts: f64 [D, C], weights; None weighs
    all rows equally, D = 1.
    """

    def __init__(
        self, rows: Sequence[ScoredRow], clusters: np.ndarray | None = None, counts: np.ndarray | None = None
    ) -> None:
        self.rows = [row for row, _ in rows]
        self._scores = [scores for _, scores in rows]
        self._clusters = np.zeros(len(rows), dtype=np.int64) if clusters is None else clusters
        self._counts = np.ones((1, 1)) if counts is None else counts
        self._columns: dict[str, np.ndarray] = {}

    def names(self) -> list[str]:
        """Return the names of all scores, in the order of the first row that has each."""
        return list(dict.fromkeys(name for scores in self._scores for name in scores))

    def column(self, name: str) -> np.ndarray:
        """Return f64 [N], the score `name` of each row; NaN where a row has none."""
        if name not in self._columns:
            self._columns[name] = np.array([scores.get(name, np.nan) for scores in self._scores], dtype=np.float64)
        return self._columns[name]

    def mean(
        self, values: str | np.ndarray, *, where: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Return f64 [D], the weighted mean of `values` (a score or f64 [N]) over the rows `where` (bool [N]).

        Rows whose value is NaN are left out. weights: f64 [N], further weights of the rows.
        NaN for a weighting under which no row is left.
        """
        column = self.column(values) if isinstance(values, str) else np.asarray(values, dtype=np.float64)
        is_in = ~np.isnan(column) if where is None else where & ~np.isnan(column)
        own = np.ones(len(column)) if weights is None else weights
        size = self._counts.shape[1]
        clusters = self._clusters[is_in]
        sums = np.bincount(clusters, weights=(column * own)[is_in], minlength=size)
        totals = np.bincount(clusters, weights=own[is_in], minlength=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self._counts @ sums) / (self._counts @ totals)

    def share(self, values: str | np.ndarray, at_least: float) -> np.ndarray:
        """Return f64 [D], the weighted share of rows whose value is at least `at_least`; NaN values are left out."""
        column = self.column(values) if isinstance(values, str) else np.asarray(values, dtype=np.float64)
        return self.mean(np.where(np.isnan(column), np.nan, column >= at_least))

    def groups(self, name_of: Callable[[Answered], str | None]) -> dict[str, np.ndarray]:
        """Return bool [N] for each group of rows, by its name in alphabetical order; None is no group."""
        names = np.array([name_of(row) or "" for row in self.rows], dtype=object)
        return {name: names == name for name in sorted(set(names)) if name}


def mean_of(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over `parts`, each f64 [D], without those that are NaN; NaN where all are.

    A resampled evaluation may lack a subtask altogether.
    """
    stacked = np.stack(parts)
    is_there = ~np.isnan(stacked)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(is_there, stacked, 0.0).sum(axis=0) / is_there.sum(axis=0)


def harmonic(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Return F1 of each precision and recall; 0 where both are 0."""
    total = precision + recall
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total == 0, 0.0, 2 * precision * recall / total)
