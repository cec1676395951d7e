"""Positions of prompt tokens in time, height and width (mRoPE), by the original Qwen-VL rule, in numpy.

Text advances on all three axes at once. In a video the time axis advances by seconds, or by temporal patches in a
family that ignores the frame rate, and the other axes by patches; the text after it continues at the largest position
so far plus one. (transformers 5.19 continues at the larger of
height and width only, so its positions must not be used after a video.)
Where time stamps are text of the prompt, each temporal patch is a grid of its own.
Source: Qwen2-VL, arXiv:2409.12191, section 2.1; Qwen2.5-VL, arXiv:2502.13923, section 2.1; vLLM's
`get_mrope_input_positions` of each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class VisionTokens:
    """The parameters by which a checkpoint turns media into tokens.

    merge_size: number of patches merged into one token, along height and along width.
    temporal_patch_size: number of frames in one temporal patch.
    tokens_per_second: number of positions per second of video on the time axis; None where each temporal patch is one
    position, however far apart they are.
    has_stamps: whether a time stamp is before each temporal patch of a video, which makes it a run of placeholders of
    its own.
    has_one_axis: whether positions are the numbers of the tokens, whatever the media are.
    """

    image_pad_id: int
    video_pad_id: int
    merge_size: int
    temporal_patch_size: int
    tokens_per_second: float | None
    has_stamps: bool = False
    has_one_axis: bool = False

    def pad_id(self, kind: Literal["video", "image"]) -> int:
        """Return the id of the placeholder token of a medium of `kind`."""
        return self.video_pad_id if kind == "video" else self.image_pad_id

    def runs(self, kind: Literal["video", "image"], grid_thw: Grid) -> list[Grid]:
        """Return the grids of the runs of placeholders into which a medium with this grid is expanded."""
        time, height, width = grid_thw
        return [(1, height, width)] * time if self.has_stamps and kind == "video" else [grid_thw]

    def positions_per_grid(self, kind: Literal["video", "image"], seconds: float) -> float:
        """Return how far a temporal patch of a medium advances the time axis; it stands for `seconds` of a video."""
        if kind == "image" or self.tokens_per_second is None:
            return 1.0
        return seconds * self.tokens_per_second

    def num_tokens(self, grid_thw: Grid) -> int:
        """Return the number of placeholder tokens of a medium with this grid of patches."""
        time, height, width = grid_thw
        return time * height * width // self.merge_size**2


def mrope_positions(
    ids: np.ndarray, grids: Sequence[Grid], seconds_per_grid: Sequence[float], vision: VisionTokens
) -> tuple[np.ndarray, int]:
    """Return the positions of the expanded prompt `ids`, and the position of the token that follows it.

    ids: int [P].  grids: patches in (time, height, width) of each run of placeholders (`VisionTokens.runs`), in order.
    seconds_per_grid: of each run, as `engine_seconds_per_grid` returns it; not read for an image.
    Returns i32 [3, P] and the next position, the same on all three axes. Raises ValueError if the
    runs of placeholders do not match the grids.
    """
    if vision.has_one_axis:
        return np.array(_text(ids.size, 0), np.int32), ids.size
    is_pad = (ids == vision.image_pad_id) | (ids == vision.video_pad_id)
    parts: list[np.ndarray] = []
    cursor = position = 0
    for grid, seconds in zip(grids, seconds_per_grid, strict=True):
        start = cursor + int(np.argmax(is_pad[cursor:])) if is_pad[cursor:].any() else ids.size
        end = start + vision.num_tokens(grid)
        if end > ids.size or np.any(ids[start:end] != ids[start]):
            raise ValueError(
                f"grid {grid} needs {end - start} equal placeholders at token {start}; the prompt has fewer."
            )
        parts += [_text(start - cursor, position)]
        position += start - cursor
        kind: Literal["video", "image"] = "video" if ids[start] == vision.video_pad_id else "image"
        parts += [_patches(grid, vision.positions_per_grid(kind, seconds), vision.merge_size) + position]
        position = int(parts[-1].max()) + 1
        cursor = end
    if is_pad[cursor:].any():
        raise ValueError(f"the prompt has placeholders after its {len(grids)} media, from token {cursor} on.")
    parts += [_text(ids.size - cursor, position)]
    return np.concatenate(parts, axis=1).astype(np.int32), position + ids.size - cursor


def engine_seconds_per_grid(
    second_per_grid_s: float, dtype: Literal["float32", "bfloat16"], temporal_patch_size: int = 2
) -> float:
    """Return `second_per_grid_s` with the engine's rounding, which decides how positions are truncated to integers.

    The engine gets frames per second and divides; the quotient becomes a float32 tensor, and vLLM casts every
    floating-point tensor of the processor to the model's dtype. The 0.0 of an image is returned as it is.
    """
    if second_per_grid_s == 0.0:
        return 0.0
    seconds = np.float32(temporal_patch_size / (temporal_patch_size / second_per_grid_s))
    return float(seconds if dtype == "float32" else _as_bfloat16(seconds))


def _as_bfloat16(value: np.float32) -> np.float32:
    # numpy has no bfloat16: it is the upper half of a float32, rounded to nearest, ties to even
    bits = int(value.view(np.uint32))
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.uint32(rounded).view(np.float32)


def _text(num_tokens: int, start: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + num_tokens), (3, num_tokens))


def _patches(grid: Grid, positions_per_grid: float, merge_size: int) -> np.ndarray:
    time, height, width = grid
    indices = np.indices((time, height // merge_size, width // merge_size))
    indices[0] = (indices[0] * positions_per_grid).astype(np.int64)
    return indices.reshape(3, -1)
