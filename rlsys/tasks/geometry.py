"""Nearness of an answer to the truth: IoU (intersection over union) of periods and boxes, relative error of numbers.

Pure Python. A prediction may be anything that a model can write, so an empty or reversed one scores 0.0. An empty
truth is a broken annotation and raises ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

TimeSpan = tuple[float, float]
"""(start, end) in seconds from the start of the clip."""
Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1): left, top, right, bottom; any unit, the same on both sides."""


def temporal_iou(predicted: TimeSpan, truth: TimeSpan) -> float:
    """Return the time that both spans share, divided by the time that they cover together.

    The result is in [0, 1]; it is 0.0 if `predicted` ends before it starts, because models write such spans and a
    wrong answer is not an error. Raises ValueError if `truth` is empty.
    Source: VideoChat-R1, eq. 4.
    """
    return spans_iou([predicted], [truth])


def spans_iou(predicted: Sequence[TimeSpan], truth: Sequence[TimeSpan]) -> float:
    """Return the IoU of the union of `predicted` with the union of `truth`; overlapping spans count once.

    Empty and reversed predicted spans cover nothing. Raises ValueError if a true span is empty
    or there is none. Source: VideoChat-R1 §3.3, grounded QA.
    """
    if not truth:
        raise ValueError("the truth has no time span; give at least one [start, end] in seconds.")
    for span in truth:
        if not _is_proper(*span):
            raise ValueError(f"true time span {list(span)}: its end must be after its start, both finite.")
    ours, theirs = merge_spans(predicted), merge_spans(truth)
    shared = _shared_length(ours, theirs)
    return _ratio(shared, _length(ours), _length(theirs))


def merge_spans(spans: Sequence[TimeSpan]) -> list[TimeSpan]:
    """Return disjoint spans in order that cover the same time; empty, reversed and infinite spans are skipped."""
    merged: list[TimeSpan] = []
    for start, end in sorted(span for span in spans if _is_proper(*span)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def box_iou(predicted: Box, truth: Box) -> float:
    """Return the area that both boxes share, divided by the area that they cover together.

    The result is in [0, 1]; it is 0.0 if `predicted` has no area. Raises ValueError if `truth` has none.
    """
    if not (_is_proper(truth[0], truth[2]) and _is_proper(truth[1], truth[3])):
        raise ValueError(f"true box {list(truth)}: it needs x0 < x1 and y0 < y1, all finite.")
    if not (_is_proper(predicted[0], predicted[2]) and _is_proper(predicted[1], predicted[3])):
        return 0.0
    width = min(predicted[2], truth[2]) - max(predicted[0], truth[0])
    height = min(predicted[3], truth[3]) - max(predicted[1], truth[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return _ratio(shared, _area(predicted), _area(truth))


def mean_box_iou(predicted: Sequence[Box], truth: Sequence[Box]) -> float:
    """Return the mean IoU over frames; box i of one side is compared with box i of the other.

    The result is 0.0 if the numbers of boxes differ, because it is unknown which frame is missing.
    Source: VideoChat-R1 §3.3, tracking.
    """
    if not truth:
        raise ValueError("the truth has no box; give one [x0, y0, x1, y1] per frame.")
    ious = [box_iou(box, true_box) for box, true_box in zip(predicted, truth, strict=False)]
    return sum(ious) / len(truth) if len(predicted) == len(truth) else 0.0


def relative_accuracy(answer: float, truth: float, tiers: Sequence[tuple[float, float]] = ()) -> float:
    """Return how near a number is to the true one, by its relative error |answer - truth| / |truth|.

    tiers: (relative error below, score); the first that holds counts, 0 when none does. () is the mean relative
    accuracy: of the ten tolerances 0.05, 0.10, …, 0.50 the share that the error is below.
    With a truth of 0 only 0 itself is near.  Source: VSI-Bench, arXiv:2412.14171, eq. 1.
    """
    # as fractions of what was written: 0.9 against 1 is off by a tenth, in floats by a little less
    true = Fraction(repr(truth))
    difference = abs(Fraction(repr(answer)) - true)

    def is_off_by_less_than(edge: float) -> bool:
        if not true:
            return not difference and edge > 0
        return math.isinf(edge) or difference < Fraction(repr(edge)) * abs(true)

    if tiers:
        return next((score for below, score in tiers if is_off_by_less_than(below)), 0.0)
    return sum(is_off_by_less_than(twentieths / 20) for twentieths in range(1, 11)) / 10


def _is_proper(start: float, end: float) -> bool:
    return start < end and math.isfinite(start) and math.isfinite(end)


def _length(spans: Sequence[TimeSpan]) -> float:
    return sum(end - start for start, end in spans)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared_length(ours: Sequence[TimeSpan], theirs: Sequence[TimeSpan]) -> float:
    """Return the length that two lists of disjoint, sorted spans share, in one pass over both."""
    shared, i, j = 0.0, 0, 0
    while i < len(ours) and j < len(theirs):
        shared += max(0.0, min(ours[i][1], theirs[j][1]) - max(ours[i][0], theirs[j][0]))
        if ours[i][1] < theirs[j][1]:
            i += 1
        else:
            j += 1
    return shared


def _ratio(shared: float, ours: float, theirs: float) -> float:
    # rounding can make the quotient of equal areas slightly larger than 1
    return min(1.0, shared / (ours + theirs - shared)) if shared > 0 else 0.0
