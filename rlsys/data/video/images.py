"""Read images, folders of images and animated images with Pillow."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from rlsys.data.video.animations import composed, parts_of
from rlsys.data.video.errors import ClipError
from rlsys.data.video.pixels import flattened
from rlsys.data.video.readers.containers import head_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that may be opened. Pillow has others whose readers start programs (EPS) or fetch files."""
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"))
_ANIMATED = re.compile(rb"GIF8|\x89PNG|RIFF....WEBP", re.DOTALL)
"""How files of the formats begin that may be animations."""
_OTHERS = {
    rb"....ftyp(avif|avis)": "an AVIF image",
    rb"....ftyp(hei[cx]|hev[cx]|mif1|msf1)": "an HEIC image",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "a JPEG XL image",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "a JPEG 2000 image",
    rb"II[*+]\0|MM\0[*+]": "a TIFF whose kind of pixels Pillow does not read",
}
"""Names of what images are often given as, by how they begin."""
_RAISED = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error)
"""What readers of images raise for headers that are damaged."""
_ORIENTATION = 0x0112
_FRACTION = re.compile(r"(?<![\d.])\d+\.(\d+)(?=\D*\Z)")
"""A number with a point as the last one in the name of an image, such as a time in seconds."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""
MAX_PIXELS = 64_000_000
"""Largest number of pixels of an image; as RGB it takes 192 MB."""
MAX_FILE_BYTES = 1 << 30
"""Largest number of bytes of an image; uncompressed 16-bit RGB of `MAX_PIXELS` takes 384 MB."""
MAX_ANIMATION_PIXELS = 20_000_000_000
"""Largest number of pixels of all frames of an animation, each of which is decoded: 1080p for five minutes at 30 frames
per second."""
MAX_FILES = 1_000_000
"""Largest number of images of a folder: nine hours of video at 30 frames per second."""
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
    fractions = [match.group(1) for path in found if (match := _FRACTION.search(path.name))]
    # counters reach "1.10"; a time in seconds is written without a last 0, but as "1.0"
    are_decimals = bool(fractions) and not any(len(one) > 1 and one.endswith("0") for one in fractions)
    return sorted(found, key=lambda path: (_natural(path.name, are_decimals), path.name))


def _is_frame(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and not entry.is_dir()


def _natural(name: str, are_decimals: bool) -> tuple[tuple[int, Fraction | int | str], ...]:
    parts = re.split(r"(\d+(?:\.\d+)?)" if are_decimals else r"(\d+)", name)
    number = Fraction if are_decimals else int
    return tuple((1, number(part)) if part[0].isdecimal() else (0, part) for part in parts if part)


def open_image(path: Path) -> Image.Image:
    """Return an image as RGB, upright, with transparency on white. Raises ClipError."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        _require_size(image, path)
        flat = flattened(image)
        return _upright(flat, _orientation(image))


def shown_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image as it is shown upright, from its header. Raises ClipError."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        is_turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns the size of a TIFF itself
        return (image.height, image.width) if is_turned else image.size


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 where there is none; broken metadata do not spoil a picture."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, TypeError, ValueError, struct.error):
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


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
        if image.format == "WEBP":
            num_frames = getattr(image, "n_frames", 1)
            _require_frames(path, image, num_frames)
            durations = [_webp_duration(image, index) for index in range(num_frames)]
        else:
            parts = parts_of(path.read_bytes())
            _require_frames(path, image, len(parts))
            durations = [part.duration_s for part in parts]
    if not durations:
        raise ClipError(str(path), "truncated", "it breaks off before its first frame")
    ends_s = np.cumsum([one if one >= MIN_FRAME_S else DEFAULT_FRAME_S for one in durations])
    return np.round(np.concatenate([[0.0], ends_s[:-1]]), 6), round(float(ends_s[-1]), 6)


def _require_frames(path: Path, image: Image.Image, num_frames: int) -> None:
    if num_frames * image.width * image.height > MAX_ANIMATION_PIXELS:
        raise ClipError(
            str(path),
            "too_large",
            f"{num_frames} frames of {image.width} x {image.height} pixels, together above the limit of "
            f"{MAX_ANIMATION_PIXELS} pixels of an animation",
        )


def _webp_duration(image: Image.Image, index: int) -> float:
    image.seek(index)
    image.load()  # Pillow knows how long a frame of it is shown only once it is decoded
    return (image.info.get("duration") or 0) / 1000


def animation_frames(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames of an animation as rendered, u8 [H, W, 3]. indices: ascending."""
    with _errors(path), Image.open(path, formats=FORMATS) as image:
        orientation = _orientation(image)
        frames: Iterator[Image.Image]
        if image.format == "WEBP":
            frames = (_webp_frame(image, index) for index in indices)
        else:
            frames = composed(parts_of(path.read_bytes()), image.size, indices)
        for frame in frames:
            yield np.asarray(_upright(frame, orientation)).copy()  # the next frame is drawn over this one


def _webp_frame(image: Image.Image, index: int) -> Image.Image:
    image.seek(index)
    return flattened(image)


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
            raise ClipError(
                name, "corrupt", f"not an image of {', '.join(FORMATS)}: {_what_it_is(self._path)}"
            ) from error
        if isinstance(error, Image.DecompressionBombError):
            raise ClipError(name, "too_large", str(error)) from error
        is_ours = isinstance(error, ClipError | PermissionError)
        if isinstance(error, _RAISED) and not is_ours:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            if "MAX_TEXT" in said:  # of Pillow, which names its own constants
                said = "its texts or its colour profile unpack to more than 1 MiB, or to 64 MiB together"
            is_cut = "truncated" in said or isinstance(error, struct.error)
            raise ClipError(name, "truncated" if is_cut else "corrupt", said) from error


def _what_it_is(path: Path) -> str:
    """Return the kind of a file that is no image of ours, or how it begins."""
    with path.open("rb") as file:
        head = file.read(32)
    return next((f"it is {name}" for start, name in _OTHERS.items() if re.match(start, head, re.DOTALL)), head_of(path))
