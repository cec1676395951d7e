"""Clues: the periods and boxes in a response that say where the model found its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlsys.config.answers import Reading
from rlsys.tasks.answers import Answer, Boxes, Expected, TimeSpans
from rlsys.tasks.geometry import Box, TimeSpan, box_iou, spans_iou
from rlsys.tasks.table import Task, expected_answer, task_named
from rlsys.types import Json, PromptItem

PERIOD_KINDS = frozenset({"period", "periods"})
CLUE_KINDS = PERIOD_KINDS | {"box"}
"""Kinds of answers that point to a part of a clip. The boxes of a tracking row are one for each frame, and point to
nothing that was not shown."""

CLUE_SCORERS = frozenset({"spans_iou", "mean_box_iou"})
"""Scorers that compare periods or boxes with the true ones."""


@dataclass(frozen=True, kw_only=True)
class Clue:
    """A part of a clip. periods: in seconds from its start.  boxes: in fractions of width and height."""

    periods: tuple[TimeSpan, ...] = ()
    boxes: tuple[Box, ...] = ()

    def to_json(self) -> Json:
        """Return the clue as JSON."""
        return {"periods": [list(span) for span in self.periods], "boxes": [list(box) for box in self.boxes]}

    @staticmethod
    def from_json(tree: Json) -> Clue:
        """Return the clue that `to_json` wrote."""
        return Clue(
            periods=tuple((start, end) for start, end in tree["periods"]),
            boxes=tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in tree["boxes"]),
        )


def points_somewhere(task: str) -> bool:
    """Return whether responses of a task have a block with periods or a box."""
    return not CLUE_KINDS.isdisjoint(task_named(task).blocks.values())


def clue_scores(task: str) -> tuple[str, ...]:
    """Return the names of a task's scores that compare the clue of a response with the true one."""
    found = task_named(task)
    return tuple(
        name
        for name, scoring in found.scores.items()
        if scoring.scorer in CLUE_SCORERS and found.blocks.get(scoring.block or "") in CLUE_KINDS
    )


def clue_of(item: PromptItem, text: str, reading: Reading) -> Clue | None:
    """Return the clue in a response to the row `item`; None if no block has a usable period or box.

    reading: how the blocks are read, `answers.reading`.
    """
    task, expected = _row(item)
    return _clue(task.parse(text, reading, expected), task, expected)


def true_clue(item: PromptItem) -> Clue | None:
    """Return the clue in a row's annotation; None if its task has none."""
    task, expected = _row(item)
    return _clue(task.read_truth(item.truth), task, expected)


def answer_of(item: PromptItem, text: str, reading: Reading) -> dict[str, Answer | None]:
    """Return the answer in each block of a response to the row."""
    task, expected = _row(item)
    return task.parse(text, reading, expected)


def box_unit(item: PromptItem) -> tuple[float, float]:
    """Return (width, height) of the unit in which the row's boxes are written: of the picture in pixels, or (1, 1)."""
    return _row(item)[1].frame or (1.0, 1.0)


def clue_iou(one: Clue, other: Clue) -> float:
    """Return how much two clues agree, in [0, 1]: the lower of the IoU of the unions of their periods and that of
    their boxes.

    Source: VideoChat-R1, eq. 4, applied to two answers.
    """
    if not one.periods and not one.boxes:
        return 0.0
    ious: list[float] = []
    if one.periods or other.periods:
        ious.append(spans_iou(one.periods, other.periods) if other.periods else 0.0)
    if one.boxes or other.boxes:
        ious.append(box_iou(one.boxes[0], other.boxes[0]) if one.boxes and other.boxes else 0.0)
    return min(ious)


def _row(item: PromptItem) -> tuple[Task, Expected]:
    task = task_named(item.task)
    return task, expected_answer(item.truth, item.options, task.read_truth(item.truth))


def _clue(found: Mapping[str, Answer | None], task: Task, expected: Expected) -> Clue | None:
    width, height = expected.frame or (1.0, 1.0)
    periods: list[TimeSpan] = []
    boxes: list[Box] = []
    for block, kind in task.blocks.items():
        answer = found.get(block)
        if kind in PERIOD_KINDS and isinstance(answer, TimeSpans):
            periods += [span for span in answer.spans if span[0] < span[1] and all(map(math.isfinite, span))]
        elif kind == "box" and isinstance(answer, Boxes):
            fractions = [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in answer.boxes]
            boxes += [box for box in fractions if box[0] < box[2] and box[1] < box[3]]
    return Clue(periods=tuple(periods), boxes=tuple(boxes)) if periods or boxes else None
