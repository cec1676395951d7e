"""Turn a row and the answers to it into what a page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.pages.thumbnails import Thumbnail
from rlsys.tasks.answers import Answer, Boxes, TimeSpans
from rlsys.tasks.table import expected_answer, task_named
from rlsys.types import Json


def page_row(
    row: Answered,
    *,
    group: str,
    frames: Sequence[Thumbnail] = (),
    frames_of: str = "",
    scores: Mapping[str, float] | None = None,
    score: float | None = None,
) -> dict[str, Json]:
    """Return a row as `write_page` takes it.

    group: the data set, by which rows can be filtered.  frames_of: id of another row of the page whose frames are this
    one's too, so that the page holds them once.  scores: of the first text, by name.  score: the one to
    sort by. Spans are in seconds, boxes in fractions of width and height.
    """
    true, answered, frame = _read(row)
    return {
        "id": row.row_id,
        "group": group,
        "task": row.task,
        "question": row.question,
        "options": list(row.options),
        "truth": row.truth if isinstance(row.truth, str) else _short(row.truth),
        "labels": dict(row.labels),
        "texts": list(row.texts),
        "reason": row.reason,
        "score": None if score is None or not math.isfinite(score) else score,
        "scores": {name: value for name, value in (scores or {}).items() if math.isfinite(value)},
        "spans": {"true": _spans(true), "answered": _spans(answered)},
        "boxes": {"true": _boxes(true, frame), "answered": _boxes(answered, frame)},
        "verdicts": row.verdicts,
        "frames": list(frames),
        "frames_of": frames_of,
    }


def answered_places(row: Answered) -> dict[str, Json]:
    """Return the spans and boxes in the first text of a row, under "spans" and "boxes"."""
    _, answered, frame = _read(row)
    return {"spans": _spans(answered), "boxes": _boxes(answered, frame)}


def _read(row: Answered) -> tuple[list[Answer | None], list[Answer | None], tuple[float, float]]:
    """Return the answers in the truth and in the first text, as far as they can be read, and the unit of boxes."""
    try:
        task = task_named(row.task)
        truth = task.read_truth(row.truth)
        expected = expected_answer(row.truth, row.options, truth)
    except ValueError:
        return [], [], (1.0, 1.0)
    text = row.texts[0] if row.texts else ""
    answered = list(task.parse(text, "lenient", expected).values())
    return list(truth.values()), answered, expected.frame or (1.0, 1.0)


def _spans(answers: Sequence[Answer | None]) -> list[tuple[float, float]]:
    return [(span[0], span[1]) for one in answers if isinstance(one, TimeSpans) for span in one.spans]


def _boxes(answers: Sequence[Answer | None], frame: tuple[float, float]) -> list[tuple[float, ...]]:
    """Return the boxes in fractions. frame: (width, height) in the unit of the boxes."""
    sides = (*frame, *frame)
    return [
        tuple(value / side for value, side in zip(box, sides, strict=True))
        for one in answers
        if isinstance(one, Boxes)
        for box in one.boxes
    ]


def _short(truth: Json) -> str:
    return str(truth)
