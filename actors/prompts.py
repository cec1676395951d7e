"""Prompts in vLLM's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.requests import GroupRequest
from rlsys.models.stamps import STAMP_RATE, frame_numbers
from rlsys.types import ClipInfo


def vllm_prompt(request: GroupRequest, frames: Sequence[np.ndarray], *, tells_seconds: bool) -> dict[str, Any]:
    """Return a prompt in vLLM's form. The digest of a clip identifies it in every cache.

    tells_seconds: whether the engine writes time stamps, which it then computes from the frames' true times.
    """
    data: dict[str, list[Any]] = {}
    digests: dict[str, list[str]] = {}
    for clip, array in zip(request.clips, frames, strict=True):
        data.setdefault(clip.kind, []).append(_video(clip, array, tells_seconds) if clip.kind == "video" else array[0])
        digests.setdefault(clip.kind, []).append(clip.digest)
    prompt: dict[str, Any] = {"prompt_token_ids": request.engine_ids.tolist()}
    if data:
        prompt |= {"multi_modal_data": data, "multi_modal_uuids": digests}
    return prompt


def _video(clip: ClipInfo, frames: np.ndarray, tells_seconds: bool) -> tuple[np.ndarray, dict[str, Any]]:
    # the prompt's positions depend on the rounding of this division, see `engine_seconds_per_grid`
    fps = STAMP_RATE if tells_seconds else len(frames) // clip.grid_thw[0] / clip.second_per_grid_s
    numbers = frame_numbers(clip) if tells_seconds else list(range(len(frames)))
    total = numbers[-1] + 1
    return frames, {
        "fps": fps,
        "total_num_frames": total,
        "duration": total / fps,
        "frames_indices": numbers,
        "video_backend": "decord",
        "do_sample_frames": False,
    }
