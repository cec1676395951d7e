"""The largest clip that the pixel budgets allow, without opening any file."""

from __future__ import annotations

import math
from functools import lru_cache

from rlsys.config.run import DataConfig
from rlsys.data.video.frames import MERGED, TEMPORAL_PATCH
from rlsys.types import DEFAULT_PATCH, ImageSpec, PatchShape, PromptItem, VideoSpec

Grid = tuple[int, int, int]


def largest_grids(item: PromptItem) -> list[Grid]:
    """Return the largest grid of patches that each medium's budgets allow, as (time, height, width)."""
    return [_largest_of_video(spec) if isinstance(spec, VideoSpec) else _largest_of_image(spec) for spec in item.media]


def _largest_of_video(spec: VideoSpec) -> Grid:
    shape = PatchShape(px=spec.patch_px, frames=spec.patch_frames, side_px=spec.side_px)
    frames = (spec.min_frames, spec.max_frames)
    return _largest_grid(frames, spec.min_pixels, spec.max_pixels, spec.total_pixels, shape)


def _largest_of_image(spec: ImageSpec) -> Grid:
    shape = PatchShape(px=spec.patch_px, side_px=spec.side_px)
    return 1, MERGED, MERGED * _cells(spec.max_pixels, shape)


def largest_clip_tokens(data: DataConfig, shape: PatchShape = DEFAULT_PATCH) -> int:
    """Return the number of visual tokens of the largest clip or image that section `data` allows."""
    return max(math.prod(largest_grid(data, shape)) // MERGED**2, _cells(data.max_pixels, shape))


def largest_grid(data: DataConfig, shape: PatchShape = DEFAULT_PATCH) -> Grid:
    """Return the largest grid of patches that section `data` allows a video, as (time, height, width)."""
    frames = (data.min_frames, data.max_frames)
    return _largest_grid(frames, data.min_pixels, data.max_pixels, data.total_pixels, shape)


@lru_cache
def _largest_grid(
    frames: tuple[int, int], min_pixels: int, max_pixels: int, total_pixels: int, shape: PatchShape
) -> Grid:
    """Return the largest grid of a video. frames: the smallest and the largest number of frames."""
    least, most_frames = frames
    if shape.side_px:  # frames of one size: the budget bounds their number
        most_frames = min(most_frames, max(total_pixels // shape.side_px**2, least))

    def grid(num_frames: int) -> Grid:
        most = max(min(max_pixels, total_pixels // num_frames), min_pixels)
        return num_frames // shape.frames, MERGED, MERGED * _cells(most, shape)

    numbers = range(TEMPORAL_PATCH, max(most_frames, TEMPORAL_PATCH) + 1, TEMPORAL_PATCH)
    return max((grid(number) for number in numbers), key=math.prod)


def patch_bytes(shape: PatchShape) -> int:
    """Return the bytes of the pixels of one patch, u8 RGB."""
    return shape.px**2 * shape.frames * 3


def _cells(pixels: int, shape: PatchShape) -> int:
    """Return the number of visual tokens of a frame of at most `pixels`; at least one."""
    if shape.side_px:
        return (shape.side_px // (MERGED * shape.px)) ** 2
    return max(1, pixels // (MERGED * shape.px) ** 2)
