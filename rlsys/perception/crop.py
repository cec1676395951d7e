"""The part of a picture around the boxes of a clue."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlsys.tasks.geometry import Box

SMALLEST = 0.1
"""Shortest side of a part, as a share of the picture's: less, enlarged, would show hardly more than blur."""


def crop_around(boxes: Sequence[Box], margin: float) -> Box | None:
    """Return the part of a picture that shows all boxes, in fractions of its width and height; None without any box.

    boxes: in fractions; empty, reversed and infinite ones, and those outside the picture, are skipped.
    margin: width added on each side, as a share of the side of the boxes' hull.
    """
    inside = [_clipped(box) for box in boxes if all(map(math.isfinite, box))]
    real = [box for box in inside if box[0] < box[2] and box[1] < box[3]]
    if not real:
        return None
    left, right = _side(min(box[0] for box in real), max(box[2] for box in real), margin)
    top, bottom = _side(min(box[1] for box in real), max(box[3] for box in real), margin)
    return left, top, right, bottom


def _clipped(box: Box) -> Box:
    x0, y0, x1, y1 = (min(max(corner, 0.0), 1.0) for corner in box)
    return x0, y0, x1, y1


def _side(low: float, high: float, margin: float) -> tuple[float, float]:
    """Return the two edges with the margin, at least `SMALLEST` apart, inside 0 to 1."""
    pad = margin * (high - low)
    low, high = max(low - pad, 0.0), min(high + pad, 1.0)
    if high - low < SMALLEST:
        low = min(max((low + high - SMALLEST) / 2, 0.0), 1.0 - SMALLEST)
        high = low + SMALLEST
    return low, high
