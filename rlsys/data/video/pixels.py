"""The pixels of an image as 8-bit RGB: deep values scaled, transparency on white.

Colour profiles are left alone, as the Hugging Face processors and vLLM do, with which a trained model is used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

PIXELS_AT_ONCE = 4_000_000
"""Pixels that are converted at a time, so that a large image is held once in its own mode and once as RGB."""
_PHOTOMETRIC, _BITS, _PLANES, _SAMPLE_FORMAT = 262, 258, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2


def flattened(image: Image.Image) -> Image.Image:
    """Return an image as RGB: transparency laid on white, deep greys scaled to 8 bits.

    Raises ValueError for pixels that Pillow does not read as they are.
    """
    transparent = _load(image)
    if (values := _deep_values(image)) is not None:
        return _from_deep(values, image, transparent)
    is_transparent = _is_transparent(image)
    if image.mode == "RGB" and not is_transparent:
        return image
    result = Image.new("RGB", image.size)
    for top, bottom in row_bands(image.height, image.width):
        band = image.crop((0, top, image.width, bottom))
        result.paste(_on_white(band) if is_transparent else band.convert("RGB"), (0, top))
    return result


def with_alpha(image: Image.Image) -> Image.Image:
    """Return an image as `flattened` does, but as RGBA with its transparency kept, all at once."""
    _load(image)
    if not _is_transparent(image) or _deep_values(image) is not None:
        return flattened(image).convert("RGBA")
    return image.convert("RGBA")


def row_bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, row behind the last) of bands of about `PIXELS_AT_ONCE` pixels, from top to bottom."""
    rows = max(1, PIXELS_AT_ONCE // max(1, width))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _load(image: Image.Image) -> object:
    """Decode an image and return its transparent value or values, None where it has none. Raises ValueError."""
    _require_readable(image)
    transparent = _transparent(image)
    image.load()
    if transparent is not None:
        image.info["transparency"] = transparent
    return transparent


def _require_readable(image: Image.Image) -> None:
    tags = getattr(image, "tag_v2", None)
    if tags and tags.get(_PLANES) == _SEPARATE and len(tags.get(_BITS, ())) > 1 and max(tags[_BITS]) > 8:
        raise ValueError("a TIFF with a plane of more than 8 bits for each colour (PlanarConfiguration 2)")
    if image.format == "PNG" and _raw_mode(image) == "RGB;16B" and "transparency" in image.info:
        raise ValueError("a PNG of 16 bits with one transparent colour, which 8 bits do not tell from its neighbours")


def _raw_mode(image: Image.Image) -> object:
    """Return how Pillow unpacks the pixels of an image that is not loaded yet."""
    tiles = getattr(image, "tile", None)
    return tiles[0].args if tiles else None


def _transparent(image: Image.Image) -> object:
    """Return the transparent value of an image, in the scale to which Pillow brings greys of 2 and 4 bits."""
    transparent = image.info.get("transparency")
    levels = {"L;2": 3, "L;4": 15}.get(str(_raw_mode(image))) if image.format == "PNG" else None
    return transparent * 255 // levels if levels and isinstance(transparent, int) else transparent


def _is_transparent(image: Image.Image) -> bool:
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return False  # of programs that leave the fourth byte empty; viewers show the colours
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def _on_white(band: Image.Image) -> Image.Image:
    layer = band.convert("RGBA")
    white = Image.new("RGB", layer.size, (255, 255, 255))
    white.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
    return white


def _deep_values(image: Image.Image) -> np.ndarray | None:
    """Return the values of a grey image of another kind than bytes, as its file means them; None for other images."""
    tags = getattr(image, "tag_v2", None) or {}
    is_signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    if image.mode == "L" and is_signed:
        return np.asarray(image).view(np.int8)
    if image.mode == "I" and tags.get(_BITS, (0,))[0] == 32 and not is_signed:
        return np.asarray(image).view(np.uint32)
    return np.asarray(image) if image.mode.startswith("I") or image.mode == "F" else None


def _from_deep(grey: np.ndarray, image: Image.Image, transparent: object) -> Image.Image:
    """Scale 16-bit values by their full range and wider ones by their extremes; Pillow itself clips at 255.

    transparent: the value that becomes white. Values that are not finite are shown as the smallest one.
    """
    known = grey[np.isfinite(grey)] if image.mode == "F" else grey
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    is_16_bit = image.mode.startswith("I;16") or image.format == "PPM" and image.mode == "I"
    if is_16_bit or (image.mode == "I" and low >= 0 and high <= 65535):
        low, high = 0.0, 65535.0 if high > 255 or is_16_bit else 255.0
    scale = 255.0 / (high - low) if high > low else 0.0
    tags = getattr(image, "tag_v2", None) or {}
    bytes_ = np.empty(grey.shape, np.uint8)
    for top, bottom in row_bands(*grey.shape):
        band = grey[top:bottom]
        scaled = (np.where(np.isfinite(band), band, low).astype(np.float64) - low) * scale
        bytes_[top:bottom] = np.round(scaled).clip(0, 255).astype(np.uint8)
        if isinstance(transparent, int):
            bytes_[top:bottom][band == transparent] = 255
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and image.mode != "L":  # Pillow inverts bytes itself
        np.subtract(255, bytes_, out=bytes_)
    return Image.fromarray(bytes_).convert("RGB")
