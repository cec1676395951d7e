"""Select the frames of a clip and their size: pure decisions, no decoder."""

from __future__ import annotations

import math

import numpy as np

from rlsys.data.video.errors import ClipError
from rlsys.types import PATCH_PX, VideoSpec

TEMPORAL_PATCH = 2  # frames are sampled in pairs, also for models whose temporal patch is one frame
MERGED = 2  # patches per side that one visual token covers
MAX_ASPECT_RATIO = 200

Crop = tuple[float, float, float, float]
"""(left, top, right, bottom) in fractions of width and height."""


def select_frames(times_s: np.ndarray, end_s: float, spec: VideoSpec) -> tuple[np.ndarray, float]:
    """Return the frames of a video to show, and the seconds of video that each stands for.

    times_s: f64 [N], ascending presentation times of the file's frames; end_s: when the last one ends.
    Returns (indices i64 [n], spacing_s). The clip (or `spec.window_s` of it) is cut into n equal parts,
    and each part is shown by the frame on display at its start; so boundaries on the sampling grid are
    seen exactly, and in a file of variable frame rate a frame is shown for as long as it was on screen.
    n is `fps` x length, within the spec's bounds, never more than the frames there are, and even: an odd
    count loses one, as in Qwen2.5-VL's own sampling.
    Raises ClipError "zero_length" or "window" if there are fewer than two frames.
    """
    start_s, stop_s = _part(times_s, end_s, spec)
    # container time stamps are rounded, some to milliseconds; nearly half a frame of slack absorbs that,
    # and a moment halfway between two frames still shows the earlier one
    slack_s = 0.49 * float(np.median(np.diff(times_s))) if times_s.size > 1 else 0.0
    available = int(np.count_nonzero((times_s >= start_s - slack_s) & (times_s < stop_s)))
    if available < TEMPORAL_PATCH:
        raise _too_few(spec, f"{available} frame(s) in {start_s:g}..{stop_s:g} s")
    length_s = stop_s - start_s
    num_frames = count_frames(math.floor((length_s + slack_s) * spec.fps), available, spec)
    spacing_s = length_s / num_frames
    if abs(num_frames / spec.fps - length_s) <= slack_s:
        spacing_s = 1 / spec.fps
    starts_s = start_s + spacing_s * np.arange(num_frames)
    indices = np.searchsorted(times_s, starts_s + slack_s, side="right") - 1
    return np.clip(indices, 0, times_s.size - 1), spacing_s


def _part(times_s: np.ndarray, end_s: float, spec: VideoSpec) -> tuple[float, float]:
    """Return the start and the end of the part to read, in seconds."""
    if times_s.size == 0:
        raise ClipError(spec.uri, "zero_length", "the video stream has no frames")
    first_s = float(times_s[0])
    if spec.window_s is None:
        return first_s, end_s
    start_s, stop_s = max(spec.window_s[0], first_s), min(spec.window_s[1], end_s)
    if not start_s < stop_s:
        found = f"{spec.window_s[0]:g}..{spec.window_s[1]:g} s"
        raise ClipError(spec.uri, "window", f"nothing to read in {found} of a clip from {first_s:g} to {end_s:g} s")
    return start_s, stop_s


def select_from_folder(num_images: int, spec: VideoSpec) -> tuple[np.ndarray, float]:
    """Return the images of a frame folder to show, evenly spaced, including the first and the last.

    Both ends are included because tracking annotations have boxes at both ends. The folder's frame rate is
    `spec.folder_fps`; without one, all images are shown unless that exceeds the spec's bounds.
    Returns (indices i64 [n], mean spacing of the chosen images in seconds).
    """
    rate = folder_rate(spec)
    first, stop = 0, num_images
    if spec.window_s is not None:
        first = max(0, math.ceil(spec.window_s[0] * rate - 1e-6))
        stop = min(num_images, math.ceil(spec.window_s[1] * rate - 1e-6))
    available = stop - first
    if available < TEMPORAL_PATCH:
        raise _too_few(spec, f"{max(available, 0)} image(s) to show")
    num_frames = count_frames(math.floor(available / rate * spec.fps + 1e-6), available, spec)
    indices = first + np.round(np.linspace(0, available - 1, num_frames)).astype(np.int64)
    return indices, float(indices[-1] - indices[0]) / (num_frames - 1) / rate


def folder_rate(spec: VideoSpec) -> float:
    """Return the images per second of a frame folder."""
    return spec.folder_fps or spec.fps


def _too_few(spec: VideoSpec, found: str) -> ClipError:
    return ClipError(
        spec.uri,
        "zero_length" if spec.window_s is None else "window",
        f"{found}, but at least {TEMPORAL_PATCH} are needed",
    )


def count_frames(wanted: int, available: int, spec: VideoSpec) -> int:
    """Return the largest even number of frames, at least 2 and at most `wanted`, that the spec and the clip allow.

    `total_pixels` bounds it too, since no frame may be below `min_pixels` or, where all have one, another size.
    """
    smallest = spec.side_px**2 or spec.min_pixels
    most = min(spec.max_frames, max(spec.total_pixels // smallest, spec.min_frames))
    count = min(max(wanted, spec.min_frames), most, available)
    return max(count - count % TEMPORAL_PATCH, TEMPORAL_PATCH)


def frame_size(
    height: int, width: int, *, min_pixels: int, max_pixels: int, patch_px: int = PATCH_PX
) -> tuple[int, int]:
    """Return (height, width) after resizing: multiples of two patches, aspect ratio nearly kept, area within bounds.

    Raises ValueError if one side is more than 200 times the other.
    Source: `smart_resize` of Qwen's processors. As there, if the bounds are closer than one multiple of two patches,
    the area can fall below the lower bound.
    """
    factor = MERGED * patch_px
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")
    # Python's round, ties to even, as in the source
    rows, columns = round(height / factor), round(width / factor)
    area = rows * columns * factor**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor)
        columns = math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def fitted_size(height: int, width: int, pixels: int, patch_px: int = PATCH_PX) -> tuple[int, int]:
    """Return the largest (height, width) of at most `pixels`: multiples of two patches, aspect ratio nearly kept.

    Raises ValueError if one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")
    factor = MERGED * patch_px
    # what just fits must not be rounded down
    scale = math.sqrt(pixels / (height * width)) / factor * (1 + 1e-9)
    return max(1, math.floor(height * scale)) * factor, max(1, math.floor(width * scale)) * factor


def crop_edges(height: int, width: int, crop: Crop | None) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) in pixels of the part of a picture to show, at least one pixel each way."""
    if crop is None:
        return 0, height, 0, width
    top, bottom = _edges(crop[1], crop[3], height)
    left, right = _edges(crop[0], crop[2], width)
    return top, bottom, left, right


def _edges(low: float, high: float, side: int) -> tuple[int, int]:
    first = min(math.floor(low * side + 1e-6), side - 1)
    return max(first, 0), max(min(math.ceil(high * side - 1e-6), side), first + 1)


def video_frame_size(height: int, width: int, num_frames: int, spec: VideoSpec) -> tuple[int, int]:
    """Return the `frame_size` of each of `num_frames` frames that share the spec's `total_pixels`.

    height, width: of the part that is shown; one that is cut out is scaled up to the budget.
    """
    if spec.side_px:
        return spec.side_px, spec.side_px
    most = max(min(spec.max_pixels, spec.total_pixels // num_frames), spec.min_pixels)
    if spec.crop is not None:
        return fitted_size(height, width, most, spec.patch_px)
    return frame_size(height, width, min_pixels=spec.min_pixels, max_pixels=most, patch_px=spec.patch_px)
