"""The interval on a grid that has the highest mean IoU with given spans, found exactly by branch and bound."""

from __future__ import annotations

import numpy as np

_VALUES_AT_ONCE = 2_000_000
_TIE = 1e-12


def best_interval(starts: np.ndarray, ends: np.ndarray, step: float) -> tuple[float, float, np.ndarray]:
    """Return (start, end, f64 [N] IoU per span) of the interval with the highest mean IoU.

    starts, ends: f64 [N], of the true spans.  step: of the grid, which begins at 0 and reaches past the last end;
    both ends of the interval are on it. Of intervals equal up to rounding the first is returned, by start, then end.
    Raises ValueError without spans.

    A block holds the intervals whose start and end lie in two ranges of the grid. None of them has a higher IoU with a
    span than the one whose ends are as close to the span's as the ranges allow; the mean of these bounds the block.
    A block whose bound is below the best mean found so far is dropped, others are split in four.
    """
    if not len(starts):
        raise ValueError("no spans to choose a constant interval for: give at least one row with a true span.")
    spans, weights = np.unique(np.stack([starts, ends]), axis=1, return_counts=True)
    share = weights / weights.sum()
    last = int(np.ceil(ends.max() / step))
    size = 1 << max(last, 1).bit_length()
    blocks = np.array([[0, 0]])
    best = _climbed(step, last, spans, share)
    while size > 1:
        size //= 2
        halves = np.array([[0, 0], [0, size], [size, 0], [size, size]])
        blocks = (blocks[:, None, :] + halves).reshape(-1, 2)
        # a block reaches `size` steps from its first start and end
        blocks = blocks[(blocks[:, 0] < blocks[:, 1] + size) & (blocks <= last).all(axis=1)]
        blocks = blocks[_bounds(blocks * step, (size - 1) * step, spans, share) >= best - _TIE]
    blocks = blocks[blocks[:, 0] < blocks[:, 1]]
    means = _means(blocks * step, spans, share)
    candidates = blocks[means >= means.max() - _TIE]
    first = candidates[np.lexsort((candidates[:, 1], candidates[:, 0]))[0]] * step
    ious = _ious(first[None, :], np.stack([starts, ends]))[0]
    return float(first[0]), float(first[1]), ious


def _climbed(step: float, last: int, spans: np.ndarray, share: np.ndarray) -> float:
    """Return the mean IoU of an interval that no change of its ends by a power of two steps improves.

    It is near the highest one, so that most blocks are dropped while they are large.
    """
    middle = np.rint(spans @ share / step).astype(np.int64)
    place, best = np.array([min(middle[0], last - 1), max(middle[1], min(middle[0], last - 1) + 1)]), 0.0
    size = 1 << max(last, 1).bit_length()
    while size:
        moves = size * np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1], [-1, -1], [1, 1], [-1, 1], [1, -1]])
        around = np.clip(place + moves, 0, last)
        around = around[around[:, 0] < around[:, 1]]
        means = _means(around * step, spans, share)
        if means.max() > best + _TIE:
            place, best = around[means.argmax()], float(means.max())
        else:
            size //= 2
    return best


def _ious(intervals: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return f64 [B, N], the IoU of each interval (f64 [B, 2]) with each span (f64 [2, N])."""
    shared = np.minimum(intervals[:, 1:], spans[1]) - np.maximum(intervals[:, :1], spans[0])
    covered = np.maximum(intervals[:, 1:], spans[1]) - np.minimum(intervals[:, :1], spans[0])
    return np.clip(shared, 0, None) / covered


def _in_parts(blocks: np.ndarray, num_spans: int) -> list[np.ndarray]:
    step = max(1, _VALUES_AT_ONCE // max(num_spans, 1))
    return [blocks[at : at + step] for at in range(0, len(blocks), step)]


def _means(intervals: np.ndarray, spans: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.concatenate([_ious(part, spans) @ share for part in _in_parts(intervals, spans.shape[1])])


def _bounds(lows: np.ndarray, width: float, spans: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return f64 [B], no less than the mean IoU of any interval of each block.

    lows: f64 [B, 2], the earliest start and end of each block; the latest are `width` later.
    """
    bounds = [np.zeros(0)]
    for part in _in_parts(lows, spans.shape[1]):
        starts = np.clip(spans[0], part[:, :1], part[:, :1] + width)
        ends = np.clip(spans[1], part[:, 1:], part[:, 1:] + width)
        shared = np.clip(np.minimum(ends, spans[1]) - np.maximum(starts, spans[0]), 0, None)
        covered = np.maximum(ends, spans[1]) - np.minimum(starts, spans[0])
        bounds.append((shared / covered) @ share)
    return np.concatenate(bounds)
