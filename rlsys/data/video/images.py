"""Read images, folders of images and animated images with Pillow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rlsys.data.video.errors import ClipError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that may be opened. Pillow has others whose readers start programs (EPS) or fetch files."""
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"))
ANIMATED_SUFFIXES = frozenset((".gif", ".apng", ".webp", ".png"))
MAX_PIXELS = 64_000_000
"""Largest number of pixels of an image; as RGB it takes 192 MB."""
DEFAULT_FRAME_S = 0.1
"""Duration for which browsers show a frame of an animation with duration 0."""


def files_of_folder(folder: Path) -> list[Path]:
    """Return the images of a folder, ordering numbers in their names as numbers: 10.jpg after 9.jpg."""
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES), key=_natural)


def _natural(path: Path) -> tuple[tuple[int, int | str], ...]:
    parts = re.split(r"(\d+)", path.name)
    return tuple((1, int(part)) if part.isdecimal() else (0, part) for part in parts if part)


def open_image(path: Path) -> Image.Image:
    """Return an image as RGB, upright, with transparency on white. Raises ClipError."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        _require_size(image, path)
        return flattened(ImageOps.exif_transpose(image))


def flattened(image: Image.Image) -> Image.Image:
    """Return an image as RGB: transparency laid on white, 16-bit and floating-point greys scaled to 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """Scale 16-bit values by their full range and wider ones by their extremes; Pillow itself clips at 255."""
    grey = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16") or (image.mode == "I" and grey.min() >= 0 and grey.max() <= 65535):
        low, high = 0.0, 65535.0 if grey.max() > 255 or image.mode.startswith("I;16") else 255.0
    else:
        low, high = float(grey.min()), float(grey.max())
    scaled = (grey - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.round(scaled).clip(0, 255).astype(np.uint8)).convert("RGB")


def is_animation(path: Path) -> bool:
    """Return whether a file is an image of several frames."""
    if path.suffix.lower() not in ANIMATED_SUFFIXES:
        return False
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        return bool(getattr(image, "is_animated", False))


def animation_times(path: Path) -> tuple[np.ndarray, float]:
    """Return the presentation times of an animation, f64 [N], and the end of its last frame, in seconds."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        _require_size(image, path)
        durations = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            durations.append((image.info.get("duration") or DEFAULT_FRAME_S * 1000) / 1000)
    ends_s = np.cumsum(durations)
    return np.round(np.concatenate([[0.0], ends_s[:-1]]), 6), round(float(ends_s[-1]), 6)


def animation_frames(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames of an animation as rendered, u8 [H, W, 3]."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        for index in indices:
            image.seek(index)
            yield np.asarray(flattened(image.copy()))


def _require_size(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ClipError(
            str(path), "too_large", f"{image.width} x {image.height} pixels, above the limit of {MAX_PIXELS}"
        )


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
