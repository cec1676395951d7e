"""Time stamps: when the frames of a clip are shown, as the engine and the prompt's text have it.

The engine is given frames by their numbers and a frame rate. At `STAMP_RATE` a number is a time in microseconds, so the
engine computes the same stamps from it, also for frames at uneven times.
"""

from __future__ import annotations

import numpy as np

from rlsys.types import ClipInfo

STAMP_RATE = 1e6
"""Frames per second by which the engine is told times."""


def frame_numbers(clip: ClipInfo) -> list[int]:
    """Return the time of each frame in microseconds from the start of the part that the prompt shows.

    A frame that was on display when the part began has time 0.
    """
    return np.maximum(np.rint((clip.times_s - clip.start_s) * STAMP_RATE), 0).astype(np.int64).tolist()


def patch_times_s(clip: ClipInfo, temporal_patch_size: int) -> list[float]:
    """Return the seconds of each temporal patch: the mean of its first and last frame, rounded as the engine does.

    Source: `_calculate_timestamps` of Qwen3-VL in transformers and vLLM.
    """
    times_s = [number / STAMP_RATE for number in frame_numbers(clip)]
    last = temporal_patch_size - 1
    return [
        (times_s[first] + times_s[first + last]) / 2 for first in range(0, len(times_s) - last, temporal_patch_size)
    ]
