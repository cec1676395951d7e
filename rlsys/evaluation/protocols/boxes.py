"""Readers and scores of tracked boxes, as published for GOT-10k and by VideoChat-R1."""

from __future__ import annotations

import re

import numpy as np

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.texts import numbers
from rlsys.evaluation.protocols.weighted import Metrics, Weighted
from rlsys.tasks.answers import Boxes, Expected, as_box
from rlsys.tasks.geometry import Box, box_iou
from rlsys.tasks.table import task_named
from rlsys.tasks.truths import NUM_TRACKED_FRAMES
from rlsys.types import Json

Tracked = tuple[Box, ...]


def paper_boxes(row: Answered, text: str) -> Tracked | None:
    """Read the list in the first <answer> if it has as many boxes as the truth. Source: VideoChat-R1's code."""
    count = len(row.truth) if isinstance(row.truth, list | tuple) else 0
    found = task_named("tracking").parse(text, "paper", Expected(num_boxes=count))["answer"]
    return found.boxes if isinstance(found, Boxes) else None


def _true_boxes(row: Answered) -> Tracked | None:
    listed = [numbers(box, 4) for box in row.truth] if isinstance(row.truth, list | tuple) else []
    boxes = [as_box(box) for box in listed if box is not None]
    return tuple(boxes) if boxes and len(boxes) == len(listed) else None


def overlap_scores(row: Answered, value: Json) -> dict[str, float]:
    """Return the mean IoU over a row's frames, the first one included; a true box of no area has IoU 0.

    Source: VideoChat-R1.
    """
    truth = _true_boxes(row)
    if value is None or truth is None or len(value) != len(truth):
        return {"overlap": 0.0}
    ious = [
        box_iou(box, true) if true[0] < true[2] and true[1] < true[3] else 0.0
        for box, true in zip(value, truth, strict=True)
    ]
    return {"overlap": sum(ious) / len(ious)}


def overlap_metrics(weighted: Weighted) -> Metrics:
    """Return the mean overlap, and R@m, the share of rows with an overlap of at least m.

    The paper does not define its R@m; it is taken to count rows, as for time spans, not frames. Six of the paper's nine
    figures are multiples of 1/180, the number of its rows, to the digit given; by chance it would be one or two.
    """
    recalls = {f"r_at_{threshold}": weighted.share("overlap", threshold) for threshold in (0.5, 0.7)}
    return {"overlap": weighted.mean("overlap"), **recalls}


def rect_ious(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return f64 [N], the IoU of N pairs of boxes as the GOT-10k toolkit computes it.

    predicted, truth: f64 [N, 4] of left, top, right, bottom in fractions of the frame. As in the toolkit, left and top
    are clipped to the frame first, with width and height unchanged, and these then to the rest of the frame.
    """
    ours, theirs = _clipped(predicted), _clipped(truth)
    near = np.maximum(ours[:, :2], theirs[:, :2])
    far = np.minimum(ours[:, :2] + ours[:, 2:], theirs[:, :2] + theirs[:, 2:])
    shared = np.prod(np.maximum(far - near, 0.0), axis=1)
    union = np.prod(ours[:, 2:], axis=1) + np.prod(theirs[:, 2:], axis=1) - shared
    return np.clip(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), 0.0, 1.0)


def _clipped(boxes: np.ndarray) -> np.ndarray:
    """Return f64 [N, 4] of left, top, width, height inside the frame."""
    corners = np.clip(boxes[:, :2], 0.0, 1.0)
    sizes = np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, 1.0 - corners)
    return np.concatenate([corners, sizes], axis=1)


def toolkit_scores(row: Answered, value: Json) -> dict[str, float]:
    """Return a row's mean IoU and its shares of frames with an IoU above 0.5 and 0.75, with the number of frames.

    Frames but the first count where the target is visible: where the label "cover" (the frames' values of the file
    `cover.label`, separated by commas or spaces) is above 0; all of them without that label. An unreadable answer
    has IoU 0 in every frame. Source: GOT-10k toolkit.
    """
    truth = _true_boxes(row)
    if truth is None:
        return {"ao": 0.0, "sr_0.5": 0.0, "sr_0.75": 0.0, "num_frames": NUM_TRACKED_FRAMES - 1.0}
    is_seen = _is_visible(row, len(truth))[1:]
    ious = np.zeros(len(truth) - 1) if value is None else rect_ious(np.array(value[1:]), np.array(truth[1:]))
    ious = ious[is_seen]
    if not ious.size:
        return {"ao": 0.0, "sr_0.5": 0.0, "sr_0.75": 0.0, "num_frames": 0.0}
    return {
        "ao": float(ious.mean()),
        "sr_0.5": float((ious > 0.5).mean()),
        "sr_0.75": float((ious > 0.75).mean()),
        "num_frames": float(ious.size),
    }


def _is_visible(row: Answered, num_frames: int) -> np.ndarray:
    """Return bool [num_frames], whether the target is visible."""
    cover = [part for part in re.split(r"[,\s]+", str(row.labels.get("cover", ""))) if part]
    if len(cover) != num_frames or not all(part.isdecimal() for part in cover):
        return np.ones(num_frames, dtype=bool)
    return np.array([int(part) > 0 for part in cover])


def toolkit_metrics(weighted: Weighted) -> Metrics:
    """Return AO, SR@0.5 and SR@0.75 over the frames of all rows together, as the toolkit does."""
    frames = weighted.column("num_frames")
    return {name: weighted.mean(name, weights=frames) for name in ("ao", "sr_0.5", "sr_0.75")}
