"""Conversion of frames into the vision tower's patches, as the models' processors compute them but without resizing.

The clip store has already resized the frames to the model's grid, so only normalising and cutting remain of the Hugging
Face processors. This avoids a second resizing and takes a tenth of their time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlsys.models.model_config import read_model_config

PIECE_BYTES = 8 << 20
"""Bytes of frames that are cut and normalised at a time."""


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """The format of patches: `mean` and `std` per channel on the scale 0..255, and sizes in pixels and frames.

    side_px: side of every frame, 0 if frames differ in size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    side_px: int = 0

    @property
    def patch_dim(self) -> int:
        """Number of values in one patch: channels x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def read_pixel_format(model_path: Path) -> PixelFormat:
    """Read the pixel format from the processor files of a checkpoint folder, and from its config what they omit.

    Raises ValueError if images and videos would be normalised differently, and FileNotFoundError if the folder has no
    processor.
    """
    together, found = model_path / "processor_config.json", []
    if together.exists():
        tree = json.loads(together.read_text())
        found = [tree[key] for key in ("image_processor", "video_processor") if key in tree]
    if not found:
        names = ("preprocessor_config.json", "video_preprocessor_config.json")
        found = [json.loads((model_path / name).read_text()) for name in names if (model_path / name).exists()]
    if not found:
        raise FileNotFoundError(
            f"{model_path}: no processor_config.json or preprocessor_config.json; copy the model's own."
        )
    formats = [_parse(tree, model_path) for tree in found]
    if len(set(formats)) > 1:
        raise ValueError(
            f"{model_path}: images and videos are processed differently ({formats}); only one tower input is supported."
        )
    return formats[0]


def _parse(tree: dict[str, Any], model_path: Path) -> PixelFormat:
    # multiplied, not divided, in float32, as the processors do, so that results are equal to the last bit
    scale = 1.0 / tree.get("rescale_factor", 1 / 255)
    mean, std = ((torch.tensor(tree[key]) * scale).tolist() for key in ("image_mean", "image_std"))
    sizes = tree
    if "patch_size" not in tree:  # a processor that only resizes says nothing of patches
        vision = read_model_config(model_path).vision
        sizes = {name: getattr(vision, name) for name in ("patch_size", "temporal_patch_size", "merge_size", "side_px")}
    return PixelFormat(
        mean=tuple(mean),
        std=tuple(std),
        patch_size=sizes["patch_size"],
        temporal_patch_size=sizes["temporal_patch_size"],
        merge_size=sizes["merge_size"],
        side_px=sizes.get("side_px", 0),
    )


def frame_grid(frames: np.ndarray, form: PixelFormat) -> tuple[int, int, int]:
    """Return the number of patches in (time, height, width) of frames u8 [T, H, W, 3].

    Raises ValueError if H or W is not a multiple of the size of a merged patch, or not the side that all frames have.
    """
    num_frames, height, width, _ = frames.shape
    unit = form.patch_size * form.merge_size
    if height % unit or width % unit:
        raise ValueError(
            f"frames are {height}x{width}; both must be multiples of {unit}, as the clip store makes them."
        )
    if form.side_px and (height, width) != (form.side_px, form.side_px):
        raise ValueError(f"frames are {height}x{width}; the model reads only {form.side_px}x{form.side_px}.")
    return -(-num_frames // form.temporal_patch_size), height // form.patch_size, width // form.patch_size


def cut_patches(
    clips: Sequence[np.ndarray],
    form: PixelFormat,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the patches of the clips in order, [patches, patch_dim] of `dtype`, in the order of the vision tower.

    clips: frames, u8 [T, H, W, 3]; if T is odd (1 for an image), the last frame is repeated. They are normalised in
    float32. Beside the result at most five times `PIECE_BYTES` are in memory, however long the clips are.
    """
    num_patches = sum(math.prod(frame_grid(frames, form)) for frames in clips)
    patches = torch.empty((num_patches, form.patch_dim), dtype=dtype, device=device)
    mean = torch.tensor(form.mean, device=device)[:, None]
    std = torch.tensor(form.std, device=device)[:, None]
    start = 0
    for piece in _pieces(clips, form):
        # cut as bytes and normalised together, which takes half the time of doing it clip by clip
        cut = torch.cat([_cut(frames, form, device) for frames in piece])
        patches[start : start + len(cut)] = cut.to(torch.float32).sub_(mean).div_(std).view(-1, form.patch_dim)
        start += len(cut)
    return patches


def _pieces(clips: Sequence[np.ndarray], form: PixelFormat) -> Iterator[list[np.ndarray]]:
    """Yield the clips' frames in order, in lists of at most `PIECE_BYTES` or of one temporal patch."""
    depth, piece, size = form.temporal_patch_size, list[np.ndarray](), 0
    for frames in clips:
        step = depth * max(1, PIECE_BYTES // (depth * frames[0].nbytes))
        for start in range(0, len(frames), step):
            part = frames[start : start + step]
            if piece and size + part.nbytes > PIECE_BYTES:
                yield piece
                piece, size = [], 0
            piece.append(part)
            size += part.nbytes
    if piece:
        yield piece


def _cut(frames: np.ndarray, form: PixelFormat, device: str | torch.device) -> torch.Tensor:
    """Return the patches of a clip, u8 [patches, channels, frames x height x width of a patch]."""
    time, height, width = frame_grid(frames, form)
    # copied, because torch.from_numpy warns of read-only arrays, such as frames from the object store
    pixels = torch.tensor(frames).to(device)
    if pad := -len(pixels) % form.temporal_patch_size:
        pixels = torch.cat([pixels, pixels[-1:].expand(pad, -1, -1, -1)])
    side, merge, depth, channels = form.patch_size, form.merge_size, form.temporal_patch_size, pixels.shape[-1]
    pixels = pixels.view(time, depth, height // merge, merge, side, width // merge, merge, side, channels)
    return pixels.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, channels, depth * side * side)
