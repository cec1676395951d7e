from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.tasks.geometry import box_iou, mean_box_iou, merge_spans, spans_iou, temporal_iou

CELLS = 64  # ends of spans and corners of boxes lie on cell borders, so rasterising is exact
RANDOM_CASES = 10_000
any_float = st.floats(allow_nan=True, allow_infinity=True)


def raster_spans(spans: list[tuple[float, float]]) -> np.ndarray:
    """Return the quarter seconds that some span covers, bool [CELLS]."""
    covered = np.zeros(CELLS, bool)
    for start, end in spans:
        covered[int(start * 4) : max(int(start * 4), int(end * 4))] = True
    return covered


def raster_box(box: tuple[float, ...]) -> np.ndarray:
    """Return the cells inside the box, bool [CELLS, CELLS]."""
    covered = np.zeros((CELLS, CELLS), bool)
    x0, y0, x1, y1 = (int(value * CELLS) for value in box)
    covered[y0 : max(y0, y1), x0 : max(x0, x1)] = True
    return covered


def raster_iou(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours & theirs).sum() / (ours | theirs).sum())


def test_half_covered_span_has_the_iou_worked_out_by_hand() -> None:
    assert temporal_iou((2.0, 6.0), (4.0, 8.0)) == pytest.approx(2 / 6)


def test_equal_spans_have_iou_exactly_one_and_touching_ones_zero() -> None:
    assert temporal_iou((0.1, 0.3), (0.1, 0.3)) == 1.0
    assert temporal_iou((0.0, 1.0), (1.0, 2.0)) == 0.0


@pytest.mark.parametrize("predicted", [(5.0, 2.0), (2.0, 2.0), (math.nan, 3.0), (0.0, math.inf), (-math.inf, 9.0)])
def test_predicted_span_that_covers_no_time_scores_zero(predicted: tuple[float, float]) -> None:
    assert temporal_iou(predicted, (1.0, 3.0)) == 0.0


@pytest.mark.parametrize("truth", [(3.0, 3.0), (3.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_empty_true_span_is_a_broken_annotation(truth: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="true time span"):
        temporal_iou((1.0, 2.0), truth)


def test_no_true_span_or_box_at_all_is_a_broken_annotation() -> None:
    with pytest.raises(ValueError, match="no time span"):
        spans_iou([(1.0, 2.0)], [])
    with pytest.raises(ValueError, match="no box"):
        mean_box_iou([], [])


def test_overlapping_spans_count_once() -> None:
    assert merge_spans([(3.0, 5.0), (0.0, 1.0), (4.0, 6.0), (9.0, 8.0)]) == [(0.0, 1.0), (3.0, 6.0)]
    assert spans_iou([(0.0, 4.0), (2.0, 6.0), (1.0, 3.0)], [(0.0, 3.0), (3.0, 6.0)]) == 1.0


def test_random_sets_of_spans_have_the_iou_of_their_rasters() -> None:
    generator = np.random.default_rng(0)
    for _ in range(RANDOM_CASES):
        predicted = [tuple(span) for span in generator.integers(0, CELLS + 1, (generator.integers(0, 5), 2)) / 4]
        truth = [
            tuple(sorted(generator.choice(CELLS + 1, 2, replace=False) / 4)) for _ in range(generator.integers(1, 4))
        ]
        assert spans_iou(predicted, truth) == pytest.approx(raster_iou(raster_spans(predicted), raster_spans(truth)))


def test_random_boxes_have_the_iou_of_their_rasters() -> None:
    generator = np.random.default_rng(1)
    for _ in range(RANDOM_CASES):
        predicted = tuple(generator.integers(0, CELLS + 1, 4) / CELLS)
        (x0, x1), (y0, y1) = (np.sort(generator.choice(CELLS + 1, 2, replace=False)) / CELLS for _ in range(2))
        expected = raster_iou(raster_box(predicted), raster_box((x0, y0, x1, y1)))
        assert box_iou(predicted, (x0, y0, x1, y1)) == pytest.approx(expected)


def test_mean_box_iou_averages_frames_and_refuses_to_guess_a_missing_one() -> None:
    whole, half = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0)
    assert mean_box_iou([whole, half], [whole, whole]) == pytest.approx(0.75)
    assert mean_box_iou([whole], [whole, whole]) == 0.0
    assert mean_box_iou([whole] * 3, [whole, whole]) == 0.0


@given(st.tuples(any_float, any_float), st.tuples(any_float, any_float, any_float, any_float))
def test_any_prediction_scores_between_zero_and_one(
    span: tuple[float, float], box: tuple[float, float, float, float]
) -> None:
    assert 0.0 <= temporal_iou(span, (1.0, 3.0)) <= 1.0
    assert 0.0 <= box_iou(box, (0.1, 0.1, 0.6, 0.7)) <= 1.0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)).filter(lambda span: span[0] < span[1]), min_size=1))
def test_iou_does_not_depend_on_order_or_repetition_and_is_one_with_itself(spans: list[tuple[float, float]]) -> None:
    truth = [(10.0, 20.0), (30.0, 50.0)]
    assert spans_iou(spans, spans) == 1.0
    assert spans_iou(spans[::-1] + spans, truth) == spans_iou(spans, truth)
    assert spans_iou(spans, truth) == pytest.approx(spans_iou(truth, spans))
