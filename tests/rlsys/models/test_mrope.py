from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.models.mrope import Grid, VisionTokens, engine_seconds_per_grid, mrope_positions

TEXT, IMAGE, VIDEO = 7, 98, 99
VISION = VisionTokens(image_pad_id=IMAGE, video_pad_id=VIDEO, merge_size=2, temporal_patch_size=2, tokens_per_second=2)


def prompt_of(*parts: int | tuple[int, Grid]) -> np.ndarray:
    """Return the ids of a prompt; a number stands for that many text tokens, (pad, grid) for a medium."""
    runs = [np.full(part, TEXT) if isinstance(part, int) else np.full(np.prod(part[1]) // 4, part[0]) for part in parts]
    return np.concatenate(runs).astype(np.int32)


def test_a_video_between_text_has_the_positions_worked_out_by_hand() -> None:
    # two grids of 1 x 2 tokens, 1.5 s apart: 3 positions; the text after them goes on at max(2+3, 2, 2+1) + 1
    ids = prompt_of(2, (VIDEO, (2, 2, 4)), 2)
    positions, following = mrope_positions(ids, [(2, 2, 4)], [1.5], VISION)
    assert positions.tolist() == [
        [0, 1, 2, 2, 5, 5, 6, 7],
        [0, 1, 2, 2, 2, 2, 6, 7],
        [0, 1, 2, 3, 2, 3, 6, 7],
    ]
    assert following == 8
    assert positions.dtype == np.int32


def test_text_alone_counts_up_on_every_axis() -> None:
    positions, following = mrope_positions(prompt_of(5), [], [], VISION)
    assert positions.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert following == 5


def test_an_image_takes_one_position_in_time_and_text_continues_after_its_longer_side() -> None:
    positions, following = mrope_positions(prompt_of(1, (IMAGE, (1, 4, 6)), 1), [(1, 4, 6)], [0.0], VISION)
    assert positions[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 4]
    assert positions[1].tolist() == [0, 1, 1, 1, 2, 2, 2, 4]
    assert positions[2].tolist() == [0, 1, 2, 3, 1, 2, 3, 4]
    assert following == 5


def test_adjacent_media_are_distinguished_by_their_grids() -> None:
    grids = [(1, 2, 2), (1, 2, 4)]
    positions, following = mrope_positions(prompt_of((IMAGE, grids[0]), (IMAGE, grids[1])), grids, [0.0, 0.0], VISION)
    assert positions.tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 2]]
    assert following == 3


def test_a_family_without_seconds_counts_temporal_patches_whatever_their_spacing() -> None:
    vision = VisionTokens(
        image_pad_id=IMAGE, video_pad_id=VIDEO, merge_size=2, temporal_patch_size=2, tokens_per_second=None
    )
    ids = prompt_of(2, (VIDEO, (3, 2, 4)), 2)
    for seconds in (0.25, 1.0, 4.0):
        positions, following = mrope_positions(ids, [(3, 2, 4)], [seconds], vision)
        assert positions[0].tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5, 6]
        assert following == 7


def test_time_steps_between_integers_are_truncated_not_rounded() -> None:
    # 0.5 s a grid at 1.5 positions a second: 0, 0.75, 1.5, 2.25
    vision = VisionTokens(
        image_pad_id=IMAGE, video_pad_id=VIDEO, merge_size=2, temporal_patch_size=2, tokens_per_second=1.5
    )
    positions, _ = mrope_positions(prompt_of((VIDEO, (4, 2, 2))), [(4, 2, 2)], [0.5], vision)
    assert positions[0].tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("shown", [prompt_of(2, (VIDEO, (1, 2, 2))), prompt_of(2), prompt_of((VIDEO, (3, 2, 4)))])
def test_placeholders_that_do_not_match_the_grids_are_an_error(shown: np.ndarray) -> None:
    with pytest.raises(ValueError, match="placeholders"):
        mrope_positions(shown, [(2, 2, 4)], [1.0], VISION)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([IMAGE, VIDEO]),
            st.integers(1, 8),
            st.integers(1, 4),
            st.integers(1, 4),
            st.floats(0.01, 9.0),
            st.integers(0, 5),
        ),
        max_size=4,
    )
)
def test_positions_never_run_backwards_over_a_prompt(media: list[tuple[int, int, int, int, float, int]]) -> None:
    grids = [(1 if pad == IMAGE else time, 2 * height, 2 * width) for pad, time, height, width, _, _ in media]
    parts: list[int | tuple[int, Grid]] = [3]
    for (pad, *_, text), grid in zip(media, grids, strict=True):
        parts += [(pad, grid), text]
    ids = prompt_of(*parts)
    positions, following = mrope_positions(ids, grids, [seconds for *_, seconds, _ in media], VISION)
    assert positions.shape == (3, ids.size)
    assert following == positions.max() + 1
    is_text = ids == TEXT
    assert np.all(positions[:, is_text] == positions[0, is_text])
    assert np.all(np.diff(positions[0]) >= 0)


def test_seconds_are_rounded_as_the_engine_rounds_them() -> None:
    assert engine_seconds_per_grid(1.0, "bfloat16") == 1.0
    assert engine_seconds_per_grid(0.0, "bfloat16") == 0.0
    # 5/6 lies between the bfloat16 numbers 213/256 and 214/256, nearer to the first
    assert engine_seconds_per_grid(5 / 6, "bfloat16") == 213 / 256
    assert engine_seconds_per_grid(5 / 6, "float32") == float(np.float32(5 / 6))
    # 1 + 1/256 is half way between 1 and 1 + 1/128: ties go to the even one
    assert engine_seconds_per_grid(1 + 1 / 256, "bfloat16") == 1.0
    assert engine_seconds_per_grid(1 + 3 / 256, "bfloat16") == 1 + 4 / 256


@settings(deadline=None)  # the first call imports torch
@given(st.floats(2**-10, 2**10))
def test_bfloat16_rounding_is_torchs(seconds: float) -> None:
    import torch

    told = np.float32(2 / (2 / seconds))
    assert engine_seconds_per_grid(seconds, "bfloat16") == torch.tensor(told).to(torch.bfloat16).item()


# transformers leaves the time axis out when it goes on after a video, so the two agree on all that comes
# before, and everywhere when a video is no longer in time than it is high or wide
@pytest.mark.parametrize(
    ("parts", "grids", "seconds"),
    [
        ((6,), [], []),
        ((3, (IMAGE, (1, 4, 6)), 4), [(1, 4, 6)], [0.0]),
        (
            (3, (IMAGE, (1, 4, 6)), 2, (IMAGE, (1, 8, 2)), 2, (IMAGE, (1, 2, 2)), 5),
            [(1, 4, 6), (1, 8, 2), (1, 2, 2)],
            [0.0] * 3,
        ),
        ((2, (VIDEO, (4, 8, 8)), 3), [(4, 8, 8)], [0.5]),
        ((2, (IMAGE, (1, 4, 4)), 2, (VIDEO, (3, 8, 4)), 3), [(1, 4, 4), (3, 8, 4)], [0.0, 0.75]),
        ((2, (VIDEO, (12, 4, 4))), [(12, 4, 4)], [2 / 4.28]),
        ((2, (VIDEO, (12, 4, 4))), [(12, 4, 4)], [2 / 3.3]),
        ((2, (VIDEO, (12, 4, 4))), [(12, 4, 4)], [4.0]),
    ],
)
def test_positions_equal_those_of_transformers_where_its_rule_is_the_same(
    tiny_model_dir: Path, parts: tuple[int | tuple[int, Grid], ...], grids: list[Grid], seconds: list[float]
) -> None:
    import torch
    from transformers import Qwen2_5_VLModel

    model = Qwen2_5_VLModel.from_pretrained(tiny_model_dir)
    ids = prompt_of(*parts)
    kinds = np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0))
    is_video = [isinstance(part, tuple) and part[0] == VIDEO for part in parts if not isinstance(part, int)]
    by_kind = {
        wanted: [
            (grid, second) for grid, second, video in zip(grids, seconds, is_video, strict=True) if video == wanted
        ]
        for wanted in (False, True)
    }
    theirs, delta = model.get_rope_index(
        torch.from_numpy(ids).long()[None],
        torch.from_numpy(kinds)[None],
        image_grid_thw=torch.tensor([grid for grid, _ in by_kind[False]]) if by_kind[False] else None,
        video_grid_thw=torch.tensor([grid for grid, _ in by_kind[True]]) if by_kind[True] else None,
        second_per_grid_ts=torch.tensor([second for _, second in by_kind[True]]) if by_kind[True] else None,
    )
    ours, following = mrope_positions(ids, grids, [engine_seconds_per_grid(s, "float32") for s in seconds], VISION)
    np.testing.assert_array_equal(ours, theirs[:, 0].numpy())
    assert following == ids.size + delta.item()
