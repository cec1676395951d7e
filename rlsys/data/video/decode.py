"""Decode a file to frames at the model's resolution, choosing the decoder for it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from rlsys.data.video import images
from rlsys.data.video.content import digest_file
from rlsys.data.video.errors import ClipError
from rlsys.data.video.frames import (
    crop_edges,
    fitted_size,
    folder_rate,
    frame_size,
    select_frames,
    select_from_folder,
    video_frame_size,
)
from rlsys.data.video.opened import OpenedFile, OpenedFiles, Variant
from rlsys.data.video.readers import av_reader, decord_reader
from rlsys.data.video.readers.containers import shortfall
from rlsys.types import Clip, ClipInfo, ImageSpec, MediaSpec, VideoSpec, named_fields

__all__ = ["ClipError", "PROCESSOR_VERSION", "decode", "decode_all", "plan_grid", "reads_fast"]

PROCESSOR_VERSION = "/".join(
    ("rlsys-6", *(f"{name}-{importlib.metadata.version(name)}" for name in ("av", "decord", "pillow")))
)
"""Part of every digest: change its first item when the same file and spec would yield other frames."""


def decode(spec: MediaSpec) -> Clip:
    """Return the frames that `spec` selects, decoded, resized once, with their true presentation times.

    Raises ClipError naming the file and what is wrong with it.
    """
    return decode_all((spec,))[0]


def decode_all(specs: Sequence[MediaSpec], opened: OpenedFiles | None = None) -> list[Clip]:
    """Return the clips of several specs of one file or folder, which is opened once.

    A frame of a video file that several specs show is decoded once, and resized once for each size.
    opened: files that earlier calls left open, and their frames; None keeps nothing. Raises ClipError as `decode` does.
    """
    first = specs[0]
    path = Path(first.uri)
    is_folder = _require_there(path, first)
    with _unreadable(first.uri):
        if isinstance(first, ImageSpec):
            image, content = _open_image(path), digest_file(path)
            return [_decode_image(image, content, spec) for spec in specs if isinstance(spec, ImageSpec)]
        videos = [spec for spec in specs if isinstance(spec, VideoSpec)]
        if first.files:
            listed = [_there(file) for file in first.files]
            return [_decode_images(listed, spec, digest_file) for spec in videos]
        if is_folder:
            return [_decode_folder(path, spec) for spec in videos]
        files = OpenedFiles(max_bytes=0) if opened is None else opened
        with files.open(first.uri, lambda: _opened(path, first)) as file:
            return _decode_videos(file, videos)


def plan_grid(spec: MediaSpec) -> tuple[int, int, int]:
    """Return the grid of patches (time, height, width) of a decoded clip, from headers and the first frame alone.

    Raises ClipError as `decode` does, except for faults that only decoding shows.
    """
    return plan_clip(spec).grid_thw


def plan_clip(spec: MediaSpec) -> ClipInfo:
    """Return the metadata of a decoded clip, of a video file from its headers and first frame alone, without a digest.

    Raises ClipError as `decode` does, except for faults that only decoding shows.
    """
    path = Path(spec.uri)
    is_folder = _require_there(path, spec)
    if isinstance(spec, ImageSpec) or is_folder or spec.files:
        return decode(spec).info
    with _unreadable(spec.uri):
        file = _opened(path, spec, is_planned=True)
        indices, spacing_s = select_frames(file.times_s, file.end_s, spec)
        (first,) = file.read(indices[:1].tolist())
    height, width = _size_of(spec, first.shape[0], first.shape[1], indices.size)
    return ClipInfo(
        kind="video",
        digest="",
        times_s=file.times_s[indices],
        grid_thw=(indices.size // spec.patch_frames, height // spec.patch_px, width // spec.patch_px),
        second_per_grid_s=spacing_s * spec.patch_frames,
        duration_s=file.end_s,
        num_bytes=indices.size * height * width * 3,
        start_s=spec.start_s,
        source_fps=file.times_s.size / file.end_s if file.end_s else 0.0,
    )


def shape_of(path: Path) -> tuple[float, tuple[float, float] | None]:
    """Return the seconds from the start of a video file to the end of its last frame, and its (width, height).

    The size is that of the shown frames in square pixels, None for an animated image. Raises ClipError.
    """
    with _unreadable(str(path)):
        _check_whole(path, str(path))
        if images.is_animation(path):
            return images.animation_times(path)[1], None
        found = av_reader.probe(path, str(path))
    return found.end_s, found.shown_size


def reads_fast(path: Path) -> str:
    """Return why a video file is not read with decord, "" if it is."""
    return "an animated image" if images.is_animation(path) else av_reader.probe(path, str(path)).why_not_fast


@contextmanager
def _unreadable(uri: str) -> Iterator[None]:
    """Convert what the file system refuses within the block to a ClipError."""
    try:
        yield
    except OSError as error:
        raise ClipError(uri, "unreadable", str(error)) from error


def _require_there(path: Path, spec: MediaSpec) -> bool:
    """Return whether a path is a folder. Raises ClipError for anything but a folder or a regular file (may block)."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ClipError(spec.uri, "missing", "no such file or folder") from None
    except (OSError, ValueError) as error:
        raise ClipError(spec.uri, "unreadable", str(error)) from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise ClipError(spec.uri, "unreadable", "neither a file nor a folder, but a pipe, socket or device")
    return stat.S_ISDIR(mode)


def _opened(path: Path, spec: VideoSpec, *, is_planned: bool = False) -> OpenedFile:
    """Open a video file. is_planned: without a digest, and without decord, which ends its process on some files."""
    _check_whole(path, spec.uri)
    content = "" if is_planned else digest_file(path)
    if images.is_animation(path):
        times_s, end_s = images.animation_times(path)
        return OpenedFile(times_s, end_s, lambda indices: images.animation_frames(path, indices), content)
    found = av_reader.probe(path, spec.uri)

    def read(indices: Sequence[int]) -> Iterable[np.ndarray]:
        read_frames = av_reader.read if is_planned else _frames_of
        frames = read_frames(path, spec.uri, found, indices)
        return frames if found.aspect == 1.0 else (_square(frame, found) for frame in frames)

    return OpenedFile(found.times_s, found.end_s, read, content)


def _frames_of(path: Path, uri: str, found: av_reader.Probe, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the frames at these ascending indices, by decord as far as it can read the file, then by PyAV."""
    num_read = 0
    if not found.why_not_fast:
        for frame in decord_reader.read(path, found.times_s, found.key_indices, indices) or ():
            num_read += 1
            yield frame
    if num_read < len(indices):
        yield from av_reader.read(path, uri, found, indices[num_read:])


def _decode_videos(file: OpenedFile, specs: Sequence[VideoSpec]) -> list[Clip]:
    chosen = [select_frames(file.times_s, file.end_s, spec) for spec in specs]
    wanted = sorted({int(index) for indices, _ in chosen for index in indices})
    shows = [set(indices.tolist()) for indices, _ in chosen]
    variants: list[Variant] = []

    def sized(shape: tuple[int, int]) -> list[Variant]:
        return [
            (*_size_of(spec, *shape, indices.size), spec.crop) for spec, (indices, _) in zip(specs, chosen, strict=True)
        ]

    def is_missing(index: int) -> bool:
        return any(
            (index, one) not in file.frames for one, shown in zip(variants, shows, strict=True) if index in shown
        )

    if file.shape is not None:  # some of the frames may be there already
        variants = sized(file.shape)
        wanted = [index for index in wanted if is_missing(index)]
    for index, frame in zip(wanted, file.read(wanted) if wanted else (), strict=True):
        if not variants:
            file.shape = frame.shape[0], frame.shape[1]
            variants = sized(file.shape)
        for one, shown in zip(variants, shows, strict=True):
            if index in shown and (index, one) not in file.frames:
                file.frames[index, one] = _resized_part(frame, one)
    clips = []
    for spec, (indices, spacing_s), one in zip(specs, chosen, variants, strict=True):
        frames = np.stack([file.frames[int(index), one] for index in indices])
        clips.append(
            _clip("video", spec, file.digest, frames, file.times_s[indices], spacing_s, file.end_s, file.times_s.size)
        )
    return clips


def _resized_part(frame: np.ndarray, variant: Variant) -> np.ndarray:
    height, width, crop = variant
    top, bottom, left, right = crop_edges(frame.shape[0], frame.shape[1], crop)
    return _resize(Image.fromarray(np.ascontiguousarray(frame[top:bottom, left:right])), (height, width))


def _check_whole(path: Path, uri: str) -> None:
    """Raise ClipError for an empty or truncated file."""
    if path.stat().st_size == 0:
        raise ClipError(uri, "empty", "the file has 0 bytes")
    if problem := shortfall(path):
        raise ClipError(uri, "truncated", problem)


def _square(frame: np.ndarray, found: av_reader.Probe) -> np.ndarray:
    """Return a shown frame with square pixels; the side that is the width of the stored picture is scaled."""
    height, width, _ = frame.shape
    if found.turn.is_transposed:
        return _resize(Image.fromarray(frame), (max(1, round(height * found.aspect)), width))
    return _resize(Image.fromarray(frame), (height, max(1, round(width * found.aspect))))


def _size_of(spec: VideoSpec, height: int, width: int, num_frames: int) -> tuple[int, int]:
    """Return (height, width) after resizing of what is shown of a frame of these sides."""
    top, bottom, left, right = crop_edges(height, width, spec.crop)
    try:
        return video_frame_size(bottom - top, right - left, num_frames, spec)
    except ValueError as error:
        raise ClipError(spec.uri, "corrupt", str(error)) from error


def _resize(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Resize to u8 [H, W, 3]; Pillow's bicubic widens its kernel when shrinking, which avoids aliasing."""
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def _decode_folder(folder: Path, spec: VideoSpec) -> Clip:
    """Decode a folder of frame images, in the order of the numbers in their names."""
    files = images.files_of_folder(folder)
    if not files:
        raise ClipError(spec.uri, "zero_length", f"the folder has no images ({', '.join(sorted(images.SUFFIXES))})")
    return _decode_images(files, spec, lambda path: f"{path.name}:{digest_file(path)}")


def _there(file: str) -> Path:
    """Return the path of an image of a list. Raises ClipError for a file that is not there."""
    if not Path(file).is_file():
        raise ClipError(file, "missing", "no such image")
    return Path(file)


def _decode_images(files: Sequence[Path], spec: VideoSpec, identity: Callable[[Path], str]) -> Clip:
    """Decode images that are the frames of a video. identity: what the clip's digest holds of a file."""
    indices, spacing_s = select_from_folder(len(files), spec)
    chosen = [files[index] for index in indices]
    resized: list[np.ndarray] = []
    size: tuple[int, int] | None = None
    for path in chosen:  # one at a time: small files may hold large images
        image = _open_image(path)
        size = size or _size_of(spec, image.height, image.width, len(chosen))
        resized.append(_resize(_part(image, spec), size))
    digest = _digest_text(*map(identity, chosen))
    rate = folder_rate(spec)
    return _clip("video", spec, digest, np.stack(resized), indices / rate, spacing_s, len(files) / rate, len(files))


def _open_image(path: Path) -> Image.Image:
    _check_whole(path, str(path))
    return images.open_image(path)


def _part(image: Image.Image, spec: MediaSpec) -> Image.Image:
    """Return what is shown of an image."""
    if spec.crop is None:
        return image
    top, bottom, left, right = crop_edges(image.height, image.width, spec.crop)
    return image.crop((left, top, right, bottom))


def _decode_image(whole: Image.Image, content: str, spec: ImageSpec) -> Clip:
    image = _part(whole, spec)
    try:
        if spec.side_px:
            size = spec.side_px, spec.side_px
        elif spec.crop is None:
            bounds = {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels, "patch_px": spec.patch_px}
            size = frame_size(image.height, image.width, **bounds)
        else:
            size = fitted_size(image.height, image.width, spec.max_pixels, spec.patch_px)
    except ValueError as error:
        raise ClipError(spec.uri, "corrupt", str(error)) from error
    return _clip("image", spec, content, _resize(image, size)[None], np.zeros(1), 0.0, 0.0, 0)


def _clip(
    kind: str,
    spec: MediaSpec,
    content: str,
    frames: np.ndarray,
    times_s: np.ndarray,
    spacing_s: float,
    end_s: float,
    num_in_file: int,
) -> Clip:
    num_frames, height, width, _ = frames.shape
    patch_frames = spec.patch_frames if isinstance(spec, VideoSpec) else 1
    asked = {name: value for name, value in named_fields(asdict(spec)).items() if name not in ("uri", "files")}
    info = ClipInfo(
        kind="video" if kind == "video" else "image",
        digest=_digest_text(content, json.dumps(asked, sort_keys=True), PROCESSOR_VERSION),
        times_s=np.asarray(times_s, dtype=np.float64),
        grid_thw=(num_frames // patch_frames, height // spec.patch_px, width // spec.patch_px),
        second_per_grid_s=patch_frames * spacing_s,
        duration_s=end_s,
        num_bytes=frames.nbytes,
        start_s=spec.start_s if isinstance(spec, VideoSpec) else 0.0,
        source_fps=num_in_file / end_s if num_in_file and end_s else 0.0,
    )
    return Clip(info=info, frames=frames)


def _digest_text(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
