"""Prompts in vLLM's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.requests import TEMPORAL_PATCH, GroupRequest
from rlsys.types import ClipInfo


def vllm_prompt(request: GroupRequest, frames: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return a prompt in vLLM's form. The digest of a clip identifies it in every cache."""
    data: dict[str, list[Any]] = {}
    digests: dict[str, list[str]] = {}
    for clip, array in zip(request.clips, frames, strict=True):
        data.setdefault(clip.kind, []).append(_video(clip, array) if clip.kind == "video" else array[0])
        digests.setdefault(clip.kind, []).append(clip.digest)
    prompt: dict[str, Any] = {"prompt_token_ids": request.engine_ids.tolist()}
    if data:
        prompt |= {"multi_modal_data": data, "multi_modal_uuids": digests}
    return prompt


def _video(clip: ClipInfo, frames: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    # the prompt's positions depend on the rounding of this division, see `engine_seconds_per_grid`
    fps = TEMPORAL_PATCH / clip.second_per_grid_s
    return frames, {
        "fps": fps,
        "total_num_frames": len(frames),
        "duration": len(frames) / fps,
        "frames_indices": list(range(len(frames))),
        "video_backend": "decord",
        "do_sample_frames": False,
    }
