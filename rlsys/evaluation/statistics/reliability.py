"""Reliability of answers: whether a model that is sure of its answers is right more often."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlsys.types import Json

NUM_BINS = 10


def reliability(pairs: Sequence[tuple[float, float]]) -> dict[str, Json]:
    """Return how sure a model is of its answers and how good they are, in bins of equal width.

    pairs: (confidence, score) of each answer, both in 0..1; those without a number are left out.
    "bins" has those with rows: {"low", "high", "num_rows", "confidence", "score"}, the latter two means.
    "calibration_error" is the mean over answers of |confidence - score| of their bins.  {} if the confidence of no
    answer is known, which is then 1. Source: expected calibration error, Guo et al., arXiv:1706.04599, eq. 5.
    """
    known = np.array([pair for pair in pairs if not any(map(math.isnan, pair))], dtype=np.float64).reshape(-1, 2)
    if not len(known) or (known[:, 0] == 1).all():
        return {}
    places = np.minimum((known[:, 0] * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for place in np.unique(places).tolist():
        confidence, score = known[places == place].mean(axis=0).tolist()
        count = int((places == place).sum())
        low, high = place / NUM_BINS, (place + 1) / NUM_BINS
        bins.append({"low": low, "high": high, "num_rows": count, "confidence": confidence, "score": score})
    error = sum(one["num_rows"] * abs(one["confidence"] - one["score"]) for one in bins) / len(known)
    confidence, score = known.mean(axis=0).tolist()
    return {"bins": bins, "confidence": confidence, "score": score, "calibration_error": error}
