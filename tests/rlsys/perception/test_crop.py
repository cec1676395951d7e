from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.perception.crop import SMALLEST, crop_around
from tests.support.rounding import FLOAT64


def test_a_box_gets_a_margin_of_its_own_sides() -> None:
    assert crop_around([(0.2, 0.4, 0.6, 0.6)], 0.1) == pytest.approx((0.16, 0.38, 0.64, 0.62))


def test_several_boxes_are_shown_together_and_the_picture_bounds_them() -> None:
    assert crop_around([(0.0, 0.1, 0.2, 0.3), (0.5, 0.5, 1.0, 0.9)], 0.5) == pytest.approx((0.0, 0.0, 1.0, 1.0))


def test_a_tiny_box_is_widened_around_its_middle() -> None:
    assert crop_around([(0.5, 0.98, 0.51, 0.99)], 0.0) == pytest.approx((0.455, 0.9, 0.555, 1.0))


@pytest.mark.parametrize("boxes", [[], [(0.5, 0.5, 0.4, 0.6)], [(1.2, 0.0, 1.5, 1.0)], [(0.0, 0.0, float("inf"), 1.0)]])
def test_boxes_without_area_in_the_picture_give_nothing(boxes: list[tuple[float, float, float, float]]) -> None:
    assert crop_around(boxes, 0.1) is None


side = st.floats(-0.5, 1.5)


@given(st.lists(st.tuples(side, side, side, side), max_size=4), st.floats(0.0, 2.0))
def test_a_part_is_inside_the_picture_and_not_too_small(boxes: list[tuple[float, ...]], margin: float) -> None:
    found = crop_around(boxes, margin)
    if found is not None:
        left, top, right, bottom = found
        assert 0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0
        assert min(right - left, bottom - top) >= SMALLEST - FLOAT64
