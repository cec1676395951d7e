"""Clues of VTTS-like rows: where, when or both the evidence is, as the data set writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rlsys.data.annotations.rows import Problem, is_number, read_span, short, stated_span
from rlsys.tasks.truths import MAX_TRACKED_FRAMES, is_tracked_count
from rlsys.types import Json

Size = tuple[float, float]
"""(width, height) in pixels."""
WHOLE: Size = (1.0, 1.0)
"""The size of a picture whose boxes are fractions of it."""
MIN_PIXELS = 2
"""A corner from which boxes are pixels. One just above 1 is a rounded fraction: no box ends at the second pixel."""


@dataclass(kw_only=True)
class Clue:
    """What a clue says. periods in seconds; box and boxes as the file has them, in pixels unless `is_normalised`.

    stated: the periods as the file states them, past the clip or not.
    kinds: which of "periods", "box" and "boxes" it is about, broken ones included.
    """

    periods: list[list[float]] = field(default_factory=list)
    stated: list[list[float]] = field(default_factory=list)
    box: list[float] | None = None
    boxes: list[list[float]] | None = None
    is_normalised: bool = True
    kinds: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


def read_clue(value: Json, duration_s: float | None, size: Size | None) -> Clue:
    """Read the clue `value`: `[s, e]`, a list of those, `[x0, y0, x1, y1]`, a list of those (tracking), or
    `{"temporal": …, "spatial": …}` for both.

    A list of one box is a box. Corners all below 2 are fractions of width and height, others are pixels.
    Periods past the duration and boxes past the frame, where those are known, are clipped and reported as fixed.
    """
    clue = Clue()
    if isinstance(value, dict):
        parts = {name: part for name, part in value.items() if part not in (None, [])}
        if not parts or not set(parts) <= {"temporal", "spatial"}:
            clue.problems.append(Problem(field="clue", text=f"{short(value)}: its keys are temporal and spatial"))
        for name, part in parts.items():
            before, clue.kinds = clue.kinds, set()
            _read_list(clue, part, duration_s, size)
            found, clue.kinds = clue.kinds, clue.kinds | before
            if found - {"temporal": {"periods"}, "spatial": {"box", "boxes"}}.get(name, set()):
                wrong = f"{name} clue {short(part)} is of the other kind"
                clue.problems.append(Problem(field="clue", text=wrong, is_contradiction=True))
    else:
        _read_list(clue, value, duration_s, size)
    return clue


def _read_list(clue: Clue, value: Json, duration_s: float | None, size: Size | None) -> None:
    rows = value if isinstance(value, list) else []
    if rows and all(map(is_number, rows)):
        rows = [rows]
    lengths = {len(row) if isinstance(row, list) and all(map(is_number, row)) else 0 for row in rows}
    if lengths == {2}:
        clue.kinds.add("periods")
        for row in rows:
            span, problem = read_span(row, duration_s or math.inf, "clue")
            clue.periods += [span] if span else []
            stated = stated_span(row)
            clue.stated += [stated] if stated else []
            clue.problems += [problem] if problem else []
    elif lengths == {4}:
        clue.kinds.add("box" if len(rows) == 1 else "boxes")
        clue.is_normalised = all(corner < MIN_PIXELS for row in rows for corner in row)
        _add_boxes(clue, rows, WHOLE if clue.is_normalised else size)
    else:
        text = f"{short(value)} is neither periods [start, end] nor boxes [x0, y0, x1, y1]"
        clue.problems.append(Problem(field="clue", text=text))


def _add_boxes(clue: Clue, rows: list[list[float]], size: Size | None) -> None:
    boxes, problems = inside_frame(rows, size)
    clue.problems += problems
    if len(rows) == 1:
        clue.box = boxes[0] if boxes else None
        return
    clue.boxes = boxes
    if not is_tracked_count(len(rows)):
        rule = f"an even number of at most {MAX_TRACKED_FRAMES} is expected, one box for each evenly spaced frame"
        text = f"{len(rows)} boxes: {rule}"
        clue.problems.append(Problem(field="clue", text=text))


def inside_frame(rows: list[list[float]], size: Size | None) -> tuple[list[list[float]], list[Problem]]:
    """Return the boxes that have an area, cut to the frame where `size` is known, and what was wrong with the rows."""
    width, height = size or (math.inf, math.inf)
    boxes: list[list[float]] = []
    problems: list[Problem] = []
    for row in rows:
        x0, y0, x1, y1 = (float(corner) for corner in row)
        cut = [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]
        if not (cut[0] < cut[2] and cut[1] < cut[3]):
            where = f" inside the frame of {width:g} x {height:g} pixels" if size not in (None, WHOLE) else ""
            problems.append(Problem(field="clue", text=f"box {row} is not [x0, y0, x1, y1] with an area{where}"))
            continue
        if cut != [x0, y0, x1, y1]:
            frame = "the picture" if size in (None, WHOLE) else f"the frame of {width:g} x {height:g} pixels"
            problems.append(Problem(field="clue", text=f"box {row} goes past {frame}", is_fixed=True))
        boxes.append(cut)
    return boxes, problems
