"""Requests that an engine refuses, and the messages that say why, without vLLM."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.errors import PromptRefused
from actors.requests import EngineLimits, EngineSpec, GroupRequest, check_request, environment
from rlsys.config.run import ModelConfig, RolloutConfig
from rlsys.types import ClipInfo, PatchShape, Sampling

IMAGE_PAD, VIDEO_PAD = 8, 9
LIMITS = EngineLimits(
    vocab_size=10,
    max_model_len=40,
    max_num_seqs=4,
    max_clip_tokens=30,
    image_pad_id=IMAGE_PAD,
    video_pad_id=VIDEO_PAD,
    merge_size=2,
)
SAMPLING = Sampling(num_samples=4, temperature=1.0, top_p=1.0, max_tokens=20, seed=5)


def clip(kind: str = "video", grid: tuple[int, int, int] = (2, 4, 4), second_per_grid_s: float = 1.0) -> ClipInfo:
    return ClipInfo(
        kind=kind,
        digest="d" * 64,
        times_s=np.zeros(2 * grid[0]),
        grid_thw=grid,
        second_per_grid_s=second_per_grid_s,
        duration_s=4.0,
        num_bytes=1,
    )


def frames_of(info: ClipInfo) -> np.ndarray:
    time, height, width = info.grid_thw
    return np.zeros((2 * time if info.kind == "video" else 1, height * 14, width * 14, 3), np.uint8)


def refusal(
    ids: list[int],
    clips: list[ClipInfo],
    frames: list[np.ndarray] | None = None,
    limits: EngineLimits = LIMITS,
    **sampling: Any,
) -> str:
    request = GroupRequest(
        prompt_id="file:3",
        engine_ids=np.array(ids, np.int32),
        num_tokens=len(ids) + sum(math.prod(one.grid_thw) // 4 - 1 for one in clips),
        clips=tuple(clips),
        sampling=replace(SAMPLING, **sampling),
    )
    with pytest.raises(PromptRefused) as caught:
        check_request(request, [frames_of(info) for info in clips] if frames is None else frames, limits)
    assert "file:3" in str(caught.value)
    return str(caught.value)


def test_a_clip_above_what_the_vision_tower_reads_at_once_is_refused_by_its_tokens() -> None:
    long = replace(clip(), grid_thw=(31, 2, 2))
    said = refusal([1, VIDEO_PAD], [long], max_tokens=1)
    assert "has 31 visual tokens, above the 30 that the engine's vision tower reads at once" in said
    assert "data.max_frames" in said


def test_a_prompt_that_fits_to_the_last_token_passes() -> None:
    # 12 text + 2*4*4/4 = 8 visual + 20 response = 40
    request = GroupRequest(
        prompt_id="p", engine_ids=np.array([1] * 12 + [VIDEO_PAD]), num_tokens=20, clips=(clip(),), sampling=SAMPLING
    )
    check_request(request, [frames_of(clip())], LIMITS)


def test_one_token_too_many_is_refused_with_the_sum() -> None:
    message = refusal([1] * 13 + [VIDEO_PAD], [clip()])
    assert "13 text + 8 visual + 20 response = 41" in message


def test_a_placeholder_without_a_clip_is_refused() -> None:
    assert "placeholders ['video'] for clips []" in refusal([1, VIDEO_PAD], [])


def test_a_clip_without_a_placeholder_is_refused() -> None:
    assert "placeholders [] for clips ['video']" in refusal([1, 2], [clip()])


def test_an_image_at_the_placeholder_of_a_video_is_refused() -> None:
    refusal([1, VIDEO_PAD, IMAGE_PAD], [clip("image", (1, 4, 4), 0.0), clip()])


def test_an_expanded_prompt_is_refused() -> None:
    refusal([1] + [VIDEO_PAD] * 8, [clip()])


def test_frames_of_another_shape_or_type_are_refused() -> None:
    good = frames_of(clip())
    for bad in (good[:2], good[:, :28], good.astype(np.float32), good[..., :2], good[0]):
        assert "needs uint8[4, 56, 56, 3]" in refusal([1, VIDEO_PAD], [clip()], [bad])


def test_a_clip_whose_patches_do_not_merge_is_refused() -> None:
    assert "multiples of 2" in refusal([1, VIDEO_PAD], [clip(grid=(2, 3, 4))])


def test_a_video_without_a_rate_is_refused() -> None:
    for seconds in (0.0, -1.0, float("nan")):
        assert "second_per_grid_s" in refusal([1, VIDEO_PAD], [clip(second_per_grid_s=seconds)])


def test_ids_outside_the_vocabulary_are_refused() -> None:
    assert "[10, -1]" in refusal([1, 10, -1], [])
    assert "one row of integers" in refusal([], [])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_samples": 5}, "rollout.max_num_seqs"),
        ({"num_samples": 0}, "outside 1..4"),
        ({"temperature": 0.0}, "equal responses"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63 - 4}, "seed="),
    ],
)
def test_sampling_that_vllm_would_silently_accept_or_fail_on_is_refused(settings: dict[str, Any], said: str) -> None:
    assert said in refusal([1, 2], [], **settings)


def test_threads_are_set_only_on_cpu_and_the_engine_always_runs_in_its_actors_process() -> None:
    spec = EngineSpec(
        model=ModelConfig(path=Path("m")), rollout=RolloutConfig(threads=3), device="cuda", banned_token_ids=()
    )
    on_gpu, on_cpu = environment(spec), environment(replace(spec, device="cpu"))
    assert "OMP_NUM_THREADS" not in on_gpu
    assert on_cpu["OMP_NUM_THREADS"] == "3"
    assert on_gpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == on_cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_frames_of_another_size_than_the_only_one_are_refused() -> None:
    limits = replace(LIMITS, patch=PatchShape(frames=1, side_px=56))
    one, frames = clip("video", (2, 4, 2)), np.zeros((2, 56, 28, 3), np.uint8)
    assert "are 56x28; the model reads only 56x56" in refusal([VIDEO_PAD], [one], [frames], limits)
    assert "needs uint8[2, 56, 56, 3]" in refusal([VIDEO_PAD], [clip()], [np.zeros((4, 56, 56, 3), np.uint8)], limits)
