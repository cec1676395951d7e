"""The largest clip that the pixel budgets allow, without opening any file."""

from __future__ import annotations

import math
from functools import lru_cache

from rlsys.config.run import DataConfig
from rlsys.data.video.frames import MERGED, TEMPORAL_PATCH
from rlsys.types import PATCH_PX, PromptItem, VideoSpec


def largest_grids(item: PromptItem) -> list[tuple[int, int, int]]:
    """Return the largest grid of patches that each medium's budgets allow, as (time, height, width)."""
    return [
        largest_grid(spec.max_frames, spec.min_pixels, spec.max_pixels, spec.total_pixels, spec.patch_px)
        if isinstance(spec, VideoSpec)
        else (1, MERGED, MERGED * _cells(spec.max_pixels, spec.patch_px))
        for spec in item.media
    ]


def largest_clip_tokens(data: DataConfig, patch_px: int = PATCH_PX) -> int:
    """Return the number of visual tokens of the largest clip or image that section `data` allows."""
    video = largest_grid(data.max_frames, data.min_pixels, data.max_pixels, data.total_pixels, patch_px)
    return max(math.prod(video) // MERGED**2, _cells(data.max_pixels, patch_px))


@lru_cache
def largest_grid(
    max_frames: int, min_pixels: int, max_pixels: int, total_pixels: int, patch_px: int = PATCH_PX
) -> tuple[int, int, int]:
    """Return the largest grid of patches that these budgets allow a video, as (time, height, width)."""

    def grid(num_frames: int) -> tuple[int, int, int]:
        most = max(min(max_pixels, total_pixels // num_frames), min_pixels)
        return num_frames // TEMPORAL_PATCH, MERGED, MERGED * _cells(most, patch_px)

    return max((grid(n) for n in range(TEMPORAL_PATCH, max_frames + 1, TEMPORAL_PATCH)), key=math.prod)


def patch_bytes(patch_px: int) -> int:
    """Return the bytes of the pixels of one patch of two frames, u8 RGB. patch_px: its side."""
    return patch_px**2 * TEMPORAL_PATCH * 3


def _cells(pixels: int, patch_px: int) -> int:
    """Return the number of visual tokens of a frame of at most `pixels`; at least one."""
    return max(1, pixels // (MERGED * patch_px) ** 2)
