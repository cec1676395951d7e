"""Where a row's video, frame folder or image is, and which of its frames a prompt shows."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from rlsys.config.run import DataConfig
from rlsys.data.annotations.rows import AnnotationRow, Medium, Problem, short
from rlsys.data.annotations.times import plain_rate
from rlsys.hub import blobs_of
from rlsys.tasks.truths import NUM_TRACKED_FRAMES
from rlsys.types import DEFAULT_PATCH, ImageSpec, MediaSpec, PatchShape, PromptItem, VideoSpec

RATE_TOLERANCE = 0.05  # share by which two statements of one rate may differ
GOT10K_FPS = 10.0  # frames a second of GOT-10k's sequences
IMAGE_MIN_PIXELS = 4 * 28 * 28  # VTTS, table 2: images may be smaller than frames of a video

_LOWER_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
VIDEO_SUFFIXES = (*_LOWER_SUFFIXES, *map(str.upper, _LOWER_SUFFIXES))
"""Suffixes that a row may leave out of the name of its video; cameras write them in capitals."""
_YOUTUBE = re.compile(r"(?:v_)?[\w-]{11}")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Suffixes that a row may leave out of the name of its image."""


def places(row: AnnotationRow) -> tuple[str, ...]:
    """Return the paths, relative to the folder of videos, where the row's medium may be."""
    return tuple(dict.fromkeys(place for name in _spellings(row.video) for place in _places(name, row.medium)))


def _spellings(name: str) -> tuple[str, ...]:
    """Return a name as it is, with the slashes of other systems, and with accents as other systems write them."""
    slashed = name.replace("\\", "/")
    return name, slashed, unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed)


def _places(name: str, medium: Medium) -> Iterator[str]:
    if medium == "frames":
        yield from _frame_folders(name)
    elif medium in ("image", "list"):
        yield from _files(name, ("", *IMAGE_SUFFIXES))
    else:
        yield from _files(name, ("", *VIDEO_SUFFIXES))
        yield from _other_names(name)
        yield from _frame_folders(name) if medium == "clip" else ()


def find_medium(row: AnnotationRow, root: Path) -> Path | None:
    """Return the first of the row's `places` that exists and is a file or a folder as the row's medium says."""
    for place in places(row):
        path = root / place
        # os.path says False where Path raises: names that are too long or hold what no file system takes
        is_folder, is_there = os.path.isdir(path), os.path.exists(path)
        if (is_folder and row.medium in ("frames", "clip")) or (is_there and not is_folder and row.medium != "frames"):
            return path
    return None


def is_inside(path: Path, root: Path) -> bool:
    """Return whether a path is in the folder of videos once links and `..` are followed.

    The files of a snapshot of the hub are links to the blobs of its repository, which are inside.
    """
    found, blobs = path.resolve(), blobs_of(root)
    return found.is_relative_to(root.resolve()) or (blobs is not None and found.is_relative_to(blobs.resolve()))


def media_spec(row: AnnotationRow, path: Path, data: DataConfig) -> MediaSpec:
    """Return what of the medium at `path` a prompt shows, within the config's rates and budgets."""
    if row.medium == "image":
        return image_spec(str(path), data)
    has_images = bool(row.frames) or path.is_dir()
    if row.task == "tracking":
        spec = tracking_spec(str(path), data, GOT10K_FPS if has_images else data.fps, num_frames=len(row.truth))
    else:
        spec = video_spec(str(path), data)
    rate = folder_fps(row, path) if has_images else None
    return replace(spec, window_s=row.window_s, folder_fps=rate, files=row.frames)


def image_spec(uri: str, data: DataConfig) -> ImageSpec:
    """Return an image within the config's budgets of a frame."""
    return ImageSpec(uri=uri, min_pixels=min(IMAGE_MIN_PIXELS, data.min_pixels), max_pixels=data.max_pixels)


def video_spec(uri: str, data: DataConfig) -> VideoSpec:
    """Return the frames of a video that the config's rates and budgets select."""
    return VideoSpec(
        uri=uri,
        fps=data.fps,
        min_frames=data.min_frames,
        max_frames=data.max_frames,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        total_pixels=data.total_pixels,
    )


def tracking_spec(uri: str, data: DataConfig, fps: float, num_frames: int = NUM_TRACKED_FRAMES) -> VideoSpec:
    """Return evenly spaced frames, one for each box of the row. VideoChat-R1's code picks seven for eight boxes."""
    return VideoSpec(
        uri=uri,
        fps=fps,
        min_frames=num_frames,
        max_frames=num_frames,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        total_pixels=data.total_pixels,
    )


def with_patches(items: Sequence[PromptItem], shape: PatchShape) -> tuple[PromptItem, ...]:
    """Return the items with their media cut for patches of this shape; `media_spec` assumes the default one."""
    if shape == DEFAULT_PATCH:
        return tuple(items)
    return tuple(replace(item, media=tuple(_with_shape(spec, shape) for spec in item.media)) for item in items)


def _with_shape(spec: MediaSpec, shape: PatchShape) -> MediaSpec:
    if isinstance(spec, ImageSpec):
        return replace(spec, patch_px=shape.px, side_px=shape.side_px)
    return replace(spec, patch_px=shape.px, patch_frames=shape.frames, side_px=shape.side_px)


def folder_fps(row: AnnotationRow, folder: Path) -> float | None:
    """Return the images per second of a frame folder or of the row's list of images.

    It is the row's, the folder's own, or the number of images over the row's duration; None where nothing says it.
    A part of a folder says nothing about the whole folder's duration.
    """
    stated = row.fps or (None if row.frames else _own_fps(folder))
    if stated is not None or row.duration_s is None or row.window_s is not None:
        return stated
    return (len(row.frames) or num_images(folder)) / row.duration_s or None


def rate_problems(row: AnnotationRow, folder: Path) -> tuple[Problem, ...]:
    """Return how the rates that a row and its frame folder or list of images give contradict each other."""
    try:
        own = None if row.frames else _own_fps(folder)
    except ValueError as error:
        if row.fps is None:
            return (Problem(field="fps", text=str(error)),)
        own = None
    rate = row.fps or own
    if row.fps and own and abs(row.fps - own) > RATE_TOLERANCE * own:
        return (Problem(field="fps", text=f"the row gives {row.fps:g}, its folder {own:g} images per second"),)
    if rate is None or row.duration_s is None or row.window_s is not None:
        return ()
    count = len(row.frames) or num_images(folder)
    # durations are rounded, and some end at the last image, others one image later
    if abs(count - rate * row.duration_s) > max(2.0, rate, RATE_TOLERANCE * count):
        text = f"{count} images at {rate:g} per second are {count / rate:g} s, the row gives {row.duration_s:g} s"
        return (Problem(field="fps, duration", text=text),)
    return ()


def num_images(folder: Path) -> int:
    """Return the number of images in a frame folder."""
    from rlsys.data.video.images import files_of_folder

    return len(files_of_folder(folder))


def _own_fps(folder: Path) -> float | None:
    """Return the number in the file `fps` or `fps.txt` of a frame folder, None where there is none.

    Raises ValueError if the file holds anything else.
    """
    for name in ("fps", "fps.txt"):
        file = folder / name
        if file.is_file():
            with file.open(encoding="utf-8-sig", errors="replace") as opened:
                text = opened.read(100).strip()
            rate = plain_rate(text)
            if isinstance(rate, float) and 0 < rate < 1e6:
                return rate
            if text:
                raise ValueError(f"{file} holds {short(text)}, which is no number of images per second")
    return None


def picture_size(path: Path) -> tuple[float, float] | None:
    """Return (width, height) in pixels of an image, or of the first image of a folder, as it is shown upright.

    Only the header is read. None for anything else, videos included.
    """
    from rlsys.data.video.errors import ClipError
    from rlsys.data.video.images import shown_size

    for candidate in sorted(path.iterdir()) if path.is_dir() else (path,):
        if not os.path.isfile(candidate):  # the reader of a pipe waits
            continue
        try:
            width, height = shown_size(candidate)
        except (OSError, ClipError):  # decoding it says what is wrong
            continue
        return float(width), float(height)
    return None


def _files(name: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files that a name may mean.

    Charades-STA names videos without a suffix, NExT-GQA by a path that a flat folder does not have.
    """
    flat = name.rsplit("/", 1)[-1]
    return tuple(dict.fromkeys(f"{base}{suffix}" for base in (name, flat) for suffix in suffixes))


def _other_names(name: str) -> Iterator[str]:
    """Yield the names under which files of the same video are kept elsewhere.

    Downloads of one video differ in the kind of file, and in the "v_" that ActivityNet puts before YouTube's names.
    """
    flat = PurePosixPath(name.rsplit("/", 1)[-1])
    is_video = flat.suffix.lower() in _LOWER_SUFFIXES
    stem = flat.stem if is_video else flat.name
    stems = [stem] if is_video else []
    if _YOUTUBE.fullmatch(stem):
        stems.append(stem[2:] if len(stem) > 11 else f"v_{stem}")
    for one in stems:
        yield from (f"{one}{suffix}" for suffix in VIDEO_SUFFIXES)


def _frame_folders(name: str) -> tuple[str, ...]:
    """Return the folders that a path may mean.

    GOT-10k rows carry the absolute path of the authors' machine: `…/val/GOT-10k_Val_000010`.
    """
    parts = name.strip("/").split("/")
    return tuple(dict.fromkeys("/".join(parts[-count:]) for count in (1, 2, len(parts))))
