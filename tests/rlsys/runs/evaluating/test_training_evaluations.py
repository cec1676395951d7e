"""Which figure marks the best checkpoint of a run."""

from __future__ import annotations

import math

import pytest

from rlsys.runs.evaluating.training_evaluations import beats


@pytest.mark.parametrize(
    ("value", "best", "is_better"),
    [(0.5, None, True), (0.5, 0.4, True), (0.5, 0.5, False), (math.nan, None, False), (0.1, math.nan, True)],
)
def test_a_figure_of_no_scored_row_is_never_the_best(value: float, best: float | None, is_better: bool) -> None:
    assert beats(value, best) is is_better
