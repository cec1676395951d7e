from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.config.perception import PerceptionConfig
from rlsys.perception.selection import Segment, Selection, select_segments
from tests.support.rounding import FLOAT64

FPS = 25.0


def table(selection: Selection) -> list[tuple[float, float, int, bool]]:
    return [(one.start_s, one.end_s, one.num_frames, one.is_key) for one in selection.segments]


@pytest.mark.parametrize(
    ("periods", "length_s", "num_frames", "settings", "expected"),
    [
        # half of 16 frames inside; outside 4 s against 12 s share 4 pairs as 1 to 3
        ([(4.0, 8.0)], 20.0, 16, {}, [(0.0, 4.0, 2, False), (4.0, 8.0, 8, True), (8.0, 20.0, 6, False)]),
        # 12 of 16 inside, in proportion 2 s to 4 s: 4 and 8; the two long gaps get the two pairs that are left
        (
            [(2.0, 4.0), (10.0, 14.0)],
            20.0,
            16,
            {"key_ratio": 0.75},
            [(2.0, 4.0, 4, True), (4.0, 10.0, 2, False), (10.0, 14.0, 8, True), (14.0, 20.0, 2, False)],
        ),
        # overlapping periods count once: one period of 6 s, and gaps of 2 s and 12 s with 1 and 5 of the 6 other pairs
        (
            [(4.0, 8.0), (2.0, 6.0)],
            20.0,
            24,
            {},
            [(0.0, 2.0, 2, False), (2.0, 8.0, 12, True), (8.0, 20.0, 10, False)],
        ),
        # 20 * 1.5 * 5 / (1.5 * 5 + 15) = 6.67 -> 7 frames -> 4 pairs; 5 s and 10 s outside share 6 pairs as 2 to 4
        (
            [(5.0, 10.0)],
            20.0,
            20,
            {"rule": "density"},
            [(0.0, 5.0, 4, False), (5.0, 10.0, 8, True), (10.0, 20.0, 8, False)],
        ),
        # the clue is the whole clip: everything inside, one segment
        ([(0.0, 30.0)], 20.0, 16, {}, [(0.0, 20.0, 16, True)]),
        # an odd budget loses a frame, and a budget of one pair goes to the clue
        ([(4.0, 8.0)], 20.0, 3, {}, [(4.0, 8.0, 2, True)]),
        # more periods than max_periods: the nearest two become one; 11 s and 4 s outside get the two other pairs
        (
            [(1.0, 2.0), (3.0, 4.0), (15.0, 16.0)],
            20.0,
            8,
            {"max_periods": 2},
            [(1.0, 4.0, 2, True), (4.0, 15.0, 2, False), (15.0, 16.0, 2, True), (16.0, 20.0, 2, False)],
        ),
        # a moment is widened to two frames of the file, 0.08 s, and gets no more than it has; 9.98 s get 2 pairs
        ([(10.0, 10.04)], 20.0, 8, {}, [(0.0, 9.98, 4, False), (9.98, 10.06, 2, True), (10.06, 20.0, 2, False)]),
    ],
)
def test_segments_equal_a_table_computed_by_hand(
    periods: list[tuple[float, float]],
    length_s: float,
    num_frames: int,
    settings: dict[str, object],
    expected: list[tuple[float, float, int, bool]],
) -> None:
    found = table(select_segments(periods, length_s, num_frames, FPS, PerceptionConfig(**settings)))
    assert [row[2:] for row in found] == [row[2:] for row in expected]
    assert [row[:2] for row in found] == [pytest.approx(row[:2]) for row in expected]


@pytest.mark.parametrize("periods", [[], [(8.0, 3.0)], [(5.0, 5.0)], [(30.0, 40.0)], [(float("nan"), 2.0)]])
def test_a_clue_outside_the_clip_gives_an_even_look_and_the_reason(periods: list[tuple[float, float]]) -> None:
    found = select_segments(periods, 20.0, 16, FPS, PerceptionConfig())
    assert not found.segments
    assert "no period inside the clip of 20 s" in found.reason


def test_a_clip_of_one_frame_gives_an_even_look_and_the_reason() -> None:
    assert "no part of two frames" in select_segments([(0.0, 0.03)], 0.04, 4, FPS, PerceptionConfig()).reason


def test_a_budget_without_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 1 frames"):
        select_segments([(0.0, 1.0)], 20.0, 1, FPS, PerceptionConfig())


times = st.floats(-5.0, 130.0)
clues = st.lists(st.tuples(times, times), min_size=1, max_size=6)
settings_of = st.builds(
    PerceptionConfig,
    rule=st.sampled_from(["share", "density"]),
    key_ratio=st.floats(0.05, 0.95),
    density_ratio=st.floats(0.2, 20.0),
    max_periods=st.integers(1, 5),
)


@given(clues, st.floats(0.5, 120.0), st.integers(2, 300), st.floats(0.5, 60.0), settings_of)
def test_segments_are_in_order_within_the_budget_and_have_frames_to_show(
    periods: list[tuple[float, float]],
    length_s: float,
    num_frames: int,
    source_fps: float,
    perception: PerceptionConfig,
) -> None:
    selection = select_segments(periods, length_s, num_frames, source_fps, perception)
    if not selection.segments:
        assert selection.reason
        return
    assert sum(one.num_frames for one in selection.segments) <= num_frames
    keys = [one for one in selection.segments if one.is_key]
    assert 1 <= len(keys) <= perception.max_periods
    assert len(selection.segments) <= 2 * len(keys) + 1
    end_s = 0.0
    for one in selection.segments:
        assert end_s - FLOAT64 <= one.start_s < one.end_s <= length_s + FLOAT64
        end_s = one.end_s
        assert one.num_frames % 2 == 0 and one.num_frames >= 2
        assert one.num_frames <= max(2, (one.end_s - one.start_s) * source_fps + 1e-3)
        assert (one.end_s - one.start_s) * source_fps >= 2 - 1e-6


@given(clues, st.floats(10.0, 120.0), st.integers(8, 300), settings_of)
def test_every_moment_of_the_clue_is_inside_a_key_segment(
    periods: list[tuple[float, float]], length_s: float, num_frames: int, perception: PerceptionConfig
) -> None:
    selection = select_segments(periods, length_s, num_frames, 1000.0, perception)
    keys = [one for one in selection.segments if one.is_key]
    for start, end in periods:
        start, end = max(start, 0.0), min(end, length_s)
        if start < end and selection.segments:
            assert any(one.start_s <= start + FLOAT64 and end <= one.end_s + FLOAT64 for one in keys)


@given(clues, st.floats(10.0, 120.0), st.integers(2, 300), settings_of)
def test_the_order_of_the_periods_does_not_matter(
    periods: list[tuple[float, float]], length_s: float, num_frames: int, perception: PerceptionConfig
) -> None:
    one = select_segments(periods, length_s, num_frames, FPS, perception)
    assert one.segments == select_segments(periods[::-1], length_s, num_frames, FPS, perception).segments


def test_frames_that_a_short_period_cannot_use_go_to_the_rest() -> None:
    (before, key, after) = select_segments([(10.0, 11.0)], 21.0, 24, 4.0, PerceptionConfig()).segments
    assert key == Segment(start_s=10.0, end_s=11.0, num_frames=4, is_key=True)
    assert before.num_frames + after.num_frames == 20
