"""From a file to frames at the model's resolution: the only module that imports decord."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import stat
from dataclasses import asdict
from pathlib import Path

import decord
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rlsys.data.video.containers import shortfall
from rlsys.data.video.errors import ClipError
from rlsys.data.video.frames import (
    PATCH,
    TEMPORAL_PATCH,
    frame_size,
    select_frames,
    select_from_folder,
    video_frame_size,
)
from rlsys.types import Clip, ClipInfo, ImageSpec, MediaSpec, VideoSpec

__all__ = ["ClipError", "PROCESSOR_VERSION", "decode", "plan_grid"]

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp"))
FRAMES_AT_ONCE = 16  # full-size frames held while resizing: 100 MB of 1080p

PROCESSOR_VERSION = "/".join(
    ("rlsys-1", *(f"{name}-{importlib.metadata.version(name)}" for name in ("decord", "pillow")))
)
"""Part of every digest: raise its first item when the same file and spec would give other frames."""

_DECORD_PREFIX = re.compile(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ")

decord.logging.set_level(decord.logging.QUIET)  # ffmpeg's complaints come back as ClipErrors


def decode(spec: MediaSpec) -> Clip:
    """The frames that `spec` asks for, decoded, resized once, with their true presentation times.

    Raises ClipError naming the file and what is wrong with it.
    """
    path = Path(spec.uri)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ClipError(spec.uri, "missing", "no such file or folder") from None
    except OSError as error:
        raise ClipError(spec.uri, "unreadable", str(error)) from error
    try:
        if isinstance(spec, ImageSpec):
            return _decode_image(path, spec)
        if stat.S_ISDIR(mode):
            return _decode_folder(path, spec)
        return _decode_video(path, spec)
    except (PermissionError, IsADirectoryError) as error:
        raise ClipError(spec.uri, "unreadable", str(error)) from error


def plan_grid(spec: MediaSpec) -> tuple[int, int, int]:
    """The patches (time, height, width) that `decode` will give, from the file's header and first frame alone.

    Raises ClipError as `decode` does, except for faults that only decoding shows.
    """
    path = Path(spec.uri)
    if isinstance(spec, ImageSpec) or path.is_dir():
        return decode(spec).info.grid_thw
    if not path.exists():
        raise ClipError(spec.uri, "missing", "no such file or folder")
    _check_whole(path, spec.uri)
    reader = _open(path, spec.uri)
    indices, _ = select_frames(*_frame_times(reader, spec.uri), spec)
    try:
        first = reader[0]
    except (decord.DECORDError, RuntimeError) as error:
        raise ClipError(spec.uri, "corrupt", f"decoding failed: {_first_line(error)}") from error
    height, width = _size_of(spec, first.shape[0], first.shape[1], indices.size)
    return indices.size // TEMPORAL_PATCH, height // PATCH, width // PATCH


def _decode_video(path: Path, spec: VideoSpec) -> Clip:
    _check_whole(path, spec.uri)
    file_digest = _digest_file(path)
    reader = _open(path, spec.uri)
    times_s, end_s = _frame_times(reader, spec.uri)
    indices, spacing_s = select_frames(times_s, end_s, spec)
    try:
        frames = _read_resized(reader, indices, spec)
    except (decord.DECORDError, RuntimeError) as error:
        raise ClipError(spec.uri, "corrupt", f"decoding failed: {_first_line(error)}") from error
    return _clip("video", spec, file_digest, frames, times_s[indices], spacing_s, end_s)


def _check_whole(path: Path, uri: str) -> None:
    """Raises ClipError for a file that ends early; pipes and devices cannot be checked."""
    if not path.is_file():
        return
    if path.stat().st_size == 0:
        raise ClipError(uri, "empty", "the file has 0 bytes")
    problem = shortfall(path)
    if problem:
        raise ClipError(uri, "truncated", problem)


def _open(path: Path, uri: str) -> decord.VideoReader:
    try:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        message = _first_line(error)
        if "cannot find video stream" not in str(error):
            raise ClipError(uri, "corrupt", f"no decoder can open it: {message}") from error
        if _has_sound(path):
            raise ClipError(uri, "audio_only", "the file has sound and no video stream") from error
        raise ClipError(uri, "zero_length", "the container is empty: no video stream, no sound") from error


def _has_sound(path: Path) -> bool:
    try:
        decord.AudioReader(str(path))
    except (decord.DECORDError, RuntimeError):
        return False
    return True


def _first_line(error: Exception) -> str:
    """decord's message without its clock times, source lines and stack trace."""
    lines = [line for line in _DECORD_PREFIX.sub("", str(error)).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def _frame_times(reader: decord.VideoReader, uri: str) -> tuple[np.ndarray, float]:
    """(f64 [N] presentation times, end of the last frame), seconds, as the file says: never index / fps."""
    if len(reader) == 0:
        raise ClipError(uri, "zero_length", "the video stream has no frames")
    spans = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
    # decord hands out float32: without rounding, 6 s of video can be 5.9999998 s and lose a frame
    times_s, end_s = np.round(spans[:, 0], 6), round(float(spans[-1, 1]), 6)
    backwards = np.flatnonzero(~(np.diff(times_s) >= 0))
    if backwards.size or not np.isfinite(end_s):
        at = int(backwards[0]) + 1 if backwards.size else len(times_s) - 1
        raise ClipError(uri, "corrupt", f"presentation times do not ascend at frame {at}")
    return times_s, max(end_s, float(times_s[-1]))


def _read_resized(reader: decord.VideoReader, indices: np.ndarray, spec: VideoSpec) -> np.ndarray:
    distinct, places = np.unique(indices, return_inverse=True)
    resized: list[np.ndarray] = []
    size: tuple[int, int] | None = None
    for start in range(0, distinct.size, FRAMES_AT_ONCE):
        batch = reader.get_batch(distinct[start : start + FRAMES_AT_ONCE].tolist()).asnumpy()
        size = size or _size_of(spec, batch.shape[1], batch.shape[2], indices.size)
        resized += [_resize(Image.fromarray(frame), size) for frame in batch]
    return np.stack(resized)[places]


def _size_of(spec: VideoSpec, height: int, width: int, num_frames: int) -> tuple[int, int]:
    try:
        return video_frame_size(height, width, num_frames, spec)
    except ValueError as error:
        raise ClipError(spec.uri, "corrupt", str(error)) from error


def _resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """u8 [H, W, 3]; Pillow's bicubic widens its kernel when shrinking, so nothing aliases."""
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def _decode_folder(folder: Path, spec: VideoSpec) -> Clip:
    """A folder of frame images, in the order of their names, `spec.fps` of them a second."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ClipError(spec.uri, "zero_length", f"the folder has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    indices, spacing_s = select_from_folder(len(files), spec)
    chosen = [files[index] for index in indices]
    digest = _digest_text(*(f"{path.name}:{_digest_file(path)}" for path in chosen))
    images = [_open_image(path) for path in chosen]
    size = _size_of(spec, images[0].height, images[0].width, len(images))
    frames = np.stack([_resize(image, size) for image in images])
    return _clip("video", spec, digest, frames, indices / spec.fps, spacing_s, len(files) / spec.fps)


def _decode_image(path: Path, spec: ImageSpec) -> Clip:
    image = _open_image(path)
    try:
        size = frame_size(image.height, image.width, min_pixels=spec.min_pixels, max_pixels=spec.max_pixels)
    except ValueError as error:
        raise ClipError(spec.uri, "corrupt", str(error)) from error
    return _clip("image", spec, _digest_file(path), _resize(image, size)[None], np.zeros(1), 0.0, 0.0)


def _open_image(path: Path) -> Image.Image:
    _check_whole(path, str(path))
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ClipError(str(path), "corrupt", "not an image that Pillow knows") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        is_cut = "truncated" in str(error)
        raise ClipError(str(path), "truncated" if is_cut else "corrupt", _first_line(error)) from error


def _clip(
    kind: str, spec: MediaSpec, content: str, frames: np.ndarray, times_s: np.ndarray, spacing_s: float, end_s: float
) -> Clip:
    num_frames, height, width, _ = frames.shape
    steps = num_frames // TEMPORAL_PATCH if kind == "video" else 1
    asked = {name: value for name, value in asdict(spec).items() if name != "uri"}
    info = ClipInfo(
        kind="video" if kind == "video" else "image",
        digest=_digest_text(content, json.dumps(asked, sort_keys=True), PROCESSOR_VERSION),
        times_s=np.asarray(times_s, dtype=np.float64),
        grid_thw=(steps, height // PATCH, width // PATCH),
        second_per_grid_s=TEMPORAL_PATCH * spacing_s,
        duration_s=end_s,
        num_bytes=frames.nbytes,
    )
    return Clip(info=info, frames=frames)


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_text(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
