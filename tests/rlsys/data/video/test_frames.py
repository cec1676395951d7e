from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.config.run import DataConfig
from rlsys.data.video.budgets import largest_clip_tokens, largest_grid, patch_bytes
from rlsys.data.video.errors import ClipError
from rlsys.data.video.frames import frame_size, select_frames, select_from_folder, video_frame_size
from rlsys.types import PatchShape
from tests.support.video_files import make_spec


def constant_rate(num_frames: int, fps: float) -> tuple[np.ndarray, float]:
    return np.arange(num_frames) / fps, num_frames / fps


def test_six_seconds_at_two_frames_a_second_show_every_half_second() -> None:
    times_s, end_s = constant_rate(48, 8.0)
    indices, spacing_s = select_frames(times_s, end_s, make_spec("x"))
    assert indices.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44]
    assert spacing_s == 0.5


def test_a_long_clip_is_sampled_more_sparsely_over_its_whole_length() -> None:
    times_s, end_s = constant_rate(600, 10.0)
    indices, spacing_s = select_frames(times_s, end_s, make_spec("x", max_frames=6))
    assert indices.tolist() == [0, 100, 200, 300, 400, 500]
    assert spacing_s == 10.0


def test_an_odd_count_loses_one_frame_and_spreads_the_others() -> None:
    times_s, end_s = constant_rate(55, 10.0)  # 5.5 s: 11 frames at 2 fps
    indices, spacing_s = select_frames(times_s, end_s, make_spec("x"))
    assert len(indices) == 10
    assert spacing_s == pytest.approx(0.55)


def test_a_short_clip_gets_min_frames_if_it_has_them() -> None:
    times_s, end_s = constant_rate(10, 10.0)  # 1 s: 2 frames at 2 fps
    assert select_frames(times_s, end_s, make_spec("x", min_frames=4))[0].tolist() == [0, 2, 5, 7]
    times_s, end_s = constant_rate(3, 10.0)
    assert select_frames(times_s, end_s, make_spec("x", min_frames=4))[0].tolist() == [0, 1]


def test_variable_frame_rate_shows_the_frame_that_was_on_screen() -> None:
    # frame 0 stays for 3 s, then 30 frames in one second
    times_s = np.concatenate([[0.0], 3.0 + np.arange(30) / 30])
    indices, spacing_s = select_frames(times_s, 4.0, make_spec("x"))
    assert indices.tolist() == [0, 0, 0, 0, 0, 0, 1, 16]
    assert spacing_s == 0.5


def test_time_stamps_rounded_to_milliseconds_do_not_cost_a_frame() -> None:
    times_s = np.floor(np.arange(144) / 24 * 1000) / 1000
    indices, spacing_s = select_frames(times_s, 5.999, make_spec("x"))
    assert indices.tolist() == list(range(0, 144, 12))
    assert spacing_s == 0.5


def test_a_window_is_read_alone_and_a_useless_one_is_an_error() -> None:
    times_s, end_s = constant_rate(100, 10.0)
    indices, spacing_s = select_frames(times_s, end_s, make_spec("x", window_s=(4.0, 6.0)))
    assert (indices.tolist(), spacing_s) == ([40, 45, 50, 55], 0.5)
    with pytest.raises(ClipError, match=r"x: window: nothing to read in 12\.\.14 s of a clip from 0 to 10 s"):
        select_frames(times_s, end_s, make_spec("x", window_s=(12.0, 14.0)))


def test_a_video_of_one_frame_is_not_a_video() -> None:
    with pytest.raises(ClipError, match="zero_length: 1 frame"):
        select_frames(np.zeros(1), 0.1, make_spec("x"))


@given(
    num_frames=st.integers(2, 400),
    source_fps=st.floats(0.5, 60.0),
    fps=st.floats(0.2, 8.0),
    bounds=st.tuples(st.integers(1, 8), st.integers(0, 20)),
)
def test_selected_frames_are_even_in_number_distinct_ascending_and_within_bounds(
    num_frames: int, source_fps: float, fps: float, bounds: tuple[int, int]
) -> None:
    spec = make_spec("x", fps=fps, min_frames=2 * bounds[0], max_frames=2 * (bounds[0] + bounds[1]))
    indices, spacing_s = select_frames(*constant_rate(num_frames, source_fps), spec)
    assert len(indices) % 2 == 0
    assert 2 <= len(indices) <= spec.max_frames
    assert len(indices) >= min(spec.min_frames, num_frames - num_frames % 2)
    assert (np.diff(indices) > 0).all()
    assert indices[-1] < num_frames
    assert spacing_s * len(indices) == pytest.approx(num_frames / source_fps, abs=0.51 / source_fps)


def test_a_frame_folder_is_shown_by_eight_evenly_spaced_images_with_both_ends() -> None:
    indices, spacing_s = select_from_folder(25, make_spec("x", fps=10.0, min_frames=8, max_frames=8))
    assert indices.tolist() == [0, 3, 7, 10, 14, 17, 21, 24]
    assert spacing_s == pytest.approx(2.4 / 7)
    with pytest.raises(ClipError, match="zero_length: 1 image"):
        select_from_folder(1, make_spec("x"))


def test_total_pixels_first_shrinks_frames_then_thins_them_out() -> None:
    spec = make_spec("x", min_pixels=28 * 28, max_pixels=112 * 112, total_pixels=12 * 56 * 56)
    assert video_frame_size(200, 200, 12, spec) == (56, 56)
    scarce = make_spec("x", min_pixels=56 * 56, total_pixels=6 * 56 * 56)
    assert len(select_frames(*constant_rate(60, 10.0), scarce)[0]) == 6


def test_frame_size_worked_out_by_hand() -> None:
    assert frame_size(56, 56, min_pixels=784, max_pixels=7056) == (56, 56)
    # 720 / 28 = 25.7 -> 26, 1280 / 28 = 45.7 -> 46, and 26 x 46 x 784 fits below
    assert frame_size(720, 1280, min_pixels=784, max_pixels=10**7) == (728, 1288)
    # shrink by sqrt(921600 / 50176) = 4.286: 168 / 28 = 6 rows, 298.7 / 28 = 10.7 -> 10 columns
    assert frame_size(720, 1280, min_pixels=784, max_pixels=64 * 784) == (168, 280)
    with pytest.raises(ValueError, match="more than 200 times"):
        frame_size(10, 2010, min_pixels=784, max_pixels=7056)


@settings(deadline=None)  # the first example imports transformers
@given(height=st.integers(2, 3000), width=st.integers(2, 3000), least=st.integers(1, 300), times=st.integers(4, 40))
def test_frame_size_is_what_qwens_own_processor_wants_and_leaves_it_nothing_to_do(
    height: int, width: int, least: int, times: int
) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    bounds = {"min_pixels": least * 784, "max_pixels": least * times * 784}
    if max(height, width) / min(height, width) > 200:
        return
    size = frame_size(height, width, **bounds)
    assert size == smart_resize(height, width, factor=28, **bounds)
    if size[0] * size[1] <= bounds["max_pixels"] and size[0] * size[1] >= bounds["min_pixels"]:
        assert frame_size(*size, **bounds) == size


def test_frames_for_patches_of_16_pixels_are_multiples_of_32() -> None:
    assert frame_size(720, 1280, min_pixels=1024, max_pixels=10**7, patch_px=16) == (704, 1280)  # 22.5 rounds to 22
    spec = make_spec("x", min_pixels=32 * 32, max_pixels=128 * 128, total_pixels=12 * 64 * 64, patch_px=16)
    assert video_frame_size(200, 200, 12, spec) == (64, 64)
    data = DataConfig(max_frames=12, min_pixels=1024, max_pixels=64 * 64, total_pixels=10**8)
    assert largest_grid(data, PatchShape(px=16)) == (6, 2, 8)
    assert largest_grid(data, PatchShape(px=14)) == (6, 2, 10)  # 4096 pixels are 5 tokens of 28 x 28


def test_frames_of_one_size_share_the_budget_by_their_number() -> None:
    spec = make_spec("x", max_frames=64, total_pixels=20 * 56 * 56, patch_frames=1, side_px=56)
    assert video_frame_size(200, 700, 12, spec) == (56, 56)
    times_s = np.arange(300) / 10.0
    assert select_frames(times_s, 30.0, spec)[0].size == 20
    data = DataConfig(max_frames=64, min_pixels=784, max_pixels=3136, total_pixels=20 * 56 * 56)
    shape = PatchShape(frames=1, side_px=56)
    assert math.prod(largest_grid(data, shape)) == 20 * 4 * 4
    assert largest_clip_tokens(data, shape) == 20 * 4
    # the least number is shown also where the budget has no room for it
    assert largest_grid(data.model_copy(update={"min_frames": 32}), shape)[0] == 32
    assert patch_bytes(shape) == 14 * 14 * 3
