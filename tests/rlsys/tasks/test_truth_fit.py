"""True answers whose times are outside the decoded clip."""

from __future__ import annotations

import pytest

from rlsys.tasks.truth_fit import fit_truth
from rlsys.types import Json


@pytest.mark.parametrize(
    ("truth", "fixed"),
    [
        ([2.0, 4.0], [2.0, 4.0]),
        ([2.0, 20.9], [2.0, 20.9]),  # published ends are rounded
        ([15.0, 30.0], [15.0, 20.0]),
        ([40.0, 50.0], None),
        ([20.0, 22.0], None),
    ],
)
def test_a_period_is_kept_cut_or_lost(truth: list[float], fixed: list[float] | None) -> None:
    fit = fit_truth("temporal_grounding", truth, 20.0)
    assert fit.truth == fixed and bool(fit.problem) == (fixed != truth)


def test_milliseconds_are_recognised() -> None:
    fit = fit_truth("temporal_grounding", [1000.0, 4000.0], 20.0)
    assert fit.truth is None and "milliseconds" in fit.problem
    assert "milliseconds" not in fit_truth("temporal_grounding", [40.0, 50.0], 20.0).problem


@pytest.mark.parametrize(
    ("task", "truth", "fixed"),
    [
        ("grounded_qa", {"answer": "(A)", "glue": [[1.0, 3.0], [15.0, 30.0]]}, [[1.0, 3.0], [15.0, 20.0]]),
        ("spatiotemporal_grounding", {"period": [15.0, 30.0], "box": [0.1, 0.1, 0.5, 0.5]}, [15.0, 20.0]),
    ],
)
def test_spans_of_other_tasks_are_cut_and_the_rest_of_the_truth_stays(task: str, truth: Json, fixed: Json) -> None:
    fit = fit_truth(task, truth, 20.0)
    key = "glue" if "glue" in truth else "period"
    assert fit.truth == {**truth, key: fixed}


def test_a_truth_without_times_fits_every_clip() -> None:
    assert fit_truth("multiple_choice", "(B)", 0.5).problem == ""
    assert fit_truth("tracking", [[0.1, 0.2, 0.5, 0.6]] * 8, 0.5).problem == ""
