"""Read images, folders of images and animated images with Pillow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rlsys.data.video.errors import ClipError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that may be opened. Pillow has others whose readers start programs (EPS) or fetch files."""
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"))
_ANIMATED = re.compile(rb"GIF8|\x89PNG|RIFF....WEBP", re.DOTALL)
"""How files of the formats begin that may be animations."""
MAX_PIXELS = 64_000_000
"""Largest number of pixels of an image; as RGB it takes 192 MB."""
MAX_FILE_BYTES = 1 << 30
"""Largest number of bytes of an image; uncompressed 16-bit RGB of `MAX_PIXELS` takes 384 MB."""
MAX_ANIMATION_PIXELS = 20_000_000_000
"""Largest number of pixels of all frames of an animation, each of which is decoded: 1080p for five minutes at 30 frames
per second."""
MAX_FILES = 1_000_000
"""Largest number of images of a folder: nine hours of video at 30 frames per second."""
PIXELS_AT_ONCE = 4_000_000
"""Pixels that are converted at a time, so that a large image is held once in its own mode and once as RGB."""
DEFAULT_FRAME_S, MIN_FRAME_S = 0.1, 0.011
"""Duration for which browsers show a frame of an animation whose own duration is shorter than the second of these."""


def files_of_folder(folder: Path) -> list[Path]:
    """Return the images of a folder, ordering numbers in their names as numbers: 10.jpg after 9.jpg.

    Hidden files, such as those that macOS puts beside every file (`._1.jpg`), are no frames.
    Raises ClipError if there are more than `MAX_FILES`.
    """
    with os.scandir(folder) as entries:
        images = (entry for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES and _is_frame(entry))
        found = [Path(entry.path) for entry in islice(images, MAX_FILES + 1)]
    if len(found) > MAX_FILES:
        raise ClipError(str(folder), "too_large", f"more than {MAX_FILES} images in one folder")
    return sorted(found, key=lambda path: (_natural(path), path.name))


def _is_frame(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and not entry.is_dir()


def _natural(path: Path) -> tuple[tuple[int, int | str], ...]:
    parts = re.split(r"(\d+)", path.name)
    return tuple((1, int(part)) if part.isdecimal() else (0, part) for part in parts if part)


def open_image(path: Path) -> Image.Image:
    """Return an image as RGB, upright, with transparency on white. Raises ClipError."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        _require_size(image, path)
        ImageOps.exif_transpose(image, in_place=True)
        return flattened(image)


def flattened(image: Image.Image) -> Image.Image:
    """Return an image as RGB: transparency laid on white, 16-bit and floating-point greys scaled to 8 bits."""
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image, image.info.get("transparency"))
    is_transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    result = Image.new("RGB", image.size)
    for top, bottom in row_bands(image.height, image.width):
        band = image.crop((0, top, image.width, bottom))
        result.paste(_on_white(band) if is_transparent else band.convert("RGB"), (0, top))
    return result


def row_bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, row behind the last) of bands of about `PIXELS_AT_ONCE` pixels, from top to bottom."""
    rows = max(1, PIXELS_AT_ONCE // max(1, width))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _from_deep(image: Image.Image, transparent: object) -> Image.Image:
    """Scale 16-bit values by their full range and wider ones by their extremes; Pillow itself clips at 255.

    transparent: the value that becomes white. Values that are not finite are shown as the smallest one.
    """
    grey = np.asarray(image)
    known = grey[np.isfinite(grey)] if image.mode == "F" else grey
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and high <= 65535):
        low, high = 0.0, 65535.0 if high > 255 or image.mode.startswith("I;16") else 255.0
    scale = 255.0 / (high - low) if high > low else 0.0
    bytes_ = np.empty(grey.shape, np.uint8)
    for top, bottom in row_bands(*grey.shape):
        band = grey[top:bottom]
        scaled = (np.where(np.isfinite(band), band, low).astype(np.float64) - low) * scale
        bytes_[top:bottom] = np.round(scaled).clip(0, 255).astype(np.uint8)
        if isinstance(transparent, int):
            bytes_[top:bottom][band == transparent] = 255
    return Image.fromarray(bytes_).convert("RGB")


def is_animation(path: Path) -> bool:
    """Return whether a file is an image of several frames, whatever its name is."""
    with path.open("rb") as file:
        if not _ANIMATED.match(file.read(12)):
            return False
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        return bool(getattr(image, "is_animated", False))


def animation_times(path: Path) -> tuple[np.ndarray, float]:
    """Return the presentation times of an animation, f64 [N], and the end of its last frame, in seconds."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        _require_size(image, path)
        durations = []
        num_frames = getattr(image, "n_frames", 1)
        if num_frames * image.width * image.height > MAX_ANIMATION_PIXELS:
            raise ClipError(
                str(path),
                "too_large",
                f"{num_frames} frames of {image.width} x {image.height} pixels, together above the limit of "
                f"{MAX_ANIMATION_PIXELS} pixels of an animation",
            )
        for index in range(_first_shown(image), num_frames):
            image.seek(index)
            if image.format == "WEBP":
                image.load()  # Pillow knows how long a frame of it is shown only once it is decoded
            duration_s = (image.info.get("duration") or 0) / 1000
            durations.append(duration_s if duration_s >= MIN_FRAME_S else DEFAULT_FRAME_S)
    ends_s = np.cumsum(durations)
    return np.round(np.concatenate([[0.0], ends_s[:-1]]), 6), round(float(ends_s[-1]), 6)


def animation_frames(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames of an animation as rendered, u8 [H, W, 3]."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        for index in indices:
            image.seek(_first_shown(image) + index)
            yield np.asarray(flattened(image)).copy()  # the next frame is drawn over this one


def _first_shown(image: Image.Image) -> int:
    """Return the index of an animation's first frame; a PNG may begin with a picture for viewers of still ones."""
    return int(bool(getattr(image, "default_image", False)))


def _require_size(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ClipError(
            str(path), "too_large", f"{image.width} x {image.height} pixels, above the limit of {MAX_PIXELS}"
        )
    if (num_bytes := path.stat().st_size) > MAX_FILE_BYTES:
        raise ClipError(str(path), "too_large", f"{num_bytes} bytes, above the limit of {MAX_FILE_BYTES}")


class _errors:
    """A context that converts Pillow's errors to ClipErrors."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        name = str(self._path)
        if isinstance(error, UnidentifiedImageError):
            raise ClipError(name, "corrupt", f"not an image of {', '.join(FORMATS)}") from error
        if isinstance(error, Image.DecompressionBombError):
            raise ClipError(name, "too_large", str(error)) from error
        is_ours = isinstance(error, ClipError | PermissionError)
        if isinstance(error, OSError | SyntaxError | ValueError | EOFError) and not is_ours:
            is_cut = "truncated" in str(error)
            raise ClipError(name, "truncated" if is_cut else "corrupt", str(error).splitlines()[0]) from error
