"""Annotations as the true answers that responses are compared with.

Each reader takes a JSON value and returns the true answer per block of the response, or raises
ValueError saying what is wrong: a broken annotation is never a wrong answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlsys.answers import Answer, Boxes, TimeSpans, read_choice
from rlsys.geometry import Box, TimeSpan
from rlsys.types import Json

NUM_TRACKED_FRAMES = 8
"""Boxes of a tracking row, as in VideoChat-R1."""


def period(truth: Json) -> Mapping[str, Answer]:
    """`[start, end]` in seconds."""
    return {"answer": TimeSpans(spans=(_span(truth),))}


def choice_and_periods(truth: Json) -> Mapping[str, Answer]:
    """`{"answer": "(C)", "glue": [[start, end], …]}`."""
    if not isinstance(truth, Mapping) or set(truth) != {"answer", "glue"}:
        raise ValueError(f'truth {_shown(truth)}: write {{"answer": "(C)", "glue": [[start, end], …]}}.')
    letter = read_choice(truth["answer"]) if isinstance(truth["answer"], str) else None
    if letter is None:
        raise ValueError(f'truth answer {_shown(truth["answer"])}: write the option\'s letter, for example "(C)".')
    glue = truth["glue"]
    if not isinstance(glue, list | tuple) or not glue:
        raise ValueError(f"truth glue {_shown(glue)}: write at least one [start, end] in seconds.")
    return {"answer": letter, "glue": TimeSpans(spans=tuple(_span(span) for span in glue))}


def tracked_boxes(truth: Json) -> Mapping[str, Answer]:
    """Eight `[x0, y0, x1, y1]`, in 0..1 of width and height, in frame order."""
    return {"answer": Boxes(boxes=_tracked(truth))}


def first_box(truth: Json) -> str:
    """The box of a tracking row's first frame, as its prompt shows it; ValueError when the row is broken."""
    return "[" + ", ".join(f"{value:g}" for value in _tracked(truth)[0]) + "]"


def _tracked(truth: Json) -> tuple[Box, ...]:
    if not isinstance(truth, list | tuple) or len(truth) != NUM_TRACKED_FRAMES:
        raise ValueError(f"truth {_shown(truth)}: write {NUM_TRACKED_FRAMES} boxes [x0, y0, x1, y1].")
    return tuple(_box(box) for box in truth)


def _span(value: Json) -> TimeSpan:
    start, end = _numbers(value, 2, "[start, end] in seconds")
    if not 0 <= start < end:
        raise ValueError(f"time span {_shown(value)}: it must start at 0 or later and end after its start.")
    return start, end


def _box(value: Json) -> Box:
    x0, y0, x1, y1 = _numbers(value, 4, "[x0, y0, x1, y1]")
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(
            f"box {_shown(value)}: it needs 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1; divide pixels by size."
        )
    return x0, y0, x1, y1


def _numbers(value: Json, count: int, form: str) -> list[float]:
    if not isinstance(value, list | tuple) or len(value) != count or not all(_is_number(member) for member in value):
        raise ValueError(f"truth {_shown(value)}: write {form}, {count} finite numbers.")
    return [float(member) for member in value]


def _is_number(value: Json) -> bool:
    # the bound comes first: float() of an integer with hundreds of digits raises OverflowError
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12 and math.isfinite(value)


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
