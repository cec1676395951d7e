"""Image files written byte by byte, so that what they show is known without a library's reader or writer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

HEIGHT, WIDTH = 56, 84


def ramps(channels: int, top: int = 255, kind: type = np.uint8) -> np.ndarray:
    """Return values from 0 to `top` that change along another direction in each channel, [H, W, channels]."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    along = (x / (WIDTH - 1), y / (HEIGHT - 1), (x + y) / (HEIGHT + WIDTH - 2), 0.5 + 0.5 * np.cos(x / 9))
    return np.round(np.stack(along[:channels], -1) * top).astype(kind)


def on_white(colours: np.ndarray, alpha: np.ndarray, top: float = 255) -> np.ndarray:
    """Return what is seen of colours [H, W, 3] with an alpha [H, W] before white, f64 in 0..255."""
    share = alpha[..., None] / top
    return 255 * (colours / top * share + 1 - share)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(values: np.ndarray, colour_type: int, depth: int = 8, more: bytes = b"") -> bytes:
    """Return a PNG of these values, [H, W] or [H, W, channels]. more: chunks before the pixels."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + _packed(row, depth) for row in values))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _packed(row: np.ndarray, depth: int) -> bytes:
    if depth >= 8:
        return row.astype(">u2" if depth == 16 else "u1").tobytes()
    bits = np.unpackbits(row.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return np.packbits(bits.ravel()).tobytes()


SIGNED, FLOAT = 2, 3
"""Kinds of samples of a TIFF; 1 is unsigned."""


def tiff(
    values: np.ndarray,
    photometric: int,
    sample_format: int = 1,
    order: str = "<",
    is_planar: bool = False,
    more: Sequence[tuple[int, int]] = (),
) -> bytes:
    """Return an uncompressed TIFF. photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK.  more: (tag, u16)."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, channels = values.shape
    stored = values.astype(values.dtype.newbyteorder(order))
    strips = [stored[..., index].tobytes() for index in range(channels)] if is_planar else [stored.tobytes()]
    tags = {256: [width], 257: [height], 258: [8 * values.dtype.itemsize] * channels, 259: [1], 262: [photometric]}
    tags |= {273: [0] * len(strips), 277: [channels], 278: [height], 279: [len(one) for one in strips]}
    tags |= {284: [1 + is_planar], 339: [sample_format] * channels, **{tag: [number] for tag, number in more}}
    data_at = 8 + 2 + 12 * len(tags) + 4
    lists_at = data_at + sum(map(len, strips))
    tags[273] = [data_at + sum(map(len, strips[:index])) for index in range(len(strips))]
    entries, lists = b"", b""
    for tag, numbers in sorted(tags.items()):
        body = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            body, lists = struct.pack(f"{order}I", lists_at + len(lists)), lists + body
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + body
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + b"".join(strips) + lists


class Picture(NamedTuple):
    """A part of an animation. values: indices of a palette [h, w] of a GIF, RGB or RGBA [h, w, c] of a PNG or WebP."""

    left: int
    top: int
    values: np.ndarray
    disposal: int
    transparent: int | None = None
    palette: np.ndarray | None = None
    is_blended: bool = True


def gif(size: tuple[int, int], pictures: Sequence[Picture], palette: np.ndarray, background: int = 0) -> bytes:
    """Return an animated GIF with a palette of 32 colours, u8 [32, 3], ten frames a second. size: (height, width)."""
    data = b"GIF89a" + struct.pack("<HHBBB", size[1], size[0], 0xF4, background, 0) + palette.tobytes()
    for one in pictures:
        bits = one.disposal << 2 | (one.transparent is not None)
        data += b"\x21\xf9\x04" + struct.pack("<BHB", bits, 10, one.transparent or 0) + b"\0"
        height, width = one.values.shape
        own = b"" if one.palette is None else one.palette.tobytes()
        data += struct.pack("<BHHHHB", 0x2C, one.left, one.top, width, height, 0x84 if own else 0) + own
        data += _lzw(one.values)
    return data + b";"


def _lzw(indices: np.ndarray) -> bytes:
    """Return indices below 32 as LZW whose table is cleared before codes get longer than six bits."""
    flat = indices.ravel().tolist()
    codes = [code for at in range(0, len(flat), 30) for code in (32, *flat[at : at + 30])] + [33]
    bits = np.unpackbits(np.array(codes, np.uint8)[:, None], axis=1, bitorder="little")[:, :6]
    body = np.packbits(bits.ravel(), bitorder="little").tobytes()
    blocks = [body[at : at + 255] for at in range(0, len(body), 255)]
    return b"\5" + b"".join(bytes((len(one),)) + one for one in blocks) + b"\0"


def apng(size: tuple[int, int], pictures: Sequence[Picture]) -> bytes:
    """Return an animated PNG, ten frames a second, whose first picture fills it. size: (height, width)."""
    channels = pictures[0].values.shape[2]
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"acTL", struct.pack(">II", len(pictures), 0))
    number = 0
    for one in pictures:
        height, width, _ = one.values.shape
        fields = (number, width, height, one.left, one.top, 1, 10, one.disposal, one.is_blended)
        data += chunk(b"fcTL", struct.pack(">IIIIIHHBB", *fields))
        pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in one.values))
        data += chunk(b"fdAT", struct.pack(">I", number + 1) + pixels) if number else chunk(b"IDAT", pixels)
        number += 2 if number else 1
    return data + chunk(b"IEND", b"")
