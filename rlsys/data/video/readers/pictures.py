"""Pictures that FFmpeg decoded, as they are shown: turned or mirrored, and with transparency on white."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rlsys.data.video.pixels import flattened


class Turn(NamedTuple):
    """How a stored picture becomes the one that is shown: rows and columns exchanged, then either order reversed."""

    is_transposed: bool = False
    flips_columns: bool = False
    flips_rows: bool = False


def turn_of(frame: Any) -> Turn:
    """Return the quarter turns and reflections of a frame's display matrix, to the nearest."""
    for one in frame.side_data:
        if one.type.name == "DISPLAYMATRIX":
            # the point (x, y) is shown at (a x + c y, b x + d y)
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(one))
            if abs(b) + abs(c) > abs(a) + abs(d):
                return Turn(True, c < 0, b < 0)
            return Turn(False, a < 0, d < 0)
    return Turn()


def upright(frame: Any, turn: Turn) -> np.ndarray:
    """Return a decoded frame as u8 [H, W, 3] RGB, turned as it is shown; transparency becomes white."""
    if frame.format.name in ("rgba", "bgra", "argb", "abgr", "pal8", "ya8") or frame.format.name.startswith("yuva"):
        pixels = np.asarray(flattened(Image.fromarray(frame.to_ndarray(format="rgba"))))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    if turn.is_transposed:
        pixels = pixels.transpose(1, 0, 2)
    pixels = pixels[:: -1 if turn.flips_rows else 1, :: -1 if turn.flips_columns else 1]
    return np.ascontiguousarray(pixels)
